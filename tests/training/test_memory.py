"""A run that goes on needs no more memory than one that begins."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _peak(directory) -> int:
    command = [sys.executable, "-m", "tests.training.memory_worker", str(directory)]
    # Freed buffers go back to the system at once: what malloc keeps for later would hide what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.split()[0])


def test_a_restore_holds_the_state_once(tmp_path):
    fresh, resumed = _peak(tmp_path), _peak(tmp_path)
    assert resumed <= 1.05 * fresh, f"{fresh} MiB when it began, {resumed} MiB when it went on"
