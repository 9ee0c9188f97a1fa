"""What a task is: what is asked of the model, what it learns from, and how its answers are judged.

Captioning, recognition with a rationale and structured reasoning differ in this and in nothing else. Loop, learner,
rollout, losses, data and models know no task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from mecap_jax.config import Config, RewardConfig
from mecap_jax.data.checks import Checked
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.model_card import About
from mecap_jax.evaluation.stage import StageResult
from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.anchors import Anchors
from mecap_jax.rewards.combine import RewardFunction


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model said of a clip; `finished` is False where it was cut at the longest length."""

    record: ClipRecord
    text: str
    finished: bool


@dataclasses.dataclass(frozen=True)
class Judges:
    """What rewards and metrics may ask.

    Attributes:
      encoder: the sentence encoder.
      anchors: emotion anchors that were built with it.
      train: the clips that the run trains on.
      longest_answer: most tokens of one.
    """

    encoder: SentenceEncoder
    anchors: Anchors
    train: Sequence[ClipRecord]
    longest_answer: int = 0


class Task(Checked, Protocol):
    """One task, made from a run's configuration. It goes to the reader processes, so it can be pickled.

    Attributes:
      asks_meteor: whether `evaluate` has a use for METEOR, which then starts while clips are captioned.
    """

    asks_meteor: bool

    def read(self, text: str) -> Mapping[str, str]:
        """The parts of an answer by name, in the order in which they stand; empty for free or malformed text."""

    def check_rewards(self, config: RewardConfig) -> None:
        """Checks the terms before there are data.

        Raises:
          ConfigError: a term that the task has not, an option that the term has not, a file that cannot be loaded.
        """

    def rewards(self, config: RewardConfig, judges: Judges) -> RewardFunction:
        """What its answers earn.

        Raises:
          ConfigError: a term that cannot be made, or none at all.
        """

    def about(self, config: Config) -> About:
        """What a model card says of a model of this configuration."""

    def can_evaluate(self, record: ClipRecord) -> bool:
        """Whether enough is known of a clip that can be used for an answer to be held against it."""

    def evaluate(self, answers: Sequence[Answer], judges: Judges, meteor: Meteor) -> StageResult:
        """All metrics of one answer a clip, of clips that it can evaluate."""
