"""What a reward sees and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol


class RewardError(RuntimeError):
    """A reward term that goes on failing; the message names the term and its reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion and what it is judged by; nothing in it can be changed, all terms share it.

    Attributes:
      completion: the sampled text.
      finished: whether it ended by itself; False where it was cut at the longest length.
      prompt: the text of the prompt.
      utterance_id: id of the clip.
      references: the clip's captions of the learnt kind.
      label: the clip's emotion, where there is one.
      group: index of the prompt in the batch; the completions of one prompt share it.
      fields: the parts of an answer by name, in the order in which they stood; empty where it is malformed, or free
        text.
    """

    completion: str
    finished: bool
    prompt: str
    utterance_id: str
    references: tuple[str, ...]
    label: str | None
    group: int
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Reward(Protocol):
    """One term of the reward: called with a batch, returns one value a sample, None where it has nothing to say.

    Several batches may be under way at once, each in a thread of its own.
    """

    name: str

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]: ...


def normalise_text(text: str) -> str:
    """Folds case and collapses whitespace, so that rewards depend on neither."""
    return " ".join(text.casefold().split())
