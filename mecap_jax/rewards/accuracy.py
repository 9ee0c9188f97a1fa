"""Is the answer right? Exactly, by degrees, and for answers that are sets of words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.wheels import EmotionWheels

Normalise = Callable[[str], str | None]
Similarity = Callable[[str, str], float]

_BETWEEN_WORDS = re.compile(r"[,;/|、，；\n\[\]'\"]+")

# Looking back keeps it linear: from within a run of marks that stands inside a text no other match is tried.
_MARKUP = re.compile(r"^[\W_]+|(?<![\W_])[\W_]+$")


def same(first: str, second: str) -> float:
    """The similarity of two classes that knows right and wrong only."""
    return float(first == second)


def accuracy(answer: str | None, gold: str | None, normalise: Normalise, similarity: Similarity = same) -> float | None:
    """Returns how similar the answer's class is to the gold class: 1 for the same one; None without a gold class.

    With a similarity of emotions near misses count, as in EMO-RL (arXiv 2509.15654), whose own similarities are not
    public.

    Args:
      answer: what the answer block holds; None for a malformed answer, which is wrong.
      gold: the clip's label.
      normalise: the class of the label set that a text names, None where it names none or several.
      similarity: of two classes.
    """
    truth = None if gold is None else normalise(gold)
    if truth is None:
        return None
    guess = None if answer is None else normalise(answer)
    return 0.0 if guess is None else similarity(guess, truth)


class AccuracyReward:
    """Whether the answer is right, or how similar it is to what is; None for a clip without a label of the set.

    Args:
      field: the name of the field that holds the answer.
      normalise: the class that a text names.
      similarity: of two classes.
    """

    name = "accuracy"

    def __init__(self, field: str, normalise: Normalise, similarity: Similarity = same):
        self._field, self._normalise, self._similarity = field, normalise, similarity

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            accuracy(sample.fields.get(self._field), sample.label, self._normalise, self._similarity)
            for sample in samples
        ]


def set_f1(answer: str | None, gold: Sequence[str], wheels: EmotionWheels) -> float | None:
    """Returns the F1 of a set of emotion words, mean over the emotion wheels (AffectGPT-R1, arXiv 2508.01318).

    Beyond the metric, a word of the answer that no wheel knows counts as a wrong one: otherwise words could be tried
    for nothing. Wheels that know no gold word are left out; where none knows any, the value is None.

    Args:
      answer: words between commas or line ends; None for a malformed answer, which is wrong.
      gold: the clip's words.
      wheels: classes of words.
    """
    scores = []
    words = [] if answer is None else split_words(answer)
    for guesses, truth in zip(wheels.classes_of(words, keep_unknown=True), wheels.classes_of(gold)):
        if truth:
            common = len(guesses & truth)
            scores.append(2 * common / (len(guesses) + len(truth)))
    return sum(scores) / len(scores) if scores else None


class SetF1Reward:
    """`set_f1` of one field of the answer; a clip's words are its label, one or several between commas."""

    name = "set_f1"

    def __init__(self, field: str, wheels: EmotionWheels):
        self._field, self._wheels = field, wheels

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            set_f1(sample.fields.get(self._field), split_words(sample.label or ""), self._wheels) for sample in samples
        ]


def split_words(answer: str) -> list[str]:
    """Returns the words (or phrases) of a list such as "happy, proud", "[happy; proud]" or "高兴、自豪"."""
    return [word for part in _BETWEEN_WORDS.split(answer) if (word := fold_name(part))]


def fold_name(text: str) -> str:
    """A name without what does not matter: case, forms of characters, marks around it ("**Happy!**")."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return " ".join(_MARKUP.sub("", plain).split())
