"""What a linear classifier hears in the features of clips.

  python benchmarks/linear_probe.py --shards=DIR --feature=NAME[,NAME]

A captioner that reads the same features, side by side where there are several, is held against it: multinomial logistic
regression on the utterance features, standardised, one classifier for each corpus. Its regularisation is chosen by
folds of the train speakers; validation or test clips are read once.
"""

import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.linear_classifier import probe
from mecap_jax.command_line import local_paths, run
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.text_files import error_message

_SHARDS = flags.DEFINE_string("shards", None, "Directory of shards.", required=True)
_FEATURE = flags.DEFINE_list("feature", None, "Names of the features, such as whisper-base-UTT.", required=True)
local_paths("shards")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        found = probe(ShardReader(Path(_SHARDS.value)), _FEATURE.value)
    except (ShardError, OSError) as error:
        sys.exit(error_message(error))
    for row in found:
        print(
            f"{row.corpus}: UAR {row.uar:.3f} (majority class {row.majority_uar:.3f}) of {row.labels} labels in "
            f"{row.clips} clips of {row.speakers} unseen speakers; trained on {row.trained} clips, C = {row.strength:g}"
        )


if __name__ == "__main__":
    run(main)
