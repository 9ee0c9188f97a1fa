"""Processes of one run end together: each with a status and a line, none waits for one that is gone."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOST = "error: another process of this run has ended or cannot be reached; its own output says why"


def pair(*command, cwd=ROOT, **options):
    """Runs `command` as two processes of one run; (status, stdout, stderr) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"--coordinator_address=127.0.0.1:{probe.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, *command, address, "--num_processes=2", f"--process_id={i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            **options,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


def ends(how):
    """(status, lines on stderr) of the process that does it, and of the one that waits for it."""
    results = pair("-m", "tests.peer", how)
    assert all("joined 2 4" in stdout for _, stdout, _ in results), results
    ended = [(code, [x for x in err.splitlines() if not x.startswith("[Gloo]")]) for code, _, err in results]
    return ended if how.endswith(":0") else ended[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "raises:0"])
def test_an_exception_ends_all(how):
    (status, lines), (other_status, other_lines) = ends(how)
    assert status == 1 and lines[-1] == "RuntimeError: the reward is on fire"
    assert other_status != 0 and other_lines == [LOST]


@pytest.mark.slow
def test_an_error_of_the_user_stays_one_line():
    (status, lines), (other_status, other_lines) = ends("exits")
    assert (status, lines) == (1, ["error: the disk is full"])
    assert other_status != 0 and other_lines == [LOST]


@pytest.mark.slow
def test_a_killed_process_is_one_line_not_a_stack():
    (status, lines), (other_status, other_lines) = ends("dies:0")
    assert (status, lines) == (-signal.SIGKILL, [])
    assert other_status != 0 and other_lines == [LOST]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step():
    results = pair("-m", "tests.peer", "stops")
    assert [code for code, _, _ in results] == [0, 0]
    (first,), (second,) = ([x for x in out.splitlines() if x.startswith("stopped")] for _, out, _ in results)
    assert first == second
    refused = "config key 'mesh.tensor': 4 devices share rows, and must be on one host, which has 2"
    assert all(refused in out.splitlines() for _, out, _ in results)


def test_flags_belong_together():
    command = [sys.executable, "-m", "tests.peer", "stops", "--num_processes=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        "error: --coordinator_address, --num_processes and --process_id belong together"
    )
