"""The script, run as a user runs it: what cannot be served is one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "app.py", f"--checkpoint={tmp_path}", f"--port={port}"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: --port: {port} of 127.0.0.1 is in use by another program; name another port\n"


END = """
import contextlib, os, runpy, signal, sys, threading
from unittest.mock import MagicMock
from absl import flags
import mecap_jax.app.server as server, mecap_jax.app.site as site

@contextlib.contextmanager
def serving(*_):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP)).start()
    try:
        yield "here"
    finally:
        print("uploads deleted")

signal.signal(signal.SIGHUP, signal.SIG_DFL)
server.serving, server.check_port, site.Site = serving, lambda *_: None, MagicMock()
main = runpy.run_path(sys.argv[1])["main"]
flags.FLAGS(["app", "--checkpoint=x"])
main(["app"])
"""


def test_a_terminal_that_closes_ends_it_as_a_signal_to_stop_does():
    done = subprocess.run(
        [sys.executable, "-c", END, ROOT / "scripts" / "app.py"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 129 and done.stdout.splitlines()[-1] == "uploads deleted", done.stderr
