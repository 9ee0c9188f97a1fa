"""How far off answers are: in valence and arousal, and as a distribution over the labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.evaluation.intervals import Statistic, mean

_PRIOR = 0.5  # added to every count (Jeffreys), so that a label that is never predicted costs much, but not everything


def affect_error(
    predicted: Sequence[str | None], gold: Sequence[str | None], coordinates: Mapping[str, np.ndarray]
) -> Statistic:
    """Returns the mean distance of predicted and gold labels in the space of `coordinates`.

    A prediction that is None or has no coordinates counts with the largest distance that there is. Clips whose gold
    label has no coordinates are left out.

    Raises:
      ValueError: lengths differ.
    """
    _check(predicted, gold)
    places = coordinates.values()
    worst = max((float(np.linalg.norm(a - b)) for a in places for b in places), default=0.0)
    errors = [
        float(np.linalg.norm(coordinates[guess] - coordinates[truth]))
        if guess in coordinates and truth in coordinates
        else worst
        for guess, truth in zip(predicted, gold)
    ]
    return mean(errors, np.array([truth in coordinates for truth in gold], bool))


@dataclasses.dataclass(frozen=True)
class Divergence:
    """How the distribution P of predicted labels differs from that of gold labels, Q, in nats.

    Attributes:
      kl: KL(Q || P), in which labels that are never predicted weigh most.
      js: the Jensen-Shannon divergence, between 0 and log 2.
    """

    kl: Statistic
    js: Statistic


def label_divergence(predicted: Sequence[str | None], gold: Sequence[str | None], classes: Sequence[str]) -> Divergence:
    """Compares how often each class is predicted with how often it is right, over all labelled clips.

    Predictions that are None make a class of their own, which is never right. Every count is raised by 1/2.

    Raises:
      ValueError: lengths differ, or a label is not among `classes`.
    """
    _check(predicted, gold)
    index = {name: k for k, name in enumerate((*classes, None))}
    unknown = sorted({name for name in (*predicted, *gold) if name not in index})
    if unknown:
        raise ValueError(f"labels {unknown} are not among {list(classes)}")
    counts = np.zeros((len(gold), 2, len(index)))
    for i, (guess, truth) in enumerate(zip(predicted, gold)):
        if truth is not None:
            counts[i, 0, index[guess]] = counts[i, 1, index[truth]] = 1
    values = counts.reshape(len(gold), -1)
    return Divergence(Statistic(values, _kl), Statistic(values, _js))


def _kl(sums: np.ndarray) -> np.ndarray:
    p, q = _distributions(sums)
    return (q * np.log(q / p)).sum(axis=-1)


def _js(sums: np.ndarray) -> np.ndarray:
    p, q = _distributions(sums)
    middle = (p + q) / 2
    return (p * np.log(p / middle) + q * np.log(q / middle)).sum(axis=-1) / 2


def _distributions(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P and Q from counts [..., 2 K]; NaN where nothing was counted."""
    counts = sums.reshape(*sums.shape[:-1], 2, -1)
    total = counts.sum(axis=-1, keepdims=True)
    smooth = np.where(total > 0, (counts + _PRIOR) / (total + _PRIOR * counts.shape[-1]), np.nan)
    return smooth[..., 0, :], smooth[..., 1, :]


def _check(predicted: Sequence[str | None], gold: Sequence[str | None]) -> None:
    if len(predicted) != len(gold):
        raise ValueError(f"{len(predicted)} predicted labels but {len(gold)} gold ones")
