"""Session-wide set-up: eight simulated devices, one compilation cache for all processes of the session, shape
annotations checked at run time, the files with whole runs first."""

import collections
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.xla_flags import xla_flags

_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several; it inherits what the first process sets here
_CACHE = None if _IS_WORKER else tempfile.TemporaryDirectory(prefix="mecap-jax-tests-")
if not _IS_WORKER:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
    # A program is compiled once, whichever worker or script that a test starts needs it first.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # nobody reads where an instruction came from
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores
    os.environ["NUMBA_CACHE_DIR"] = f"{_CACHE.name}/numba"
    os.environ.setdefault("NUMBA_OPT", "0")  # the pitch trackers compile longer than they run
else:
    # Two processes that fill one cache of numba's can leave code there that crashes whoever loads it.
    os.environ["NUMBA_CACHE_DIR"] += f"-{os.environ['PYTEST_XDIST_WORKER']}"

gc.set_threshold(100_000, 50, 50)  # each collection looks through millions of objects that stay: imports, traces

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

_CHECKED = ("mecap_jax.models", "mecap_jax.generation", "mecap_jax.rl", "mecap_jax.training")
_HOOK = install_import_hook(_CHECKED, "beartype.beartype")


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> Path:
    """A directory that all workers of the session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if _IS_WORKER else base


@pytest.fixture(scope="session")
def java():
    if shutil.which("java") is None:
        pytest.skip("there is no `java` on the PATH: METEOR and the PTB tokenizer cannot run")


@pytest.fixture(scope="session")
def meteor(java):
    """One running METEOR for all tests: it takes seconds to start."""
    from mecap_jax.evaluation.java_tools import Meteor

    with Meteor() as running:
        yield running


def pytest_collection_modifyitems(items):
    """Whole files in order of their slow tests: a long file that starts last leaves the other worker idle."""
    for item in items:
        # A set of strings is written in another order in every process, and workers that know a test by two names do
        # not start.
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        sets = [value for value in parameters if isinstance(value, set) and {*map(type, value)} == {str}]
        if any(len(value) > 1 and str(value) in item.name for value in sets):
            raise pytest.UsageError(f"{item.nodeid}: a set names this test: give the case an id of its own")
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    gc.freeze()  # modules are not looked through again after every file


def pytest_runtest_teardown(item, nextitem):
    """Programs and arrays of a file go with it."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure():
    if _CACHE is not None:
        _CACHE.cleanup()
