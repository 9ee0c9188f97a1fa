"""Renders chat templates that strangers wrote, within bounds that nothing in them can leave.

Jinja's sandbox keeps a template from Python's internals and from files, but not from taking all memory or never ending:
one comparison, division or slice may do that, out of reach of any counting. So a process with limits of its own renders
them (`template_worker`): it is started once, answers in a fraction of a millisecond, and is replaced when it has died.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mecap_jax.data.template_worker import MEMORY, OUT_OF_MEMORY

_WORKER = Path(__file__).with_name("template_worker.py")
# Of one request. A busy machine gives little of the first in much of the second.
_CPU_SECONDS, _WALL_SECONDS = 2.0, 60.0


def run_template(source: str, **variables: Any) -> str:
    """Renders a template; the same request is answered from memory.

    Args:
      variables: what the template sees; JSON values.

    Raises:
      ValueError: it cannot be read, fails, or takes too much; the message goes on behind the template's name.
    """
    limits = [_CPU_SECONDS, _WALL_SECONDS]
    return _render(json.dumps({"source": source, "variables": variables, "limits": limits}))


@functools.lru_cache(maxsize=4096)
def _render(request: str) -> str:
    answer = _worker.ask(request)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


class _Worker:
    """The process of this one, and of this one only: a fork starts its own."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def ask(self, request: str) -> dict[str, str]:
        """The answer to one request; {"error": why} where it ended the process."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._process = self._start()
            try:
                self._process.stdin.write(f"{request}\n".encode())
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if line.endswith(b"\n"):
                return json.loads(line)
            self.close()
            return {"error": _reason(self._process.returncode)}

    def _start(self) -> subprocess.Popen:
        # Found where this process finds it, and without the directory of the program, whose names hide Python's.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(
            [sys.executable, "-SP", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()


def _reason(status: int) -> str:
    """Why the process ended."""
    if status == OUT_OF_MEMORY:
        return f"takes more than {MEMORY >> 20} MB"
    if status in (-signal.SIGPROF, -signal.SIGALRM):
        return f"runs for more than {_CPU_SECONDS if status == -signal.SIGPROF else _WALL_SECONDS:g} s"
    return f"ended its process with status {status}"


_worker = _Worker()


def _renew() -> None:
    global _worker
    _worker = _Worker()


os.register_at_fork(after_in_child=_renew)
atexit.register(lambda: _worker.close())
