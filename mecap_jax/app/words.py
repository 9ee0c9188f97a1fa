"""In which words two texts differ."""

from __future__ import annotations

import difflib
import re

# A Chinese, Japanese or Thai character stands for itself; elsewhere a run of letters and digits, or any other sign.
_ALONE = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKENS = re.compile(rf"\s+|[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")
_MOST = 600  # tokens of one text: comparing takes their product
_LONGEST = 20_000  # characters of one text


def differing(text: str, other: str) -> list[tuple[str, bool]]:
    """Splits `text` into pieces, each with whether it stands in `other`, too, in the same order: True where it differs.

    Case does not count. Of texts with more than a few hundred words nothing is compared.
    """
    if max(len(text), len(other)) > _LONGEST:
        return [(text, False)]
    tokens, others = _TOKENS.findall(text), _TOKENS.findall(other)
    words, their_words = ([token.casefold() for token in side if not token.isspace()] for side in (tokens, others))
    if max(len(words), len(their_words)) > _MOST:
        return [(text, False)]
    same: set[int] = set()
    for match in difflib.SequenceMatcher(None, words, their_words, autojunk=False).get_matching_blocks():
        same.update(range(match.a, match.a + match.size))
    pieces: list[tuple[str, bool]] = []
    number = 0
    for token in tokens:
        differs = not token.isspace() and number not in same
        number += not token.isspace()
        if pieces and (token.isspace() or pieces[-1][1] == differs):
            pieces[-1] = (pieces[-1][0] + token, pieces[-1][1])
        else:
            pieces.append((token, differs))
    return pieces
