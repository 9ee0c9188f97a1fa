"""Rewards in the space of a sentence encoder: emotion similarity, semantic similarity, distinctiveness.

The emotion reward reconstructs the idea of Emo-GRPO (MECap-R1, arXiv 2509.18729): captions are compared by their
coordinates among emotion anchors. The paper's own formula is not public; this one is ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.anchors import Anchors, check_encoder
from mecap_jax.rewards.base import Sample, normalise_text

FORMS = ("centred", "raw", "text_centred", "softmax")
AGAINST = ("references", "label")
_TEMPERATURE = 0.1
_REDUCTIONS = {"best": np.max, "mean": np.mean}


def emotion_coordinates(embeddings: np.ndarray, anchors: Anchors, form: str = "centred") -> np.ndarray:
    """Returns where texts lie among the emotions, float64 [N, K].

    With mu = mean_k a_k and m = `anchors.text_mean`, coordinate k of a text with embedding E is
      "centred": cos(E - mu, a_k - mu),
      "raw": cos(E, a_k), which saturates: such cosines are all positive and close together,
      "text_centred": cos(E - m, a_k - mu),
      "softmax": the softmax over k of the text-centred cosines at temperature 0.1, a distribution over the emotions:
        it says less about how clearly an emotion is expressed and more about which one it is.
    Cosines with a text that falls on the centre are 0.

    Args:
      embeddings: [N, D].
      anchors: the K anchors.
      form: one of `FORMS`.

    Raises:
      ValueError: an unknown form, or embeddings of another width than the anchors.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    if embeddings.ndim != 2 or embeddings.shape[1] != anchors.vectors.shape[1]:
        raise ValueError(f"embeddings must be [N, {anchors.vectors.shape[1]}], got {embeddings.shape}")
    texts, vectors = embeddings.astype(np.float64), anchors.vectors.astype(np.float64)
    if form != "raw":
        mean = vectors.mean(axis=0)
        texts = texts - (mean if form == "centred" else anchors.text_mean)
        vectors = vectors - mean
    cosines = _unit(texts) @ _unit(vectors).T
    if form != "softmax":
        return cosines
    likelihood = np.exp(cosines / _TEMPERATURE)
    return likelihood / likelihood.sum(axis=1, keepdims=True)


