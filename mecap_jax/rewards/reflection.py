"""EMO-R3's reflective reward (arXiv 2602.23802): the policy re-reads what it wrote, and is paid for what holds.

Of an answer in steps, two questions are asked of the current policy:
    with the media, whether the first step describes them (consistency);
    of the text alone, which emotion the first two steps express (coherence).
The reward is the mean of both verdicts, each 0 or 1. This module asks and judges; who answers is not its business.

The published code gives half a point to a reply that it cannot read, and to an answer whose steps it cannot find, which
makes a malformed answer worth more than a refuted one. Here both earn 0. It also adds the verdicts up where the paper
takes their mean; that is a weight of twice the size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from mecap_jax.rewards.base import Question, Sample

TARGETS = ("gold", "own")
STEPS = ("step1", "step2")

REPLIES = {"en": ("yes", "no"), "zh": ("是", "否")}  # to the first question

_CONSISTENCY = {
    "en": "Here is a description:\n{text}\nIs it a true description of what is given? Reply with yes or no.",
    "zh": "下面是一段描述：\n{text}\n它是否如实描述了所给的内容？请只回答“是”或“否”。",
}
_COHERENCE = {
    "en": "{text}\nWhich emotion fits this text best? Reply with one word out of: {labels}.",
    "zh": "{text}\n哪种情感最符合这段文字？请从以下词语中选一个回答：{labels}。",
}
_COMMA = {"en": ", ", "zh": "、"}
# The whole word: "是否" (whether), "对不起" (sorry) and "yesterday" only begin like one.
_YES = re.compile(r"[\W_]*(?:yes|是的?|对的?)(?!\w)", re.IGNORECASE)


def consistency_question(fields: Mapping[str, str], language: str = "en") -> str | None:
    """Returns what is asked beside the media; None for a malformed answer, of which nothing is asked."""
    return _CONSISTENCY[language].format(text=fields["step1"]) if fields else None


def coherence_question(fields: Mapping[str, str], labels: Sequence[str], language: str = "en") -> str | None:
    """Returns what is asked of the text alone; None for a malformed answer.

    Args:
      labels: the emotions to choose from, as the corpus calls them.
    """
    if not fields:
        return None
    text = "\n".join(fields[step] for step in STEPS)
    return _COHERENCE[language].format(text=text, labels=_COMMA[language].join(labels))


def consistency(reply: str | None) -> float:
    """Returns 1 for a reply whose first word is yes, else 0; also for None, where nothing could be asked."""
    return float(reply is not None and _YES.match(reply) is not None)


def coherence(reply: str | None, target: str | None, normalise: Callable[[str], str | None]) -> float | None:
    """Returns 1 for a reply that names the target emotion, else 0; None without a target to judge by.

    Args:
      reply: the policy's words; None where nothing could be asked.
      target: the class that it should name: the clip's label, or the model's own answer (the paper shows both).
      normalise: the class of the label set that a text names.
    """
    if target is None:
        return None
    return float(reply is not None and normalise(reply) == target)


def reflective_reward(
    fields: Mapping[str, str],
    consistent: str | None,
    coherent: str | None,
    gold: str | None,
    own: str | None,
    normalise: Callable[[str], str | None],
    target: str = "gold",
) -> float | None:
    """Returns (R_cons + R_coh) / 2 in [0, 1]; 0 for a malformed answer; None without a gold label of the set.

    Args:
      fields: the parts of the answer; empty for a malformed one.
      consistent, coherent: the replies to the two questions.
      gold: the clip's label.
      own: the class that the answer names; with target "own", an answer that names none is coherent with nothing.
      normalise: as in `coherence`.
      target: whether "gold" or the model's "own" answer is what the text should express.

    Raises:
      ValueError: another target.
    """
    if target not in TARGETS:
        raise ValueError(f"the target must be one of {TARGETS}, got {target!r}")
    truth = None if gold is None else normalise(gold)
    if truth is None:
        return None
    if not fields:
        return 0.0
    told = coherence(coherent, truth if target == "gold" else own, normalise) or 0.0
    return (consistency(consistent) + told) / 2


class ReflectionReward:
    """`reflective_reward` of an answer in steps; the current policy is asked both questions.

    Args:
      answer: the name of the field that holds the answer.
      labels: the emotions to choose from, as the corpus calls them.
      normalise: the class that a text names.
      language: of the questions, "en" or "zh".
      target: as in `reflective_reward`.
      reply_tokens: longest reply.

    Raises:
      ValueError: another target, or no room for a reply.
    """

    name = "reflection"
    needs_policy = True
    asks = (True, False)

    def __init__(
        self,
        answer: str,
        labels: Sequence[str],
        normalise: Callable[[str], str | None],
        language: str = "en",
        target: str = "gold",
        reply_tokens: int = 8,
    ):
        if reply_tokens < 1:
            raise ValueError(f"reply_tokens must be at least 1, got {reply_tokens}")
        reflective_reward({}, None, None, None, None, normalise, target)  # refuses a target that there is not
        self._answer, self._labels, self._normalise = answer, tuple(labels), normalise
        self._language, self._target, self.reply_tokens = language, target, reply_tokens

    def questions(self, sample: Sample) -> tuple[Question | None, ...]:
        """Returns what is asked: nothing about a malformed answer, whose reward is known."""
        texts = (
            consistency_question(sample.fields, self._language),
            coherence_question(sample.fields, self._labels, self._language),
        )
        return tuple(None if text is None else Question(text) for text in texts)

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._value(sample) if self.name in sample.replies else None for sample in samples]

    def _value(self, sample: Sample) -> float | None:
        own = self._normalise(sample.fields.get(self._answer, ""))
        replies = sample.replies[self.name]
        return reflective_reward(sample.fields, *replies, sample.label, own, self._normalise, self._target)
