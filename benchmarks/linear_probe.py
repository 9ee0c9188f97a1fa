"""What a linear classifier hears in the features of clips.

  python benchmarks/linear_probe.py --shards=DIR --feature=NAME[,NAME]

A captioner that reads the same features, side by side where there are several, is held against it: multinomial logistic
regression on the utterance features, standardised, one classifier for each corpus. Its regularisation is chosen by
folds of the train speakers; validation or test clips are read once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from sklearn.metrics import recall_score

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.linear_classifier import fit
from mecap_jax.command_line import local_paths, run
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.text_files import error_message

_SHARDS = flags.DEFINE_string("shards", None, "Directory of shards.", required=True)
_FEATURE = flags.DEFINE_list("feature", None, "Names of the features, such as whisper-base-UTT.", required=True)
local_paths("shards")


class Row(NamedTuple):
    """What was found of a corpus: the clips and speakers tested, unweighted average recalls of probe and majority."""

    corpus: str
    trained: int
    clips: int
    speakers: int
    labels: int
    strength: float
    uar: float
    majority_uar: float


def probe(reader: ShardReader, features: Sequence[str]) -> list[Row]:
    """Trains and tests a probe for each corpus that has labelled clips with the features in both splits.

    Raises:
      ShardError: there is none.
    """
    held_out = "test" if any(row.split == "test" for row in reader.index) else "validation"
    clips: dict[tuple[str, str], list[tuple[ClipRecord, np.ndarray]]] = {}
    for number, row in enumerate(reader.index):
        if "multimodal" in row.labels and all(name in row.features for name in features):
            held = reader[number].features
            vector = np.concatenate([held[name].mean(axis=0) for name in features])
            clips.setdefault((row.dataset, row.split), []).append((row, vector))
    corpora = [corpus for corpus, split in clips if split == "train" and (corpus, held_out) in clips]
    if not corpora:
        names = ", ".join(features)
        raise ShardError(f"{reader.directory}: no labelled clips with features {names} in train and {held_out}")
    return [_probe(corpus, clips[corpus, "train"], clips[corpus, held_out]) for corpus in corpora]


def _probe(corpus: str, train: list, tested: list) -> Row:
    x, y, speakers = _arrays(train)
    unseen, truth, tested_speakers = _arrays(tested)
    search = fit(x, y, speakers)
    return Row(
        corpus=corpus,
        trained=len(y),
        clips=len(truth),
        speakers=len(set(tested_speakers)),
        labels=len(set(truth)),
        strength=search.best_params_["logisticregression__C"],
        uar=float(recall_score(truth, search.predict(unseen), labels=sorted(set(truth)), average="macro")),
        majority_uar=1 / len(set(truth)),  # one class has a recall of 1, the others have 0
    )


def _arrays(clips: list[tuple[ClipRecord, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features `[N, dim]`, labels `[N]` and speakers `[N]`."""
    rows, vectors = zip(*clips, strict=True)
    return (
        np.stack(vectors),
        np.array([row.labels["multimodal"] for row in rows]),
        np.array([row.speaker for row in rows]),
    )


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
