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
