"""What the tests of whole runs share: shards."""

import pytest
from filelock import FileLock

from mecap_jax.data.importers import prepare
from tests.experiment.test_story import small


@pytest.fixture(scope="session")
def shared(common) -> tuple[str, ...]:
    """Overrides that make every run here take the same shards."""
    shards = common / "shards"
    with FileLock(common / "shards.lock"):
        prepare("synthetic", None, shards, small().data.synthetic, progress=False)
    return (f"data.path={shards}",)
