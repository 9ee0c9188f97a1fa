"""Open-vocabulary emotion recognition: sets of words against sets of words (MER2024, MER-UniBench).

Words become classes first, and sets of classes are compared: by emotion wheels, or by groups of synonyms clip by clip
as MER2024 released them. The released files are for research only and may not be passed on: a user names a directory.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mecap_jax.evaluation.intervals import Statistic
from mecap_jax.evaluation.predictions import PredictionsError
from mecap_jax.rewards.wheels import EmotionWheels
from mecap_jax.text_files import read_lines


@dataclasses.dataclass(frozen=True)
class SetScores:
    """Means over clips, of each wheel by itself, then over the wheels.

    Attributes:
      precision: of a clip, the share of predicted classes that are gold ones; 0 where nothing was predicted.
      recall: the share of gold classes that were predicted.
      f1: the harmonic mean of a wheel's mean precision and mean recall.
      average: the mean of both, MER2024's score.
    """

    precision: Statistic
    recall: Statistic
    f1: Statistic
    average: Statistic


def set_scores(predicted: Sequence[Sequence[set[str]]], gold: Sequence[Sequence[set[str]]]) -> SetScores:
    """Compares sets of classes, by wheel and clip; a clip without a gold class on a wheel is left out there.

    Raises:
      ValueError: the numbers of wheels or clips differ.
    """
    shape = [len(wheel) for wheel in gold]
    if [len(wheel) for wheel in predicted] != shape or len(set(shape)) != 1:
        raise ValueError(f"{[len(wheel) for wheel in predicted]} predicted sets by wheel, {shape} gold ones")
    values = np.zeros((shape[0], len(gold), 3))  # precision, recall, whether the clip counts
    for w, (guesses, truths) in enumerate(zip(predicted, gold)):
        for i, (guess, truth) in enumerate(zip(guesses, truths)):
            if truth:
                common = len(guess & truth)
                values[i, w] = common / max(1, len(guess)), common / len(truth), 1
    flat = values.reshape(shape[0], -1)
    return SetScores(*(Statistic(flat, _aggregate(name)) for name in ("precision", "recall", "f1", "average")))


def wheel_scores(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], wheels: EmotionWheels) -> SetScores:
    """Scores of words by emotion wheels; words that a wheel does not know are dropped there."""
    by_clip = [[wheels.classes_of(words) for words in lists] for lists in (predicted, gold)]
    by_wheel = [[[clip[w] for clip in clips] for w in range(len(wheels.wheels))] for clips in by_clip]
    return set_scores(*by_wheel)


def mer2024_scores(directory: str | Path) -> SetScores:
    """Scores of MER2024's released example, clip by clip over its groups of synonyms.

    Args:
      directory: with `check-openset.csv` (gold), `predict-openset.csv` and `openset-synonym/CLIP.npy`, unpacked.

    Raises:
      PredictionsError: a file is missing or not what it should be; names it.
    """
    directory = Path(directory)
    gold = _read_word_lists(directory / "check-openset.csv")
    predicted = _read_word_lists(directory / "predict-openset.csv")
    sets: list[tuple[set[str], set[str]]] = []
    for path in sorted((directory / "openset-synonym").glob("*.npy")):
        group_of = {word: group[0] for group in _read_groups(path) for word in group if group}
        if path.stem not in gold or path.stem not in predicted:
            raise PredictionsError(f"{path}: the tables beside it have no clip {path.stem!r}")
        said, truth = ({group_of.get(word, word) for word in lists[path.stem]} for lists in (predicted, gold))
        sets.append((said, truth))
    if not sets:
        raise PredictionsError(f"there are no groups of synonyms: {directory / 'openset-synonym'}/*.npy")
    return set_scores([[said for said, _ in sets]], [[truth for _, truth in sets]])


def _aggregate(name: str):
    def of(sums: np.ndarray) -> np.ndarray:
        by_wheel = sums.reshape(*sums.shape[:-1], -1, 3)
        with np.errstate(invalid="ignore"):
            precision, recall = (by_wheel[..., k] / by_wheel[..., 2] for k in (0, 1))
        both = np.maximum(precision + recall, 1e-12)
        f1 = 2 * precision * recall / both
        values = {"precision": precision, "recall": recall, "f1": f1, "average": both / 2}[name]
        counted = by_wheel[..., 2] > 0  # a wheel that knows no word of any label says nothing
        with np.errstate(invalid="ignore"):
            return np.where(counted, values, 0.0).sum(axis=-1) / counted.sum(axis=-1)

    return of


def _read_word_lists(path: Path) -> Mapping[str, list[str]]:
    """Reads columns "name" and "openset", a list of words in brackets and quotes."""
    try:
        rows = list(csv.DictReader(read_lines(path)))
    except (OSError, csv.Error) as error:
        raise PredictionsError(f"{path} cannot be read: {error}") from error
    found = {}
    for number, row in enumerate(rows, start=2):
        if row.get("name") is None or row.get("openset") is None:
            raise PredictionsError(f"{path}, line {number}: expected columns 'name' and 'openset': {str(row)[:80]}")
        found[row["name"]] = [word.lower() for words in _lists(row["openset"])[:1] for word in words]
    return found


def _read_groups(path: Path) -> list[list[str]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise PredictionsError(f"{path} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "U" or array.ndim:
        raise PredictionsError(f"{path}: expected one string")
    return _lists(str(array))


def _lists(text: str) -> list[list[str]]:
    """Reads "[['happy', 'glad'], ['sad']]" as the published code does, which splits at every quote.

    The score that was published depends on it: one clip has "don't believe".
    """
    lists = [part for part in re.split(r"[\[\]]", text) if part.strip() not in ("", ",")]
    return [[word for word in re.split("['\"]", part) if word.strip() not in ("", ",")] for part in lists]
