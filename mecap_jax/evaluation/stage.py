"""All metrics of one stage (or baseline) on one set of clips: what the report and `evaluate.py` are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.emotion_words import first_emotion_word
from mecap_jax.evaluation.captions import Encode, caption_metrics
from mecap_jax.evaluation.intervals import Difference, Statistic, bootstrap, bootstrap_difference, mean
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.recognition import emotion_word_recognition, nearest_anchors, recognition
from mecap_jax.evaluation.retrieval import retrieval

NEAREST_ANCHOR = "nearest anchor"  # how the class of a free caption is read


@dataclasses.dataclass(frozen=True)
class EvaluatedClip:
    """What evaluation knows of a clip, whatever captioned it.

    Attributes:
      id: unique among the clips.
      cluster: its speaker or dialogue; intervals resample these.
      references: what it is held against; at least one where captions are scored.
      label: gold emotion, or None.
      language: of the references.
    """

    id: str
    cluster: str
    references: tuple[str, ...]
    label: str | None
    language: str = "en"


@dataclasses.dataclass(frozen=True)
class StageResult:
    """Captions of one stage and how good they are.

    Attributes:
      clips, captions: one caption a clip.
      predicted: the class that each caption expresses, as `reading` says (None: an empty caption, or no class).
      statistics: metrics by key, each with its per-clip statistics.
      unavailable: the reason for every metric that could not be computed.
      tokenisation: as in `CaptionScores`; "" where nothing is counted in words.
      classes: emotion classes, the order of `confusion`: those with an anchor, then those that only clips have.
      confusion: clips by gold and predicted class, int `[K, K]`, or None without anchors.
      reading: how `predicted` was read from the captions, in words.
      readings: which class each caption expresses, by how it is read.
      rewards: what each caption earns, by term.
    """

    clips: tuple[EvaluatedClip, ...]
    captions: tuple[str, ...]
    predicted: tuple[str | None, ...]
    statistics: Mapping[str, Statistic]
    unavailable: Mapping[str, str]
    tokenisation: str
    classes: tuple[str, ...]
    confusion: np.ndarray | None
    reading: str = NEAREST_ANCHOR
    readings: Mapping[str, Sequence[str | None]] = dataclasses.field(default_factory=dict)
    rewards: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the clips: two stages compare on the same ones, whatever each was asked about them."""
        return tuple(clip.id for clip in self.clips)

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics by key; None for those that are unavailable or undefined."""
        values = {key: statistic.value for key, statistic in self.statistics.items()}
        finite = {key: value if np.isfinite(value) else None for key, value in values.items()}
        return finite | dict.fromkeys(self.unavailable)

    def confidence(
        self, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> dict[str, tuple[float, float] | None]:
        """Intervals by key, as in `intervals.bootstrap`; None for metrics without one."""
        clusters = [clip.cluster for clip in self.clips]
        found = bootstrap(self.statistics, clusters, resamples, confidence, seed)
        return found | dict.fromkeys(self.unavailable)


def score_stage(
    clips: Sequence[EvaluatedClip],
    captions: Sequence[str],
    classes: Sequence[str],
    encode: Encode | None = None,
    coordinates: np.ndarray | None = None,
    rewards: np.ndarray | None = None,
    meteor: Meteor | None = None,
) -> StageResult:
    """Scores the captions of one stage.

    Adds to the keys of `caption_metrics`: `emotion_uar` and `emotion_war` (nearest anchor), `emotion_word_uar` (first
    emotion word), `retrieval` (as in that module), `emotion_reward` (mean emotion reward of each caption against its
    references).

    Args:
      clips: what was captioned.
      captions: one a clip, in the same order; an empty one expresses no emotion.
      classes: emotion classes that have anchors. A clip with another label is missed by nearest anchor.
      encode: sentence encoder, texts -> unit vectors `[n, d]`.
      coordinates: emotion coordinates of the captions `[N, K]`, in the order of `classes`.
      rewards: emotion reward of each caption `[N]`.
      meteor: a running METEOR, where several stages are scored.

    Raises:
      ValueError: lengths differ, an id occurs twice, a coordinate or reward is not finite, or texts that
        `caption_metrics` refuses.
    """
    _check(clips, captions, coordinates, rewards)
    languages = [clip.language for clip in clips]
    scores = caption_metrics(captions, [clip.references for clip in clips], languages, encode, meteor)
    statistics, unavailable = dict(scores.statistics), dict(scores.unavailable)
    gold = [clip.label for clip in clips]
    every = (*classes, *sorted({label for label in gold if label is not None} - set(classes)))
    statistics["retrieval"] = retrieval(captions, [clip.references for clip in clips], gold, languages)
    statistics["emotion_word_uar"] = emotion_word_recognition(captions, gold, every).uar
    predicted: list[str | None] = [None] * len(clips)
    confusion = None
    if coordinates is None:
        unavailable |= dict.fromkeys(("emotion_uar", "emotion_war"), "no emotion anchors were given")
    else:
        nearest = nearest_anchors(coordinates, classes)
        predicted = [name if caption.strip() else None for name, caption in zip(nearest, captions)]
        found = recognition(predicted, gold, every)
        statistics |= {"emotion_uar": found.uar, "emotion_war": found.war}
        confusion = found.confusion
    if rewards is None:
        unavailable["emotion_reward"] = "no emotion rewards were given"
    else:
        statistics["emotion_reward"] = mean(rewards)
    if len(set(filter(None, gold))) == 1:
        del statistics["retrieval"]
        unavailable["retrieval"] = "all clips have the same emotion"
    if not any(gold):
        for key in ("emotion_uar", "emotion_war", "emotion_word_uar", "retrieval"):
            statistics.pop(key, None)
            unavailable[key] = "no clip has an emotion label"
    return StageResult(
        tuple(clips),
        tuple(captions),
        tuple(predicted),
        statistics,
        unavailable,
        scores.tokenisation,
        every,
        confusion,
        readings={"anchor": predicted, "first_word": [first_emotion_word(caption, every) for caption in captions]},
        rewards={} if rewards is None else {"emotion": rewards.tolist()},
    )


def _check(
    clips: Sequence[EvaluatedClip], captions: Sequence[str], coordinates: np.ndarray | None, rewards: np.ndarray | None
):
    for name, values in (("captions", captions), ("emotion coordinates", coordinates), ("emotion rewards", rewards)):
        if values is not None and len(values) != len(clips):
            raise ValueError(f"{len(values)} {name} for {len(clips)} clips")
    ids = [clip.id for clip in clips]
    if len(set(ids)) < len(ids):
        raise ValueError(f"clip {next(i for i in ids if ids.count(i) > 1)!r} occurs twice")
    if rewards is not None and not np.isfinite(rewards).all():
        raise ValueError(f"the emotion reward of clip {ids[int(np.argmin(np.isfinite(rewards)))]!r} is not finite")


def compare(
    first: StageResult, second: StageResult, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """Returns `first - second` for every metric that both have, with paired intervals over clusters.

    Raises:
      ValueError: the two captioned different clips, or were tokenised differently.
    """
    if first.ids != second.ids:
        raise ValueError("two stages compare only on the same clips in the same order")
    if first.tokenisation != second.tokenisation:
        raise ValueError(f"tokenisations {first.tokenisation!r} and {second.tokenisation!r} do not compare")
    clusters = [clip.cluster for clip in first.clips]
    return bootstrap_difference(first.statistics, second.statistics, clusters, resamples, confidence, seed)
