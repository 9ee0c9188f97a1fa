"""A side's process: it says that it is ready, takes a step at a time when told to, and says how long it took.

The parent writes "step" or "stop", a line each; the process answers in lines of JSON. Whatever else it prints goes to
its standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


class Parent:
    """The way to the parent of this process."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def ready(self, settings: dict[str, Any], versions: dict[str, str]) -> None:
        """Says that steps can be taken, with the settings that are in force."""
        self._say({"settings": settings, "versions": versions})

    def wants_step(self) -> bool:
        """Waits until a step is asked for; False when there shall be none any more."""
        return sys.stdin.readline().strip() == "step"

    def took(self, seconds: float, phases: dict[str, float], facts: dict[str, float]) -> None:
        """Says how long a step and its phases took, and what is to be compared of it."""
        self._say({"seconds": seconds, "phases": phases, "facts": facts, "peak_bytes": peak_bytes()})

    def _say(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message, allow_nan=False, default=str) + "\n")


def peak_bytes() -> int:
    """Most memory that this process has held at a time (`VmHWM`; `ru_maxrss` would count its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
