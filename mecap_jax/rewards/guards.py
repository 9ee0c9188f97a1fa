"""What an answer is like, whatever it says: well formed, of a proper length, without repeating itself."""

from __future__ import annotations

from collections.abc import Sequence

from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.sentences import distinct_phrase_share, distinct_sentence_share, length_reward


class FormatReward:
    """1 for an answer that follows its protocol, 0 for any other."""

    name = "format"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(bool(sample.fields)) for sample in samples]


class LengthReward:
    """`length_reward` of one field of the answer; 0 for a malformed answer.

    Args:
      field: its name.
      least, most: words (Chinese characters).
    """

    name = "length"

    def __init__(self, field: str, least: int, most: int):
        length_reward("", least, most)  # refuses bounds that are none
        self._field, self._least, self._most = field, least, most

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [length_reward(sample.fields.get(self._field, ""), self._least, self._most) for sample in samples]


class OverlongPenalty:
    """0 down to -1 for a completion that comes near the longest length, in tokens (DAPO, arXiv 2503.14476, eq. 13).

    Args:
      longest: longest completion.
      buffer: within so many tokens of it the penalty grows linearly; one that is cut gets all of it.

    Raises:
      ValueError: a buffer outside [1, longest].
    """

    name = "overlong"

    def __init__(self, longest: int, buffer: int):
        if not 1 <= buffer <= longest:
            raise ValueError(f"buffer must be in [1, {longest}], the longest completion; got {buffer}")
        self._longest, self._buffer = longest, buffer

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._value(sample) for sample in samples]

    def _value(self, sample: Sample) -> float:
        if not sample.finished:
            return -1.0
        return min(0.0, (self._longest - self._buffer - sample.tokens) / self._buffer)


class RepetitionReward:
    """Share of different sentences times share of different phrases of one field; 0 for a malformed answer."""

    name = "repetition"

    def __init__(self, field: str):
        self._field = field

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        texts = [sample.fields.get(self._field, "") for sample in samples]
        return [distinct_sentence_share(text) * distinct_phrase_share(text) for text in texts]
