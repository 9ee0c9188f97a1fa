"""Captions from templates for clips that have a label but no captions, for any set of labels.

They say only what is known: the emotion, whether it is strong, and whether a man or a woman speaks.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import phrases

Clip = TypeVar("Clip", Utterance, ClipRecord)
REFERENCES = 5  # "overall" captions a clip, as in EmotionTalk
_GENDERS = {"male": "male", "m": "male", "man": "male", "男": "male",
            "female": "female", "f": "female", "woman": "female", "女": "female"}  # fmt: skip
_STRONG = ("strong", "high", "hi", "intense")

_SPEAKER: Mapping[str, Mapping[str | None, Mapping[str, tuple[str, ...]]]] = {
    "en": {
        "male": {"person": ("man", "male speaker"), "their": ("his",)},
        "female": {"person": ("woman", "female speaker"), "their": ("her",)},
        None: {"person": ("speaker", "person"), "their": ("their",)},
    },
    "zh": {
        "male": {"person": ("男士", "男性说话者")},
        "female": {"person": ("女士", "女性说话者")},
        None: {"person": ("说话者", "说话人")},
    },
}
_DEGREES = {False: ("", "比较"), True: ("非常", "十分", "极其")}
_TEMPLATES = {
    "en": {
        "emotion": (
            "The speaker sounds {state}.",
            "The {person} comes across as {state}.",
            "The voice expresses {noun}.",
            "{noun} can be heard in the voice.",
        ),
        "speaker": ("This is the voice of a {person}.", "A {person} is talking."),
        "overall": (
            "The {person} sounds {state}.",
            "A {person} speaks, and {their} voice conveys {noun}.",
            "{noun} can be heard in the voice of the {person}.",
            "In this clip the {person} comes across as {state}.",
            "It is a {person} who sounds {state}.",
            "Listening to this {person}, one hears {noun}.",
            "The voice is that of a {person} who seems {state}.",
            "What the {person} says is spoken with {noun}.",
            "The {person} talks, sounding {state} throughout.",
        ),
    },
    "zh": {
        "emotion": ("说话人听起来{degree}{state}。", "声音里透出{state}的情绪。"),
        "speaker": ("说话的是一位{person}。",),
        "overall": (
            "这位{person}听起来{degree}{state}。",
            "从声音里可以听出，这位{person}{degree}{state}。",
            "这位{person}的声音里透出{state}的情绪。",
            "一位{person}在说话，情绪{degree}{state}。",
            "这位{person}说话时显得{degree}{state}。",
            "在这段话里，{person}的语气{degree}{state}。",
            "听得出来，{person}此刻{degree}{state}。",
        ),
    },
}


def fill(utterance: Clip, language: str) -> Clip:
    """Returns the utterance (or what the index knows of it) with captions of the kinds that it lacks, where its label
    is known.

    One of kind "emotion", one of kind "speaker" where the gender is known, five of kind "overall". What a clip gets
    depends on its id, its label and its attributes "gender" and "intensity" alone.

    Args:
      language: of the captions, "en" or "zh".
    """
    if utterance.label is None:
        return utterance
    rng, gender, strong = random_of(utterance), gender_of(utterance), is_strong(utterance)
    states, nouns = phrases(utterance.label, language, strong)
    words = {**_SPEAKER[language][gender], "state": states, "noun": nouns, "degree": _DEGREES[strong]}
    captions = {}
    for kind, templates in _TEMPLATES[language].items():
        if kind != "speaker" or gender is not None:
            chosen = rng.permutation(len(templates))[: REFERENCES if kind == "overall" else 1]
            captions[kind] = tuple(_sentence(templates[i], words, rng) for i in chosen)
    told = {} if utterance.captions else {"caption_language": language}
    return dataclasses.replace(
        utterance,
        captions={**captions, **utterance.captions},
        attributes={**utterance.attributes, **told},
    )


def random_of(utterance: Utterance | ClipRecord) -> np.random.Generator:
    """Random numbers that are a clip's own, the same every time."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(utterance.id.encode()).digest()[:8]))


def gender_of(utterance: Utterance | ClipRecord) -> str | None:
    """Returns "male", "female", or None where nobody knows."""
    return _GENDERS.get(_attribute(utterance, "gender") or _attribute(utterance, "sex"))


def is_strong(utterance: Utterance | ClipRecord) -> bool:
    """Whether the emotion is labelled as a strong one."""
    return _attribute(utterance, "intensity") in _STRONG


def _sentence(template: str, words: Mapping[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    chosen = {name: options[rng.integers(len(options))] for name, options in words.items() if options}
    sentence = template.format_map(chosen)
    return sentence[0].upper() + sentence[1:]


def _attribute(utterance: Utterance | ClipRecord, name: str) -> str:
    return next((value.casefold() for key, value in utterance.attributes.items() if key.casefold() == name), "")
