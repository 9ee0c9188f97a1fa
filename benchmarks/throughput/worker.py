"""A side's process: it says that it is ready, takes a step at a time when told to, and says how long it took.

The parent writes "step" or "stop", a line each; the process answers in lines of JSON, the latter with what else is to
be said of it, or not at all. Whatever else it prints goes to its standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any


class Parent:
    """The way to the parent of this process, which from here on fails rather than taking more memory than there is.

    With an accelerator it is that one's memory which counts: its driver reserves more of the host's than there is.
    """

    def __init__(self):
        if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
            resource.setrlimit(resource.RLIMIT_DATA, (_bytes("/proc/meminfo", "MemAvailable:"),) * 2)
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def ready(self, settings: dict[str, Any], versions: dict[str, str]) -> None:
        """Says that steps can be taken, with the settings that are in force."""
        self._say({"settings": settings, "versions": versions})

    def wants_step(self) -> bool:
        """Waits until a step is asked for; False when there shall be none any more."""
        return sys.stdin.readline().strip() == "step"

    def took(
        self, seconds: float, phases: dict[str, float], facts: dict[str, float], device_bytes: int | None = None
    ) -> None:
        """Says how long a step and its phases took, what is to be compared of it, and the most memory that has been
        held at a time: of an accelerator, or else of this process."""
        self._say({"seconds": seconds, "phases": phases, "facts": facts, "peak_bytes": device_bytes or peak_bytes()})

    def left(self, facts: dict[str, float]) -> None:
        """Says what was measured behind the last step."""
        self._say(facts)

    def _say(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message, allow_nan=False, default=str) + "\n")


def peak_bytes() -> int:
    """Most memory that this process has held at a time (`VmHWM`; `ru_maxrss` would count its parent's)."""
    return _bytes("/proc/self/status", "VmHWM:")


def _bytes(file: str, name: str) -> int:
    (line,) = (line for line in Path(file).read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def core_seconds() -> float:
    """Processor time of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
