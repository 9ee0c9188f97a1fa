r"""Tag protocols: the form in which a model is asked to answer, and the one strict parser that reads it.

A protocol is declared, never parsed by hand: blocks in order, each between an open and a close mark. An answer follows
it when every block stands there once, in order, holds something, and nothing but white space stands outside. What the
published format checks of R1-Omni and EMO-R3 let pass (blocks twice, blocks within blocks, text in between) is
refused, because a policy that is paid for its format finds it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mecap_jax.rewards.accuracy import split_words

LONGEST_ANSWER = 200  # characters; what is longer is no answer
MOST_WORDS, LONGEST_WORD = 32, 64  # of an answer in words of an open vocabulary; characters of one of them, or a phrase
_LONGEST_LIST = MOST_WORDS * (LONGEST_WORD + 2)  # characters, commas and blanks included


@dataclasses.dataclass(frozen=True)
class Block:
    """One part of an answer.

    Attributes:
      name: what its field is called.
      open, close: the marks around it; both empty for the only block of a protocol without marks.
      asks: what the model is asked to write there, by language.
      is_answer: it holds what is graded: one line of at most `LONGEST_ANSWER` characters, or, of an open vocabulary, of
        at most `MOST_WORDS` words. Other blocks hold any text.
    """

    name: str
    open: str
    close: str
    asks: Mapping[str, str]
    is_answer: bool = False


@dataclasses.dataclass(frozen=True)
class Parsed:
    """An answer as its protocol reads it.

    Attributes:
      fields: text by block, stripped, in the order in which the blocks stood; empty where the answer is malformed.
      reason: why it is malformed, in one of few wordings that can be counted; None where it is not.
    """

    fields: Mapping[str, str]
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Blocks in order.

    Attributes:
      blocks: the blocks.
      swappable: how many of the first blocks may change places with each other. The order of `Parsed.fields` says how
        they stood.
    """

    blocks: tuple[Block, ...]
    swappable: int = 0

    @property
    def answer(self) -> str | None:
        """Name of the block that is graded; None where there is none."""
        return next((block.name for block in self.blocks if block.is_answer), None)

    def parse(self, text: str, several: bool = False) -> Parsed:
        """Returns the fields of `text`, or why it does not follow the protocol. Linear time, whatever the text is.

        Args:
          several: as in `instruction`.
        """
        waiting, position, fields = list(self.blocks), 0, {}
        while waiting:
            position = _NO_SPACE.search(text, position).start()
            choice = waiting[: max(1, self.swappable - len(fields))]
            block = next((block for block in choice if text.startswith(block.open, position)), None)
            if block is None:
                found = choice[0].open in text[position:]
                return Parsed({}, f"text before {choice[0].open}" if found else f"no {choice[0].open}")
            start = position + len(block.open)
            end = text.find(block.close, start) if block.close else len(text)
            if end < 0:
                return Parsed({}, f"no {block.close} behind {block.open}")
            field = text[start:end].strip()
            problem = self._problem(block, field, several)
            if problem:
                return Parsed({}, problem)
            fields[block.name], position = field, end + len(block.close)
            waiting.remove(block)
        if text[position:].strip():
            return Parsed({}, f"text behind {self.blocks[-1].close}")
        return Parsed(MappingProxyType(fields))

    def render(self, fields: Mapping[str, str], several: bool = False) -> str:
        """Returns the answer with these fields: `parse` gives them back, stripped. Swappable blocks keep their order.

        Raises:
          ValueError: a field is missing, is not of the protocol, or cannot stand in its block.
        """
        swappable = [block.name for block in self.blocks[: self.swappable]]
        names = [name for name in fields if name in swappable]
        names += [block.name for block in self.blocks if block.name not in names]
        if set(names) != set(fields):
            raise ValueError(f"an answer of this protocol has the fields {names}, got {list(fields)}")
        blocks = {block.name: block for block in self.blocks}
        text = "\n".join(f"{blocks[name].open}{fields[name].strip()}{blocks[name].close}" for name in names)
        reason = self.parse(text, several).reason
        if reason:
            raise ValueError(f"no answer can hold these fields: {reason}: {text[:200]!r}")
        return text

    def instruction(self, language: str = "en", answers: Sequence[str] = (), several: bool = False) -> str:
        """Returns what is asked of the model, for the end of a prompt; empty for a protocol without marks.

        Args:
          language: "en" or "zh".
          answers: the answers that there are, where it is a closed set.
          several: an answer is one word or several, of an open vocabulary.
        """
        if not self.blocks[0].open:
            return ""
        intro, choice, comma = _WORDING[language]
        asks = [_SEVERAL[language] if several and block.is_answer else block.asks[language] for block in self.blocks]
        lines = [intro, *(f"{block.open}{ask}{block.close}" for block, ask in zip(self.blocks, asks))]
        return "\n".join([*lines, choice.format(comma.join(answers))] if answers else lines)

    def _problem(self, block: Block, field: str, several: bool) -> str | None:
        if not _WORD.search(field):
            return f"nothing in {block.open or block.name}"
        for other in self.blocks:
            # A brace closes \boxed{}; in text it is a character like any other.
            marks = (other.open, other.close) if len(other.close) > 1 else (other.open,)
            for mark in filter(None, marks):
                if mark in field:
                    return f"{mark} within {block.open}"
        if not block.is_answer:
            return None
        if "{" in field or len(field.splitlines()) > 1 or len(field) > (_LONGEST_LIST if several else LONGEST_ANSWER):
            return f"no short answer in {block.open}"
        words = split_words(field) if several else ()
        if len(words) > MOST_WORDS or any(len(word) > LONGEST_WORD for word in words):
            return f"too many words, or too long ones, in {block.open}"
        return None


