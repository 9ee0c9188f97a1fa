"""Processes of one run end together: each with a status and a line, none waits for one that is gone."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mecap_jax.interruption import Interrupted

ROOT = Path(__file__).parents[1]
_SLURM_PORTS = 2**16 - 2**12  # JAX lets a job's processes meet at one of these ports, by the job's number
LOST = "error: another process of this run has ended or cannot be reached; its own output says why"


def free_port(lowest: int = 0) -> int:
    """A port of at least `lowest` that nobody listens at."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", random.randrange(lowest, 2**16) if lowest else 0))
            return probe.getsockname()[1]


def pair(*command, cwd=ROOT, env=None, slurm=False):
    """Runs `command` as two processes of one run, told by flags or by SLURM; (status, stdout, stderr) of each."""
    processes = []
    port = free_port(_SLURM_PORTS if slurm else 0)
    for i in range(2):
        flags = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"]
        job = {"JOB_ID": port - _SLURM_PORTS, "STEP_NODELIST": "localhost", "NTASKS": 2, "PROCID": i, "LOCALID": i}
        variables = {f"SLURM_{name}": str(value) for name, value in job.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *([] if slurm else flags)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=cwd,
                env=(env or os.environ) | (variables if slurm else {}),
            )
        )
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
def test_an_exception_ends_all():
    (status, lines), (other_status, other_lines) = ends("raises")
    assert status == 1 and lines[-1] == "RuntimeError: the reward is on fire"
    assert other_status != 0 and other_lines == [LOST]


@pytest.mark.slow
def test_an_error_of_the_user_stays_one_line():
    (status, lines), (other_status, other_lines) = ends("exits:0")
    assert (status, lines) == (1, ["error: the disk is full"])
    assert other_status != 0 and other_lines == [LOST]


@pytest.mark.slow
def test_a_killed_process_is_one_line_not_a_stack():
    (status, lines), (other_status, other_lines) = ends("dies:0")
    assert (status, lines) == (-signal.SIGKILL, [])
    assert other_status != 0 and other_lines == [LOST]


@pytest.mark.slow
def test_all_wait_for_what_the_first_process_prepares():
    results = pair("-m", "tests.peer", "prepares")
    assert [code for code, _, _ in results] == [0, 0], results
    assert ["prepared by" in out for _, out, _ in results] == [True, False]
    assert all(out.endswith("joined 2 4\n") for _, out, _ in results)


@pytest.mark.slow
def test_what_the_first_process_cannot_prepare_ends_all():
    (status, out, said), (other_status, other_out, other_said) = pair("-m", "tests.peer", "fails")
    assert (status, said.splitlines()[-1]) == (1, "error: no such directory: clips")
    assert other_status != 0 and LOST in other_said.splitlines()
    assert "joined" not in out + other_out


@pytest.mark.slow
def test_slurm_joins_processes_and_a_signal_to_one_stops_all_at_one_step():
    results = pair("-m", "tests.peer", "stops", slurm=True)
    assert [code for code, _, _ in results] == [Interrupted.STATUS] * 2
    first, second = (re.search(r"stopped after \d+", out)[0] for _, out, _ in results)  # others write there, too
    assert first == second
    refused = "config key 'mesh.tensor': 4 devices share rows, and must be on one host, which has 2"
    assert all(refused in out for _, out, _ in results)


@pytest.mark.parametrize(
    "flags, line",
    [
        ((), "error: --coordinator_address, --num_processes and --process_id belong together"),
        (("--coordinator_address=127.0.0.1:1", "--process_id=2"), "got process_id=2, num_processes=2"),
        (("--coordinator_address=127.0.0.1:1", "--process_id=1"), LOST),
    ],
    ids=["too few", "wrong", "nobody there"],
)
def test_who_cannot_join_says_so_in_one_line(flags, line):
    command = [sys.executable, "-m", "tests.peer", "waits", "--num_processes=2", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    (said,) = done.stderr.splitlines()
    assert done.returncode != 0 and line.lower() in said.lower()


@pytest.mark.slow
def test_a_run_that_waits_for_its_other_processes_can_be_stopped(tmp_path):
    port = free_port()
    where = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", "--process_id=0"]
    command = [sys.executable, ROOT / "scripts" / "train.py", f"--config={ROOT / 'configs' / 'grpo.py'}", *where]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        while True:
            assert process.poll() is None, process.stderr.read()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    lines = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
    assert (process.returncode, lines) == (
        Interrupted.STATUS,
        ["SIGTERM: stopping", "stopped; the same command resumes"],
    )