def emotion_similarity(coordinates: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns r = (1 + cos(phi, phi*)) / 2 in [0, 1], over the last axis of [..., K]."""
    return (1 + _cosine(coordinates, reference)) / 2


class EmotionReward:
    """Emotion similarity to the references, in [0, 1]; None for a sample without references.

    Args:
      against: "references", or the "label": similarity to the anchor of the clip's emotion, for which a clip needs no
        caption; None for a sample without a label, or with one that has no anchor.
      over: "best" takes the reference that is most similar, "mean" averages over them: a caption that is close to one
        reference by its wording alone earns less.
      shuffled: a reward of the same shape that means nothing, to hold the real one against: the emotions of a clip's
        references change places, in an order of the clip's own.

    Raises:
      AnchorsError: the anchors were built with another encoder.
      ValueError: an unknown form, or another `over`.
    """

    name = "emotion"

    def __init__(
        self,
        encoder: SentenceEncoder,
        anchors: Anchors,
        form: str = "centred",
        over: str = "best",
        shuffled: bool = False,
        against: str = "references",
    ):
        check_encoder(anchors, encoder)
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}")
        if against not in AGAINST:
            raise ValueError(f"against must be one of {AGAINST}, got {against!r}")
        self._encoder, self._anchors, self._form, self._over = encoder, anchors, form, reduction(over)
        self._shuffled, self._by_label = shuffled, against == "label"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        if self._by_label:
            texts = self._encoder.encode([normalise_text(sample.completion) for sample in samples])
            labels, vectors = self._anchors.labels, self._anchors.vectors
            return [
                self._similarity(text, vectors[labels.index(sample.label)][None], sample.utterance_id)
                if sample.label in labels
                else None
                for sample, text in zip(samples, texts)
            ]
        return [
            None if references is None else self._similarity(completion, references, sample.utterance_id)
            for sample, (completion, references) in zip(samples, _embed(self._encoder, samples))
        ]

    def _similarity(self, completion: np.ndarray, references: np.ndarray, clip: str) -> float:
        coordinates = emotion_coordinates(np.vstack([completion, references]), self._anchors, self._form)
        own, theirs = coordinates[0], coordinates[1:]
        if self._shuffled:
            theirs = theirs[:, np.random.default_rng(zlib.crc32(clip.encode())).permutation(len(own))]
        return float(self._over(emotion_similarity(own, theirs)))


def reduction(over: str) -> Callable[[np.ndarray], np.ndarray]:
    """What becomes of one value a reference: its maximum ("best") or its "mean".

    Raises:
      ValueError: another name.
    """
    if over not in _REDUCTIONS:
        raise ValueError(f"over must be one of {', '.join(_REDUCTIONS)}, got {over!r}")
    return _REDUCTIONS[over]


class SemanticReward:
    """Cosine of the embeddings to the references, in [-1, 1]; None for a sample without references.

    Args:
      over: the "best" reference or their "mean".
    """

    name = "semantic"

    def __init__(self, encoder: SentenceEncoder, over: str = "best"):
        self._encoder, self._over = encoder, reduction(over)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            None if references is None else float(self._over(references @ completion))
            for completion, references in _embed(self._encoder, samples)
        ]


class DistinctivenessReward:
    """How much closer a completion is to its own references than to those of the training clips on average.

    Embeddings are centred by the anchors' text mean; a clip's references count by their mean. The value is the cosine
    to the own mean less the average cosine to the training clips' means, in [-2, 2]. It is None for a sample without
    references.

    Args:
      train_references: the references of each training clip.
      train_labels: the emotion of each: the average is then over the training clips of the sample's emotion (over all,
        where there are none), and what could be said of any clip of an emotion earns nothing.

    Raises:
      AnchorsError: the anchors were built with another encoder.
    """

    name = "distinctiveness"

    def __init__(
        self,
        encoder: SentenceEncoder,
        anchors: Anchors,
        train_references: Sequence[Sequence[str]],
        train_labels: Sequence[str | None] = (),
    ):
        check_encoder(anchors, encoder)
        self._encoder, self._centre = encoder, anchors.text_mean.astype(np.float64)
        counts = [len(references) for references in train_references]
        texts = [normalise_text(text) for references in train_references for text in references]
        parts = np.split(encoder.encode(texts).astype(np.float64), np.cumsum(counts)[:-1])
        means = [self._mean(part) for part in parts if len(part)]
        # An average of cosines with unit vectors is one product with the average of the vectors.
        self._average = np.mean(means, axis=0)
        labels = [label for label, count in zip(train_labels, counts) if count]
        self._averages = {
            label: np.mean([mean for mean, other in zip(means, labels) if other == label], axis=0)
            for label in set(labels) - {None}
        }

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            None if references is None else self._score(_unit(completion - self._centre), references, sample.label)
            for sample, (completion, references) in zip(samples, _embed(self._encoder, samples))
        ]

    def _score(self, completion: np.ndarray, references: np.ndarray, label: str | None) -> float:
        return float(completion @ self._mean(references) - completion @ self._averages.get(label, self._average))

    def _mean(self, references: np.ndarray) -> np.ndarray:
        return _unit(references.mean(axis=0) - self._centre)


def _embed(encoder: SentenceEncoder, samples: Sequence[Sample]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Returns per sample the embedding [D] of its completion and those [R, D] of its references (None: it has none)."""
    texts = [text for sample in samples for text in (sample.completion, *sample.references)]
    embeddings = encoder.encode([normalise_text(text) for text in texts]).astype(np.float64)
    starts = np.cumsum([1 + len(sample.references) for sample in samples])[:-1]
    return [(part[0], part[1:] if len(part) > 1 else None) for part in np.split(embeddings, starts)]


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (_unit(a) * _unit(b)).sum(axis=-1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
