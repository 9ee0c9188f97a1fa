"""A directory appears when it is complete; what killed builds leave is removed, and a running build is not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mecap_jax.data import building as module
from mecap_jax.data.building import building, remove_unfinished


@pytest.fixture
def other_build(tmp_path):
    """Another process that builds `tmp_path/out` and waits."""
    program = f"""
import sys, time
from pathlib import Path
from mecap_jax.data.building import building
with building(Path({str(tmp_path / "out")!r})) as path:
    (path / "part").write_text("half")
    print(path, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_a_build_is_renamed_or_gone(tmp_path):
    with building(tmp_path / "deep" / "out") as path:
        (path / "file").write_text("x")
        path.rename(tmp_path / "deep" / "out")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "deep" / "again") as path:
        (path / "file").write_text("x")
        raise KeyboardInterrupt
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_what_a_killed_build_left_is_removed_at_the_next_start(tmp_path, other_build, capsys):
    process, left = other_build
    for name in (".mine", ".notes.building", "x.12345678.building"):
        (tmp_path / name).mkdir()
    remove_unfinished(tmp_path)
    assert os.path.exists(left) and capsys.readouterr().err == ""  # it runs
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.exists(left)
    remove_unfinished(tmp_path)
    assert capsys.readouterr().err == f"removed {left}, which an interrupted build left\n"
    assert {path.name for path in tmp_path.iterdir()} == {".mine", ".notes.building", "x.12345678.building"}
    remove_unfinished(tmp_path / "absent")


def test_processes_that_build_together_share_a_directory(tmp_path):
    with building(tmp_path / "out", "0123abcd") as first, building(tmp_path / "out", "0123abcd", owner=False) as second:
        assert first == second
        remove_unfinished(tmp_path)
        assert first.is_dir()
    assert not first.exists()


def test_without_locks_a_day_without_a_change_tells(tmp_path, monkeypatch):
    def no_locks(descriptor, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    with building(tmp_path / "out") as path:
        (path / "part").write_text("half")
        remove_unfinished(tmp_path)
        assert path.is_dir()
        for old in (path / "part", path):
            os.utime(old, (time.time() - 48 * 3600,) * 2)
        remove_unfinished(tmp_path)
        assert not path.exists()
