"""Does the explanation speak for the right emotion? ERV's explanation reward (arXiv 2510.23506) and its variants.

A classifier of emotions in text, given as a function, reads the rationale sentence by sentence. A sentence speaks for
the emotions whose probability is above .1: for the likeliest one where there is none, for the two likeliest where there
are more. With N sentences, N_nn of them speaking for more than "neutral", and M for the gold emotion y, it is
    R = M / N_nn (0 where N_nn is 0),    and R = M / N where y is neutral.

Against what the published code lets pass: a sentence counts once, however often it is repeated; with `least` above 1 a
lone sentence does not earn everything; a malformed answer earns 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mecap_jax.emotions import canonical_label
from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.anchors import Anchors, check_encoder
from mecap_jax.rewards.base import Sample, normalise_text
from mecap_jax.rewards.emotion import emotion_coordinates
from mecap_jax.rewards.sentences import distinct_sentences

VARIANTS = ("sentences", "sentences_with_neutral", "whole_text", "top_1", "consistency", "chain")
NEUTRAL = "neutral"

_SENTENCE_THRESHOLD, _TEXT_THRESHOLD, _MOST_EMOTIONS = 0.1, 0.5, 2
# The classes of GoEmotions that ERV takes for the emotions of MAFW that GoEmotions lacks.
_ERV_CLASSES = {"nervousness": "anxious", "grief": "helpless", "disapproval": "contemptuous"}


@dataclasses.dataclass(frozen=True)
class Verifier:
    """A classifier of emotions in text.

    Attributes:
      probabilities: float [n, K] of n texts; it is never called without a text.
      labels: what each of the K columns is of, as clips are labelled.
    """

    probabilities: Callable[[Sequence[str]], np.ndarray]
    labels: tuple[str, ...]

    def emotions(self, texts: Sequence[str], threshold: float) -> list[frozenset[str]]:
        """Returns what each text speaks for: at most two emotions above the threshold, at least the likeliest one."""
        if not texts:
            return []
        found = []
        for row in np.asarray(self.probabilities(texts)):
            likeliest = np.argsort(-row, kind="stable")[:_MOST_EMOTIONS]
            kept = [k for k in likeliest if row[k] > threshold] or likeliest[:1]
            found.append(frozenset(self.labels[k] for k in kept))
        return found


def verifier_labels(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels of a classifier's classes: "joy" is "happy"; GoEmotions' "grief" is "helpless", as in ERV."""
    return tuple(_ERV_CLASSES.get(name, canonical_label(name)) for name in classes)


def anchor_verifier(encoder: SentenceEncoder, anchors: Anchors) -> Verifier:
    """Returns a verifier that needs no trained classifier: how near a text is to each emotion anchor, as a softmax.

    Raises:
      AnchorsError: the anchors were built with another encoder.
    """
    check_encoder(anchors, encoder)

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        embeddings = encoder.encode([normalise_text(text) for text in texts])
        return emotion_coordinates(embeddings, anchors, "softmax")

    return Verifier(probabilities, anchors.labels)


def explanation_rewards(
    rationales: Sequence[str | None],
    gold: Sequence[str | None],
    verifier: Verifier,
    variant: str = "sentences",
    answers: Sequence[str | None] | None = None,
    least: int = 1,
) -> list[float | None]:
    """Returns one value in [0, 1] a rationale; None where the gold label is none that the verifier knows.

    All texts of the batch are classified in one call.

    Args:
      rationales: texts; None for a malformed answer, which earns 0.
      gold: the label of each clip.
      verifier: the classifier.
      variant: "sentences": R as above, the paper's;
        "sentences_with_neutral": M / N for every emotion;
        "whole_text": 1 where the text as a whole, at a threshold of .5, speaks for the gold emotion;
        "top_1": 1 where that is its likeliest emotion;
        "consistency": 1 where its likeliest emotion is the model's own answer, right or wrong;
        "chain": 1 where its likeliest emotion and the answer both are the gold emotion.
      answers: the class of each answer, None for none: "consistency" and "chain" want it.
      least: with fewer than this many sentences (that count), they are divided by it all the same.

    Raises:
      ValueError: an unknown variant, lengths that differ, `least` below 1, or answers that are missing.
    """
    if variant not in VARIANTS:
        raise ValueError(f"the variant must be one of {VARIANTS}, got {variant!r}")
    if answers is None:
        if variant in ("consistency", "chain"):
            raise ValueError(f"variant {variant!r} needs the answers")
        answers = [None] * len(rationales)
    if not len(rationales) == len(gold) == len(answers) or least < 1:
        raise ValueError(f"{len(rationales)} rationales, {len(gold)} labels, {len(answers)} answers, least {least}")
    by_sentence = variant.startswith("sentences")
    texts = [_texts(rationale, by_sentence) for rationale in rationales]
    threshold = _SENTENCE_THRESHOLD if by_sentence else _TEXT_THRESHOLD if variant == "whole_text" else 1.0
    emotions = iter(verifier.emotions([text for part in texts for text in part], threshold))
    values: list[float | None] = []
    for part, truth, answer in zip(texts, gold, answers):
        spoken = [next(emotions) for _ in part]
        if truth not in verifier.labels:
            values.append(None)
        elif by_sentence:
            values.append(_sentence_ratio(spoken, truth, variant == "sentences", least))
        else:
            wanted = answer if variant == "consistency" else truth
            agrees = variant != "chain" or answer == truth
            values.append(float(agrees and any(wanted in emotions_of_text for emotions_of_text in spoken)))
    return values


class ExplanationReward:
    """`explanation_rewards` of one field of the answer.

    Args:
      verifier: the classifier.
      field: the name of the field that explains.
      answer: the name of the field that holds the answer.
      normalise: the class that an answer names.
      variant, least: as in `explanation_rewards`.
    """

    name = "explanation"

    def __init__(
        self,
        verifier: Verifier,
        field: str,
        answer: str,
        normalise: Callable[[str], str | None],
        variant: str = "sentences",
        least: int = 1,
    ):
        self._verifier, self._field, self._answer, self._normalise = verifier, field, answer, normalise
        self._variant, self._least = variant, least
        explanation_rewards([], [], verifier, variant, [], least)  # refuses a variant that there is not

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        rationales = [sample.fields.get(self._field) for sample in samples]
        answers = [self._normalise(sample.fields.get(self._answer, "")) for sample in samples]
        gold = [sample.label and self._normalise(sample.label) for sample in samples]
        return explanation_rewards(rationales, gold, self._verifier, self._variant, answers, self._least)


def _texts(rationale: str | None, by_sentence: bool) -> list[str]:
    sentences = distinct_sentences(rationale or "")
    return sentences if by_sentence or not sentences else [rationale.strip()]


def _sentence_ratio(spoken: Sequence[frozenset[str]], truth: str, skip_neutral: bool, least: int) -> float:
    counted = [s for s in spoken if s != {NEUTRAL}] if skip_neutral and truth != NEUTRAL else spoken
    return sum(truth in s for s in counted) / max(len(counted), least)
