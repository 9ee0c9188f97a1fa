"""In which language captions are written, told by their script, and whether a text says anything at all."""

from __future__ import annotations

import re
from collections.abc import Iterable

HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(r"\w+(?:['’-]\w+)*")
# A Han character is a token; what is not Han stays whole: numbers, Latin words.
CHARACTER = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
_IS_HAN = re.compile(f"[{HAN}]")


def caption_language(texts: Iterable[str]) -> str:
    """The language of captions: "zh" where most of their tokens are Chinese characters, else "en"; "" without any."""
    tokens = [token for text in texts for token in CHARACTER.findall(text)]
    if not tokens:
        return ""
    return "zh" if 2 * sum(bool(_IS_HAN.match(token)) for token in tokens) > len(tokens) else "en"


def has_word(text: str) -> bool:
    """Whether a text holds a word; "😢" and "..." do not."""
    return bool(WORD.search(text))
