"""A lock has one holder, says who that is, and never outlives it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mecap_jax.locking import LockedError, locked

HOLD = """
import pathlib, sys, time
from mecap_jax.locking import locked
with locked(pathlib.Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    path = tmp_path / "made" / "run.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield path, process
        process.kill()


def test_the_second_process_is_told_who_holds_it(held):
    path, process = held
    with pytest.raises(LockedError, match=f"the run is in use by process {process.pid} on .+ since 20"):
        with locked(path, "the run"):
            pytest.fail("two holders")


def test_a_lock_does_not_outlive_its_process(held):
    path, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()  # the file is there, the lock is not
    with locked(path, "the run"):
        assert f'"pid": {os.getpid()}' in path.read_text()
    assert not path.exists()


def test_who_waits_goes_on_when_the_other_is_done(held):
    path, process = held
    said = []
    threading.Timer(0.2, process.kill).start()
    with locked(path, "the data", wait=said.append):
        assert process.poll() is not None or process.wait() is not None
    assert len(said) == 1 and said[0].startswith(f"the data is in use by process {process.pid}")


def test_one_at_a_time_however_many_come(tmp_path):
    """The file is removed by each holder; nobody may go on with a lock on a file that is gone."""
    inside, most = [], []

    def work():
        for _ in range(20):
            with locked(tmp_path / "lock", "x", wait=lambda said: None):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) == 60
