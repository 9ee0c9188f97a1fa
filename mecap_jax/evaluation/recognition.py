"""Does a caption name the right emotion? Recalls and confusions from predicted and gold classes.

Two readings of a caption's class stand side by side: the nearest emotion anchor, which is close to what the reward
optimises, and the first emotion word of a lexicon, which knows no sentence encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.evaluation.intervals import Statistic, mean


@dataclasses.dataclass(frozen=True)
class Recognition:
    """How predicted classes agree with gold ones.

    Attributes:
      uar: unweighted average recall: the mean of the recalls of all classes that occur in gold.
      war: weighted average recall, which is accuracy.
      recalls: recall by class, of the classes that occur in gold.
      confusion: clips by gold (rows) and predicted class (columns), int `[K, K]`. A clip whose prediction is None
        counts as wrong and stands in no column.
    """

    uar: Statistic
    war: Statistic
    recalls: Mapping[str, Statistic]
    confusion: np.ndarray


def recognition(predicted: Sequence[str | None], gold: Sequence[str | None], classes: Sequence[str]) -> Recognition:
    """Compares predicted with gold classes; clips without a gold class are left out.

    Raises:
      ValueError: lengths differ, or a class is not among `classes`.
    """
    if len(predicted) != len(gold):
        raise ValueError(f"{len(predicted)} predicted classes but {len(gold)} gold ones")
    index = {name: k for k, name in enumerate(classes)}
    for kind, names in (("predicted", predicted), ("gold", gold)):
        unknown = sorted({name for name in names if name is not None} - set(index))
        if unknown:
            raise ValueError(f"{kind} classes {unknown} are not among {list(classes)}")
    count = len(classes)
    confusion = np.zeros((count, count), dtype=int)
    hits = np.zeros((len(gold), 2 * count))  # per class: correct clips, then all clips
    for i, (guess, truth) in enumerate(zip(predicted, gold)):
        if truth is None:
            continue
        hits[i, count + index[truth]] = 1
        hits[i, index[truth]] = guess == truth
        if guess is not None:
            confusion[index[truth], index[guess]] += 1
    labelled = np.array([truth is not None for truth in gold], dtype=bool)
    correct = [guess == truth for guess, truth in zip(predicted, gold)]
    recalls = {name: mean(correct, hits[:, count + k] > 0) for name, k in index.items() if hits[:, count + k].any()}
    return Recognition(Statistic(hits, _average_recall), mean(correct, labelled), recalls, confusion)


def _average_recall(sums: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur; NaN where none does."""
    count = sums.shape[-1] // 2
    correct, clips = sums[..., :count], sums[..., count:]
    recalls = np.divide(correct, clips, out=np.zeros_like(correct), where=clips > 0)
    with np.errstate(invalid="ignore"):
        return recalls.sum(axis=-1) / (clips > 0).sum(axis=-1)


def nearest_anchors(coordinates: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Returns the class of the nearest anchor of each caption, given emotion coordinates `[N, K]` (cosines).

    Raises:
      ValueError: the shape does not fit `classes`, or a coordinate is not finite.
    """
    coordinates = np.asarray(coordinates)
    if coordinates.ndim != 2 or coordinates.shape[1] != len(classes):
        raise ValueError(f"emotion coordinates have shape {coordinates.shape}, expected [clips, {len(classes)}]")
    broken = np.flatnonzero(~np.isfinite(coordinates).all(axis=1))
    if broken.size:
        raise ValueError(f"emotion coordinates of caption {broken[0]} are not finite")
    return [classes[k] for k in coordinates.argmax(axis=1)]


def emotion_word_recognition(
    captions: Sequence[str], gold: Sequence[str | None], classes: Sequence[str]
) -> Recognition:
    """Recognition by the first emotion word of each caption.

    A word of an emotion that `classes` lacks counts as no word.
    """
    known = set(classes)
    words = [first_emotion_word(caption, classes) for caption in captions]
    return recognition([word if word in known else None for word in words], gold, classes)
