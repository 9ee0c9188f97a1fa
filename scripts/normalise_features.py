"""Takes speakers out of features: `python scripts/normalise_features.py --input=DIR --feature=whisper-base-UTT`

Of the features in INPUT/features/FEATURE the mean of each speaker's clips is taken away, and what is left is divided by
their standard deviation; no labels are looked at. It takes several clips of every speaker, new ones too: a single clip
of a stranger has no such features. With --by=train mean and deviation are those of all train clips, whoever speaks.
The result goes to INPUT/features/NAME-UTT|-FRA/<id>.npy, where prepare_data.py finds it. Nothing is written where a
clip lacks its features, and what is there of the same clips is not made again.
"""

import signal
import sys
from pathlib import Path

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.data.importers import IMPORTERS, ImporterError
from mecap_jax.experiment.feature_extraction import summarise
from mecap_jax.experiment.feature_normalisation import SPEAKER, TRAIN, NormalisationError, normalise
from mecap_jax.experiment.frozen_encoder import EncoderError
from mecap_jax.locking import LockedError
from mecap_jax.text_files import error_message, printable
from mecap_jax.training.logging import RunLogger

_INPUT = flags.DEFINE_string("input", None, "Directory of raw files with their features.", required=True)
_SOURCE = flags.DEFINE_enum("source", "folder", [x for x in IMPORTERS if x != "synthetic"], "What the input is.")
_ALLOW_OUTSIDE = flags.DEFINE_bool("allow_outside", False, "Follow absolute paths and links out of the input.")
_FEATURE = flags.DEFINE_string("feature", None, "The features, such as whisper-base-UTT.", required=True)
_BY = flags.DEFINE_enum("by", SPEAKER, [SPEAKER, TRAIN], "Whose mean and deviation are taken out.")
_NAME = flags.DEFINE_string("name", "", "Of the result, without -UTT or -FRA; by default that of the features and BY.")
local_paths("input")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        with RunLogger(None) as logger:
            directory, found = normalise(
                Path(_INPUT.value),
                _FEATURE.value,
                _BY.value,
                logger,
                source=_SOURCE.value,
                name=_NAME.value,
                allow_outside=_ALLOW_OUTSIDE.value,
            )
            logger.say(f"{printable(str(directory))}: {summarise(found)}")
    except (NormalisationError, EncoderError, ImporterError, LockedError, OSError) as error:
        sys.exit(error_message(error))


if __name__ == "__main__":
    run(main)
