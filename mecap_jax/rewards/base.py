"""What a reward sees and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.questions import Asked


class RewardError(RuntimeError):
    """A reward term that goes on failing; the message names the term and its reason."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What a reward asks the current policy about a completion; `PolicyReward.asks` says whether with the media."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion and what it is judged by; nothing in it can be changed, all terms share it.

    Attributes:
      completion: the sampled text.
      finished: whether it ended by itself; False where it was cut at the longest length.
      prompt: the text of the prompt.
      utterance_id: id of the clip.
      references: the answers that the clip teaches: its captions of the learnt kind, say.
      label: the clip's emotion, where there is one.
      group: index of the prompt in the batch; the completions of one prompt share it.
      fields: the parts of an answer by name, in the order in which they stood; empty where it is malformed, or free
        text.
      record: all that the index knows of the clip: labels by modality, captions of all kinds, rationale, attributes.
      tokens: how long the completion is, its end included.
      replies: what the policy said to a term's questions (see `PolicyReward`), by the term's name.
    """

    completion: str
    finished: bool
    prompt: str
    utterance_id: str
    references: tuple[str, ...]
    label: str | None
    group: int
    fields: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    record: ClipRecord | None = None
    tokens: int = 0
    replies: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(
        cls, asked: Asked, text: str, finished: bool, group: int, fields: Mapping[str, str], tokens: int = 0
    ) -> Sample:
        """A completion of what was asked."""
        record = frozen(asked.record)
        return cls(
            text,
            finished,
            asked.prompt,
            record.id,
            asked.targets,
            record.label,
            group,
            MappingProxyType(dict(fields)),
            record,
            tokens,
        )


class Reward(Protocol):
    """One term of the reward: called with a batch, returns one value a sample, None where it has nothing to say.

    Several batches may be under way at once, each in a thread of its own.
    """

    name: str

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]: ...


class PolicyReward(Reward, Protocol):
    """A term that asks the current policy before it judges.

    It is called with samples whose `replies` hold an answer to each of its questions, in their order. Where there is no
    policy to ask (in validation) they hold none, and the term has nothing to say.

    Attributes:
      asks: for each question, whether it comes with the clip's media; as many questions for every sample.
      reply_tokens: longest reply.
    """

    needs_policy: bool
    asks: tuple[bool, ...]
    reply_tokens: int

    def questions(self, sample: Sample) -> Sequence[Question | None]:
        """The questions about a sample; None for one that is not worth asking."""


def checked_questions(term: PolicyReward, sample: Sample) -> list[Question | None]:
    """The questions of a term about a sample.

    Raises:
      TypeError, ValueError: they are not as many as it announced, or something else; and whatever the term raises.
    """
    questions = list(term.questions(sample))
    if len(questions) != len(term.asks):
        raise ValueError(f"{len(questions)} questions about a sample, but 'asks' is of {len(term.asks)}")
    for question in questions:
        if not (question is None or (isinstance(question, Question) and isinstance(question.text, str))):
            raise TypeError(f"{question!r:.100} is no Question")
    return questions


def described(error: Exception) -> str:
    """What a term raised, in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def frozen(record: ClipRecord) -> ClipRecord:
    """The same record, whose mappings cannot be changed."""
    mappings = {
        field.name: MappingProxyType(dict(value))
        for field in dataclasses.fields(record)
        if isinstance(value := getattr(record, field.name), Mapping)
    }
    return dataclasses.replace(record, **mappings)


def normalise_text(text: str) -> str:
    """Folds case and collapses whitespace, so that rewards depend on neither."""
    return " ".join(text.casefold().split())
