"""Degenerate text, which earns nothing: empty, repeating itself, or without an end.

A policy that is paid for emotion and similarity finds such texts, because no sentence encoder minds "very very sad" or
a sentence said twice.
"""

from __future__ import annotations

import re

from mecap_jax.rewards.lexical import tokenize

# Three words in a row, or six Chinese characters (about three words), may stand in a text once.
_PHRASE_WORDS = 3
_PHRASE_CHARACTERS = 6
# A Chinese character may be doubled, that is grammar ("慢慢", "轻轻"); three in a row are not, nor a doubled word.
_CHARACTER_RUN = 3

_SENTENCE_END = re.compile(r"[.!?;。！？；]+")
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_CONJUNCTIONS = frozenset({"and", "or", "but", "yet", "then"})
_CHINESE_CONJUNCTIONS = frozenset("和又且与而")
# "again and again", "louder and louder" and "一次又一次" are idioms; "forceful and forceful" is not.
_IDIOMS = frozenset({"again", "over", "on", "round", "around", "through", "more", "less", "worse"})
_NO_COMPARATIVES = frozenset(
    "anger bitter clever eager flutter inner laughter other outer proper quaver quiver sheer sinister sober somber "
    "stammer stutter tender utter whimper whisper".split()
)


def is_degenerate(text: str, finished: bool) -> str | None:
    """Returns why `text` earns nothing, or None for proper text.

    The reasons, in this order:
      "empty": it has no word.
      "endless": it was cut at the longest length instead of ending by itself.
      "repeated word": a word (or two of them) directly repeats, also over a conjunction ("very very", "sad and sad").
      "repeated sentence": two of its sentences have the same words.
      "repeated phrase": three words in a row (six Chinese characters) occur twice.
    """
    tokens = tokenize(text)
    if not tokens:
        return "empty"
    if not finished:
        return "endless"
    chinese = _CHINESE.search(text) is not None
    if _doubles_chinese(tokens) if chinese else _doubles_english(tokens):
        return "repeated word"
    sentences = [tuple(tokenize(part)) for part in _SENTENCE_END.split(text)]
    if _has_duplicates([sentence for sentence in sentences if sentence]):
        return "repeated sentence"
    n = _PHRASE_CHARACTERS if chinese else _PHRASE_WORDS
    if _has_duplicates([tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]):
        return "repeated phrase"
    return None


def _doubles_english(tokens: list[str]) -> bool:
    coordinated = any(
        first == second and conjunction in _CONJUNCTIONS and not _may_double(first)
        for first, conjunction, second in zip(tokens, tokens[1:], tokens[2:])
    )
    return coordinated or _doubles(tokens, 1) or _doubles(tokens, 2)


def _may_double(word: str) -> bool:
    return word in _IDIOMS or (word.endswith("er") and word not in _NO_COMPARATIVES)


def _doubles_chinese(tokens: list[str]) -> bool:
    runs = any(len(set(run)) == 1 for run in zip(*(tokens[i:] for i in range(_CHARACTER_RUN))))
    coordinated = any(
        tokens[i - 2 : i] == tokens[i + 1 : i + 3] and tokens[i - 2] != "一"
        for i in range(2, len(tokens) - 2)
        if tokens[i] in _CHINESE_CONJUNCTIONS
    )
    return runs or coordinated or any(_doubles(tokens, n) for n in (2, 3, 4))


def _doubles(tokens: list[str], n: int) -> bool:
    """Whether `n` tokens directly repeat; two of a kind are no pair."""
    return any(
        tokens[i : i + n] == tokens[i + n : i + 2 * n] and (n == 1 or len(set(tokens[i : i + n])) > 1)
        for i in range(len(tokens) - 2 * n + 1)
    )


def _has_duplicates(items: list[tuple[str, ...]]) -> bool:
    return len(set(items)) < len(items)
