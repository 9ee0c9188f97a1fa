"""Sentences of a rationale, and guards against texts that grow without saying more."""

from __future__ import annotations

import re

from mecap_jax.rewards.lexical import tokenize

# Behind a full stop, question or exclamation mark; Chinese ones need no space behind them.
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])(?![”」』\"])\s*")
_TYPOGRAPHIC = str.maketrans("“”", '""')


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences, not inside double quotes, as ERV does (arXiv 2510.23506). Linear time.

    Where the quotes do not pair up they are taken for other characters: ERV's pattern then finds no sentence end before
    the last one, and a single mark at the end of a text would make one sentence of all. What holds no word is no
    sentence.
    """
    text = text.strip()
    quotes = [i for i, character in enumerate(text.translate(_TYPOGRAPHIC)) if character == '"']
    inside = list(zip(quotes[::2], quotes[1::2])) if len(quotes) % 2 == 0 else []
    sentences, start, pair = [], 0, 0
    for match in _END.finditer(text):
        while pair < len(inside) and inside[pair][1] < match.end():
            pair += 1
        if pair == len(inside) or inside[pair][0] >= match.end():
            sentences.append(text[start : match.start()])
            start = match.end()
    return [sentence for sentence in (*sentences, text[start:]) if tokenize(sentence)]


def distinct_sentences(text: str) -> list[str]:
    """Returns the sentences of a text without those that repeat the words of an earlier one, in whatever order."""
    first: dict[tuple[str, ...], str] = {}
    for sentence in split_sentences(text):
        first.setdefault(tuple(sorted(set(tokenize(sentence)))), sentence)
    return list(first.values())


def distinct_sentence_share(text: str) -> float:
    """Returns which share of the sentences is left in `distinct_sentences`, in [0, 1]; 0 for a text without words."""
    return len(distinct_sentences(text)) / len(split_sentences(text)) if tokenize(text) else 0.0


def distinct_phrase_share(text: str, words: int = 4) -> float:
    """Returns the share of different ones among the phrases of so many words (Chinese characters), in [0, 1].

    A text of fewer words is one phrase; one without words has the value 0.
    """
    tokens = tokenize(text)
    phrases = [tuple(tokens[i : i + words]) for i in range(max(1, len(tokens) - words + 1))] if tokens else []
    return len(set(phrases)) / len(phrases) if phrases else 0.0


def length_reward(text: str, least: int, most: int) -> float:
    """Returns 1 for a text of `least` to `most` words (Chinese characters), less the further it is off, down to 0.

    Below it falls to 0 at no word, above to 0 at twice `most`.

    Raises:
      ValueError: not 0 <= least <= most, with 0 < most.
    """
    if not 0 <= least <= most or not most:
        raise ValueError(f"expected 0 <= least <= most, 0 < most; got {least} and {most}")
    count = len(tokenize(text))
    return min(1.0, count / least if least else 1.0, max(0.0, 2 - count / most))
