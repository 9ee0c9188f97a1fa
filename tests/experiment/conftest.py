"""What the tests of whole runs share: shards."""

import contextlib
import shutil

import pytest
from filelock import FileLock

from mecap_jax.data.importers import prepare
from mecap_jax.experiment import scoring, story
from tests.experiment.test_story import small


@pytest.fixture(scope="session")
def shared(common) -> tuple[str, ...]:
    """Overrides that make every run here take the same shards."""
    shards = common / "shards"
    with FileLock(common / "shards.lock"):
        prepare("synthetic", None, shards, small().data.synthetic, progress=False)
    return (f"data.path={shards}",)


@pytest.fixture
def one_meteor(request, monkeypatch):
    """Runs take the session's METEOR, where there can be one, instead of starting their own."""
    if shutil.which("java"):
        meteor = request.getfixturevalue("meteor")
        for module in (story, scoring):
            monkeypatch.setattr(module, "Meteor", lambda: contextlib.nullcontext(meteor))
