"""Emotion labels and the emotion lexicon: the one vocabulary that data, rewards and evaluation share.

`EMOTIONS` are EmotionTalk's seven labels in its official order (arXiv 2505.23018). Labels are an open set: those of a
corpus are what its files hold after `canonical_label`. What is known of an emotion stands in `emotions.toml`.
How captions are read by it says `emotion_words`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

EMOTIONS = ("neutral", "happy", "sad", "angry", "surprised", "disgusted", "fearful")

_KNOWN: Mapping[str, Mapping[str, Any]] = tomllib.loads(
    resources.files("mecap_jax").joinpath("emotions.toml").read_text(encoding="utf-8")
)
CALM = "calm"  # what is calm counts as neutral, where nobody makes a difference between the two
LABELS = tuple(_KNOWN)  # the emotions that we know words of, `EMOTIONS` first
LEXICON: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    language: {label: tuple(w.replace("_", " ") for w in known[language].split()) for label, known in _KNOWN.items()}
    for language in ("en", "zh")
}
# What is seen or heard of an emotion, in English: words and phrases.
SHOWN: Mapping[str, tuple[str, ...]] = {
    label: tuple(word.replace("_", " ") for word in known.get("en_shown", "").split())
    for label, known in _KNOWN.items()
}
# What corpora write where there is no label, or none that the annotators agreed on; canonical spellings.
NO_LABEL = frozenset(
    "- ? n/a na nan nil none null oth other others undecided undefined unknown unlabeled unlabelled xxx "
    "其他 未知 无".split()
) | {"no agreement", "no label"}
_SPELLINGS = {spelling: label for label, known in _KNOWN.items() for spelling in known["labels"]}

# Endings that make forms of one English word: angry, angrily; frustrated, frustration; helpless, helplessness.
_ENDINGS = (
    ("", "ly", "ness"),
    ("y", "ily", "iness"),
    ("ed", "edly", "ing", "ment", "ion"),
    ("ated", "ating", "ation"),
    ("ant", "antly", "ance"),
    ("ent", "ently", "ence"),
)
_SHORTEST_STEM = 3


def canonical_label(label: str) -> str:
    """Returns the canonical spelling of an emotion label ("Anger" -> "angry", "helplessness" -> "helpless").

    Spellings of one emotion become one label; emotions that are alike stay two ("anxious", "fearful"), because folding
    them would invent annotations. A label that is not known is kept, in lower case.

    Raises:
      ValueError: nothing but space.
    """
    plain = " ".join(label.replace("_", " ").casefold().split())
    if not plain:
        raise ValueError("an emotion label is empty")
    known = [_SPELLINGS[form] for form in (plain, *sorted(word_forms(plain))) if form in _SPELLINGS]
    return known[0] if known else plain


def word_forms(word: str) -> set[str]:
    """Returns `word` and its English inflections, among them some that no text will hold ("hangryly")."""
    forms = {word}
    for endings in _ENDINGS:
        stems = {word.removesuffix(ending) for ending in endings if word.endswith(ending)}
        forms |= {stem + ending for stem in stems if len(stem) >= _SHORTEST_STEM for ending in endings}
    return forms


def phrases(label: str, language: str = "en", strong: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns words for an emotion: those that follow "sounds", and in English those that follow "conveys".

    Of a label that is not known they are made from the label itself.
    """
    known = _KNOWN.get(label, {})
    if language == "zh":
        return tuple(known["zh_states"].split()) if "zh_states" in known else (f"“{label}”",), ()
    states, nouns = known.get("states"), known.get("nouns")
    if states is None:
        states, nouns = _derived_phrases(label)
    if strong:
        states = known.get("strong_states") or [f"very {state}" for state in states]
        nouns = known.get("strong_nouns") or [n if n.startswith(_ARTICLES) else f"intense {n}" for n in nouns]
    return tuple(states), tuple(nouns)


_ARTICLES = ("a ", "an ", "the ")
_NOUN_ENDINGS = ("ness", "ment", "ion", "ity", "ance", "ence", "ism")


def _derived_phrases(label: str) -> tuple[list[str], list[str]]:
    if not re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", label):
        return [f"like “{label}”"], [f"the emotion “{label}”"]
    if label.endswith(_NOUN_ENDINGS):
        return [f"full of {label}"], [label]
    article = "an" if label[0] in "aeiou" else "a"
    return [label], [f"{article} {label} mood", f"{article} {label} tone"]
