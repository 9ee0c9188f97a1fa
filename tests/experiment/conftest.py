"""What the tests of whole runs share: shards and compiled programs."""

import pytest


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Overrides that make every run here take the same shards, and the same compilation cache."""
    root = tmp_path_factory.mktemp("shared")
    return f"data.path={root / 'shards'}", f"compilation_cache={root / 'jax'}", "data.source=synthetic"
