"""What a data set asks of a task, and what became of it for one row of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mecap_jax.data.manifest import ClipRecord


class Questions(Protocol):
    """The part of a task that data need: which clips it can use, what it asks, what it teaches.

    It goes to the reader processes, so it can be pickled.
    """

    def usable(self, record: ClipRecord) -> str | None:
        """Why the task cannot use a clip, None if it can."""

    def request(self, record: ClipRecord | None) -> str:
        """What is asked of the model; None: of a clip of which nothing is known."""

    def targets(self, record: ClipRecord) -> Sequence[str]:
        """The answers that a clip teaches; none where it teaches nothing."""

    def exercise(self, record: ClipRecord, other: ClipRecord, rng: np.random.Generator) -> Exercise | None:
        """Something else that a clip teaches beside another one, drawn at random; None where there is nothing."""


@dataclasses.dataclass(frozen=True)
class Exercise:
    """A question with one answer, other than what the task asks: what its rewards will ask the policy, say.

    Attributes:
      prompt: the question.
      answer: what is to be said.
      media: whether the clip's media come with it.
    """

    prompt: str
    answer: str
    media: bool


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the model was asked about a clip, and all that the answer can be judged by.

    Attributes:
      record: the clip.
      prompt: the text of the prompt.
      transcript: what is said, "" where the prompt does not tell.
      targets: the answers that the clip teaches.
    """

    record: ClipRecord
    prompt: str
    transcript: str
    targets: tuple[str, ...]
