"""A run that kills itself as it saves step 2: `python -m tests.training.killed_worker KIND PLACE DIRECTORY`."""

import os
import signal
import sys
from pathlib import Path

from mecap_jax.training.checkpointing import StageCheckpoints
from tests.training.test_resume import train

_seal = StageCheckpoints._seal


def seal(self) -> None:
    """Arrays are written when this is called, under a temporary name; checksums are when it returns."""
    _die(self, "before the checksums")
    _seal(self)
    _die(self, "before the rename")


def _die(checkpoints: StageCheckpoints, place: str) -> None:
    if checkpoints._saving == 2 and sys.argv[2] == place:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    StageCheckpoints._seal = seal
    train(Path(sys.argv[3]), sys.argv[1], every=1)