_NO_SPACE = re.compile(r"\S|\Z")
_WORD = re.compile(r"\w")  # dots and characters that nobody sees explain nothing
_WORDING = {
    "en": ("Write exactly these parts, each once, in this order, and nothing else:", "The answer is one of: {}.", ", "),
    "zh": ("请严格按以下顺序输出各部分，每部分只出现一次，不要输出其他内容：", "答案必须是下列之一：{}。", "、"),
}


def _tag(name: str, en: str, zh: str, is_answer: bool = False) -> Block:
    return Block(name, f"<{name}>", f"</{name}>", {"en": en, "zh": zh}, is_answer)


_SEVERAL = {"en": "all emotion words that fit, between commas", "zh": "所有符合的情感词，用逗号隔开"}
_THINK = _tag(
    "think",
    "how voice, words and face lead to the emotion, in full sentences",
    "用完整的句子说明如何由声音、话语和表情得出情感",
)
_ANSWER = _tag("answer", "the emotion, in one word", "情感，一个词", is_answer=True)
_BOXED = Block("boxed", r"\boxed{", "}", _ANSWER.asks, is_answer=True)

PROTOCOLS: Mapping[str, Protocol] = {
    # The label alone, as R1-Omni's supervised baseline learns it.
    "answer": Protocol((_ANSWER,)),
    # R1-Omni (arXiv 2503.05379) and ERV (arXiv 2510.23506).
    "think_answer": Protocol((_THINK, _ANSWER)),
    # What EMO-R3 compares with: plain GRPO, and the label alone, which its cold start learns, too.
    "think_boxed": Protocol((_THINK, _BOXED)),
    "boxed": Protocol((_BOXED,)),
    # EMO-R3 (arXiv 2602.23802): trigger, human reflection, conclusion.
    "steps_boxed": Protocol(
        (
            _tag("step1", "what is there that can stir an emotion: act, face, place", "能引发情感的动作、表情或环境"),
            _tag("step2", "what a person would feel about it", "人对此会有怎样的感受"),
            _tag("step3", "whether that is positive or negative, and how aroused", "感受是积极还是消极，唤醒度高低"),
            _BOXED,
        )
    ),
    # HumanOmniV2 (arXiv 2506.21277).
    "context_think_answer": Protocol(
        (_tag("context", "what happens in the clip, seen and heard", "片段中看到和听到的内容"), _THINK, _ANSWER)
    ),
    # MIGR (arXiv 2512.02699): the modality that says more about the emotion comes first.
    "modalities_think_answer": Protocol(
        (
            _tag("vis_desc", "what is seen of the emotion", "看到的情感线索"),
            _tag("aud_desc", "what is heard of the emotion", "听到的情感线索"),
            _THINK,
            _ANSWER,
        ),
        swappable=2,
    ),
    "caption": Protocol((Block("caption", "", "", {}),)),
}
