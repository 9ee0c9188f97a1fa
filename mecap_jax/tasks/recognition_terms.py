"""The terms that an answer with a rationale or in steps may be rewarded with, by name: `TERMS`.

Each maker takes a `Context` and its own options; what an option may be stands in its docstring. A term that a protocol
has no part for, or an option that is none, is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mecap_jax.config import is_path
from mecap_jax.rewards.accuracy import AccuracyReward, SetF1Reward, same
from mecap_jax.rewards.base import Reward, RewardError
from mecap_jax.rewards.explanation import ExplanationReward, Verifier
from mecap_jax.rewards.guards import FormatReward, LengthReward, OverlongPenalty, RepetitionReward
from mecap_jax.rewards.modality_order import DESCRIPTIONS, ModalityOrderReward
from mecap_jax.rewards.reflection import STEPS, ReflectionReward
from mecap_jax.rewards.wheels import load_wheels
from mecap_jax.tasks.coordinates import coordinates
from mecap_jax.tasks.coordinates import similarity as similarity_of
from mecap_jax.tasks.labels import LabelSet

RATIONALE = "think"  # the block that explains


class Context(NamedTuple):
    """What the terms are made from.

    Attributes:
      answer: the name of the part that holds the answer; `parts`: those of all others.
      labels: which answers there are, in `language`.
      verifier: makes the verifier of a directory, or with "" that of the anchors.
      longest_answer: most tokens of one.
    """

    answer: str
    parts: Sequence[str]
    labels: LabelSet
    language: str
    verifier: Callable[[str], Verifier]
    longest_answer: int


def _format(context: Context) -> Reward:
    return FormatReward()


def _accuracy(context: Context, similarity: str = "") -> Reward:
    """`similarity`: a table of coordinates by which near misses count; "" knows right and wrong only."""
    alike = similarity_of(coordinates(similarity, context.labels)) if similarity else same
    return AccuracyReward(context.answer, context.labels.normalise, alike)


def _explanation(context: Context, variant: str = "sentences", least: int = 1, verifier: str = "") -> Reward:
    """`variant`, `least`: see `rewards.explanation`; `verifier`: a text classifier's directory, or "" for anchors."""
    _need(context, RATIONALE)
    if context.labels.is_open:
        raise ValueError("explanations are judged for one of a set of classes, and an open vocabulary has none")
    if verifier and not is_path(verifier):
        raise ValueError(f"the verifier {verifier!r} is no path; write './{verifier}' for a directory of this name")
    made, normalise = context.verifier(verifier), context.labels.normalise
    return ExplanationReward(made, RATIONALE, context.answer, normalise, variant, least)


def _length(context: Context, least: int = 1, most: int = 100) -> Reward:
    """`least`, `most`: words (Chinese characters) of the explanation."""
    _need(context, RATIONALE)
    return LengthReward(RATIONALE, least, most)


def _modality_order(context: Context) -> Reward:
    _need(context, *DESCRIPTIONS)
    return ModalityOrderReward()


def _set_f1(context: Context, wheels: str = "", level: str = "level1") -> Reward:
    """`wheels`: the user's file of emotion wheels, see `rewards.wheels`; `level`: "level1" or "level2" of them."""
    if not is_path(wheels):
        raise ValueError(f"wheels must be the path of a file, such as './wheels.json'; got {wheels!r}")
    try:
        return SetF1Reward(context.answer, load_wheels(wheels, level))
    except RewardError as error:
        raise ValueError(str(error)) from error


def _overlong(context: Context, buffer: int = 16) -> Reward:
    """`buffer`: tokens below the longest length within which the penalty grows."""
    return OverlongPenalty(context.longest_answer, buffer)


def _repetition(context: Context) -> Reward:
    _need(context, RATIONALE)
    return RepetitionReward(RATIONALE)


def _reflection(context: Context, target: str = "gold", reply_tokens: int = 8) -> Reward:
    """`target`: see `rewards.reflection`; `reply_tokens`: longest reply."""
    _need(context, *STEPS)
    if context.labels.is_open:
        raise ValueError("the policy is asked for one of a set of classes, and an open vocabulary has none")
    labels, language = context.labels, context.language
    return ReflectionReward(context.answer, labels.names[language], labels.normalise, language, target, reply_tokens)


def _need(context: Context, *parts: str) -> None:
    if missing := [name for name in parts if name not in context.parts]:
        raise ValueError(f"answers of this protocol have no part {missing[0]!r}")


TERMS: Mapping[str, Callable[..., Reward]] = {
    "format": _format,
    "accuracy": _accuracy,
    "explanation": _explanation,
    "length": _length,
    "modality_order": _modality_order,
    "overlong": _overlong,
    "repetition": _repetition,
    "reflection": _reflection,
    "set_f1": _set_f1,
}
