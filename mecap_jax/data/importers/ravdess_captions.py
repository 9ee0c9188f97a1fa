"""Captions for RAVDESS: the acted emotion and the measured voice, put into words.

RAVDESS has labels but no captions. A caption here says only what is known: emotion and intensity as acted, gender and
accent of the actor, and how pitch, melody, loudness and tempo of the recording compare with others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mecap_jax.data.importers.template_captions import REFERENCES
from mecap_jax.emotions import phrases

_PITCH = {
    "low": ("low", "deep", "low-pitched"),
    "medium": ("medium-pitched", "mid-range", "mid-pitched"),
    "high": ("high", "high-pitched", "raised"),
}
_LOUDNESS = {
    "low": ("quiet", "soft", "hushed", "subdued"),
    "medium": ("moderately loud", "comfortably loud"),
    "high": ("loud", "powerful", "forceful", "carrying"),
}
_RATE = {
    "low": ("slowly", "at a slow pace", "at an unhurried pace", "at a leisurely tempo"),
    "medium": ("at a moderate pace", "at an ordinary tempo", "at an average speed", "at a steady pace"),
    "high": ("quickly", "at a brisk pace", "rapidly", "at a fast tempo"),
}
_MELODY = {
    "low": ("a flat intonation", "a narrow pitch range", "little movement in pitch", "an almost level melody"),
    "medium": ("a natural intonation", "a moderate pitch range", "some movement in pitch"),
    "high": ("a lively intonation", "a wide pitch range", "large swings in pitch", "a strongly varied melody"),
}
_GENDER = {
    "male": {"person": ("man", "male speaker"), "their": "his", "they": "he", "sex": "male"},
    "female": {"person": ("woman", "female speaker"), "their": "her", "they": "she", "sex": "female"},
}

_EMOTION_TEMPLATES = (
    "The speaker sounds {state}.",
    "The {person} comes across as {state}.",
    "The voice expresses {noun}.",
    "{noun} can be heard in the voice.",
    "{they} speaks with {noun}.",
)
_STYLE_TEMPLATES = (
    "The voice is {pitch} and {loudness}; the sentence is spoken {rate}, with {melody}.",
    "Spoken {rate} in a {loudness}, {pitch} voice with {melody}.",
    "With {melody}, {they} speaks {rate} in a {pitch} and {loudness} voice.",
    "A {pitch}, {loudness} voice that moves {rate}, with {melody}.",
)
_SPEAKER_TEMPLATES = (
    "An adult {sex} speaker with a North American accent.",
    "An adult {person} who talks with a North American accent.",
    "The speaker is {an_adult} with a North American accent.",
)
_OVERALL_TEMPLATES = (
    "A {person} talks {rate} in a {pitch} and {loudness} voice with {melody}, sounding {state}.",
    "With {noun} in {their} {loudness}, {pitch} voice, the {person} talks {rate}, with {melody}.",
    "The {person} sounds {state}: {their} voice is {loudness} and {pitch}, and {they} speaks {rate}.",
    "Sounding {state}, the {person} says the sentence {rate}, with {melody} and in a {loudness} voice.",
    "{their} {loudness}, {pitch} voice conveys {noun}; {they} speaks {rate}, with {melody}.",
    "{noun} can be heard in {their} {pitch} voice as the {person} talks {rate}, with {melody}.",
    "The {sex} voice, {loudness} and {pitch}, carries {noun}; the words come {rate}.",
    "In a {loudness} voice and {rate}, the {person} expresses {noun}, with {melody}.",
    "It is a {person} who sounds {state} and talks {rate}, in a {pitch} voice with {melody}.",
)  # "a" stands before pitch and loudness: none of their words begins with a vowel


@dataclasses.dataclass(frozen=True)
class Levels:
    """How a voice compares with others, each "low", "medium" or "high".

    Attributes:
      pitch: median pitch, among speakers of the same gender.
      melody: range of pitch, among speakers of the same gender.
      loudness, rate: among all speakers.
    """

    pitch: str
    melody: str
    loudness: str
    rate: str


def write(
    emotion: str, intensity: str, gender: str, levels: Levels, rng: np.random.Generator
) -> dict[str, tuple[str, ...]]:
    """Writes the captions of one clip: one each of kind "emotion", "style" and "speaker", five of kind "overall".

    Args:
      emotion: a canonical label.
      intensity: "normal" or "strong".
      gender: "male" or "female".
    """
    overall = rng.permutation(len(_OVERALL_TEMPLATES))[:REFERENCES]
    chosen = {
        "emotion": [_pick(_EMOTION_TEMPLATES, rng)],
        "style": [_pick(_STYLE_TEMPLATES, rng)],
        "speaker": [_pick(_SPEAKER_TEMPLATES, rng)],
        "overall": [_OVERALL_TEMPLATES[i] for i in overall],
    }
    return {
        kind: tuple(_fill(template, _words(emotion, intensity, gender, levels, rng)) for template in templates)
        for kind, templates in chosen.items()
    }


def _words(emotion: str, intensity: str, gender: str, levels: Levels, rng: np.random.Generator) -> Mapping[str, str]:
    states, nouns = phrases(emotion, strong=intensity == "strong")
    return {
        **_GENDER[gender],
        "person": _pick(_GENDER[gender]["person"], rng),
        "an_adult": f"an adult {_GENDER[gender]['person'][0]}",
        "state": _pick(states, rng),
        "noun": _pick(nouns, rng),
        "pitch": _pick(_PITCH[levels.pitch], rng),
        "loudness": _pick(_LOUDNESS[levels.loudness], rng),
        "rate": _pick(_RATE[levels.rate], rng),
        "melody": _pick(_MELODY[levels.melody], rng),
    }


def _fill(template: str, words: Mapping[str, str]) -> str:
    sentence = template.format_map(words)
    return sentence[0].upper() + sentence[1:]


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]
