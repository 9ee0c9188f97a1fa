"""`tokenizer.json` files that others wrote, checked before they are loaded.

The library that runs them takes whatever stands there: a regular expression whose matching never ends, replacements
that grow a text a billionfold. Which text sets them off only their author knows, so trying them out proves nothing.
Instead every step must be of a kind that takes linear time and makes texts longer by a small factor at most; regular
expressions must be those of published tokenizers. What the rules here know covers BERT, RoBERTa, XLM-R, GPT-2 and Qwen.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mecap_jax.families import FAMILIES
from mecap_jax.json_files import read_json_object

LONGEST_TEXT = 2**20  # characters that a tokenizer is given at once
_LARGEST_FILE = 2**26  # bytes
_LARGEST_PART = 10_000  # characters of a part's JSON: hardly more than the names of its steps
_MOST_ADDED, _LONGEST_ADDED = 10_000, 256
_LONGEST_AFFIX = 16
_LONGEST_WORD = 1000  # characters; WordPiece tries all substrings
_LONGEST_MAPPED = 64  # bytes that a character map makes of a character, at most 33 in Unicode's own NFKC

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_EXPRESSIONS = {*(family.words for family in FAMILIES.values()), _GPT2_WORDS, r"\s+", " {2,}"}
# Steps of each part. A text may grow in some of them, so that each but the repeatable ones may be there only once.
_STEPS = {
    "normalizer": "BertNormalizer Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Strip StripAccents",
    "pre_tokenizer": "BertPreTokenizer ByteLevel Digits Metaspace Punctuation Split UnicodeScripts Whitespace "
    "WhitespaceSplit",
    "post_processor": "BertProcessing ByteLevel RobertaProcessing TemplateProcessing",
    "decoder": "ByteFallback ByteLevel Fuse Metaspace Replace Strip WordPiece",
}
_REPEATABLE = ("Replace", "Split")
_LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Loads a `tokenizer.json` that passes `check_tokenizer`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as `check_tokenizer`, or the library cannot load it; names the file.
    """
    check_tokenizer(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library has no narrower one, and its panics are no Exceptions
        raise ValueError(f"{path} is not a tokenizer: {error!s:.500}") from None


def check_tokenizer(path: Path) -> None:
    """Refuses a `tokenizer.json` that asks for more than the steps that are known to be safe.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or asks for something else; names the file and the step.
    """
    content = read_json_object(path, _LARGEST_FILE)
    if problem := next(_problems(content), None):
        raise ValueError(f"{path}: {problem}")


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    for part, known in _STEPS.items():
        yield from _part_problems(part, content.get(part), known.split())
    model = content.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") not in _MODELS:
        yield f"the model is none of {', '.join(_MODELS)}"
        return
    if model.get("dropout"):
        yield f"the model drops merges at random (dropout = {model['dropout']!r:.40}), which only training may want"
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(str(model.get(name) or "")) > _LONGEST_AFFIX:
            yield f"{name} has more than {_LONGEST_AFFIX} characters"
    if not _is_at_most(model.get("max_input_chars_per_word", 100), _LONGEST_WORD):
        yield f"max_input_chars_per_word is more than {_LONGEST_WORD}"
    added = content.get("added_tokens") if isinstance(content.get("added_tokens"), list) else []
    texts = [str(token.get("content")) for token in added if isinstance(token, Mapping)]
    if len(texts) > _MOST_ADDED or max(map(len, texts), default=0) > _LONGEST_ADDED:
        yield f"added_tokens are more than {_MOST_ADDED}, or longer than {_LONGEST_ADDED} characters"


def _part_problems(part: str, value: Any, known: list[str]) -> Iterator[str]:
    steps = list(_steps(value))
    kinds = [step.get("type") if isinstance(step, Mapping) else step for step in steps]
    for kind in kinds:
        if kind not in known:
            yield f"{part}: {kind!r:.60} is not one of the steps that are read: {', '.join(known)}"
            return
    for kind in set(kinds) - set(_REPEATABLE):
        if kinds.count(kind) > 1:
            yield f"{part}: {kind} is there {kinds.count(kind)} times"
    for step in steps:
        yield from (f"{part}: {step['type']}: {problem}" for problem in _step_problems(step))
    short = [{name: field for name, field in step.items() if name != "precompiled_charsmap"} for step in steps]
    if len(json.dumps(short, allow_nan=True)) > _LARGEST_PART:
        yield f"{part}: more than {_LARGEST_PART} characters"


def _steps(value: Any) -> Iterator[Any]:
    """The steps of a part in order, sequences of them unfolded."""
    rest = [] if value is None else [value]
    while rest:
        step = rest.pop()
        if isinstance(step, Mapping) and step.get("type") == "Sequence":
            inner = next((step[name] for name in (*_LISTS.values(), "decoders") if name in step), None)
            rest += reversed(inner) if isinstance(inner, list) else [inner]
        else:
            yield step


def _step_problems(step: Mapping[str, Any]) -> Iterator[str]:
    pattern = step.get("pattern")
    kind, text = next(iter(pattern.items()), ("", "")) if isinstance(pattern, Mapping) else ("", "")
    if kind == "Regex" and not (isinstance(text, str) and text in _EXPRESSIONS):
        yield f"the regular expression {text!r:.80} is not one of those that are known to take linear time"
    match step["type"]:
        case "Replace":
            shortest = len(str(text)) if kind == "String" else 1
            if not shortest or len(str(step.get("content"))) > shortest:
                yield f"{step.get('content')!r:.40} is longer than what it replaces, {text!r:.40}"
        case "Prepend" if len(str(step.get("prepend"))) > _LONGEST_AFFIX:
            yield f"prepends more than {_LONGEST_AFFIX} characters"
        case "Precompiled":
            yield from _map_problems(step.get("precompiled_charsmap"))


def _map_problems(encoded: Any) -> Iterator[str]:
    """A map is the size of its search tree (4 bytes), the tree, and what characters become, each ended by a zero."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError):
        yield "the map of characters is not base64"
        return
    start = 4 + int.from_bytes(content[:4], "little")
    if max(map(len, content[start:].split(b"\0"))) > _LONGEST_MAPPED:
        yield f"a character becomes more than {_LONGEST_MAPPED} bytes"


def _is_at_most(value: Any, limit: int) -> bool:
    return isinstance(value, int) and value <= limit
