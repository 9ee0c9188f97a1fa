"""A signal is acknowledged at once and obeyed within seconds, wherever the main thread is."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, sys, time
from mecap_jax.interruption import Interrupted
from mecap_jax.training.stopping import StopSignal, steps_under_way

def wait():
    time.sleep(60)

def compile():  # a call that no signal interrupts
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 1 << 30)

def steps():
    with steps_under_way() as begin:
        begin()
        for step in range(600):
            time.sleep(0.1)
            if should_stop(step):
                raise Interrupted("saved")

with StopSignal() as should_stop:
    print("ready", flush=True)
    try:
        globals()[sys.argv[1]]()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(Interrupted.STATUS)
"""


@pytest.mark.parametrize(
    "place, number, said",
    [
        ("wait", signal.SIGTERM, "SIGTERM: stopping\nstopped; the same command resumes\n"),
        ("wait", signal.SIGINT, "SIGINT: stopping\nstopped; the same command resumes\n"),
        ("compile", signal.SIGTERM, "SIGTERM: stopping\nstopped; the same command resumes\n"),
        ("steps", signal.SIGTERM, "SIGTERM: stopping after the step that is under way\nsaved\n"),
    ],
)
def test_a_signal_is_answered_and_obeyed(place, number, said):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(number)
        process.wait(timeout=20)
        answer = process.stderr.read()
    assert sorted(answer.splitlines()) == sorted(said.splitlines())
    assert process.returncode == 75
