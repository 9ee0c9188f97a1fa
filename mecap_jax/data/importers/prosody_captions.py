"""Captions that say how a clip sounds: the emotion, and pitch, melody, loudness and tempo as they were measured.

In plain words there is one for each thing, and the emotion comes early: what some hundred clips can teach.

A caption says only what is known: emotion and intensity as labelled, the gender, and how the voice compares with
others: with the speaker's other clips or, where these are few, with men or women of the corpus, or with all of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from mecap_jax.data.importers import template_captions
from mecap_jax.data.importers.prosody import Prosody, compare, measure
from mecap_jax.data.importers.template_captions import REFERENCES, gender_of, is_strong, random_of
from mecap_jax.data.inspection import Item, Pending, read
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import phrases
from mecap_jax.threads import ahead

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
    None: {"person": ("speaker", "person"), "their": "their", "they": "this person", "sex": "speaking"},
}

_EMOTION_TEMPLATES = (
    "The speaker sounds {state}.",
    "The {person} comes across as {state}.",
    "The voice expresses {noun}.",
    "{noun} can be heard in the voice.",
    "{they} speaks with {noun}.",
)
_STYLE_TEMPLATES = (
    "The voice is {pitch} and {loudness}; the words are spoken {rate}, with {melody}.",
    "Spoken {rate} in a {loudness}, {pitch} voice with {melody}.",
    "With {melody}, {they} speaks {rate} in a {pitch} and {loudness} voice.",
    "A {pitch}, {loudness} voice that moves {rate}, with {melody}.",
)
_OVERALL_TEMPLATES = (
    "A {person} talks {rate} in a {pitch} and {loudness} voice with {melody}, sounding {state}.",
    "With {noun} in {their} {loudness}, {pitch} voice, the {person} talks {rate}, with {melody}.",
    "The {person} sounds {state}: {their} voice is {loudness} and {pitch}, and {they} speaks {rate}.",
    "Sounding {state}, the {person} speaks {rate}, with {melody} and in a {loudness} voice.",
    "{their} {loudness}, {pitch} voice conveys {noun}; {they} speaks {rate}, with {melody}.",
    "{noun} can be heard in {their} {pitch} voice as the {person} talks {rate}, with {melody}.",
    "The {sex} voice, {loudness} and {pitch}, carries {noun}; the words come {rate}.",
    "In a {loudness} voice and {rate}, the {person} expresses {noun}, with {melody}.",
    "It is a {person} who sounds {state} and talks {rate}, in a {pitch} voice with {melody}.",
)  # "a" stands before pitch and loudness: none of their words begins with a vowel
# Nothing of gender: features that are normalised by speaker do not tell it, and what is not heard is learnt by heart.
_PLAIN_TEMPLATES = ("The speaker sounds {state} and speaks {rate}, in a {loudness}, {pitch} voice.",)


@dataclasses.dataclass(frozen=True)
class Levels:
    """How a voice compares with others, each "low", "medium" or "high".

    Attributes:
      pitch: median pitch.
      melody: range of pitch.
      loudness, rate: of the speech.
    """

    pitch: str
    melody: str
    loudness: str
    rate: str


def captioned(clips: Sequence[Pending], max_seconds: float, plain: bool = False) -> list[Pending]:
    """Returns clips that get captions of the kinds that they lack when they are read, in English.

    Five of kind "overall" where the label is known (one in plain words), and one of kind "style", that says how they
    speak; the other kinds are those of `template_captions`, and all where no voice is heard. They depend on the clip
    and on those that it is compared with: all clips are heard here, before any is captioned.
    """
    heard = list(ahead(functools.partial(_hear, max_seconds=max_seconds), clips))
    levels = compare([prosody for prosody, _ in heard], [groups for _, groups in heard])
    found = (None if level is None else Levels(**level) for level in levels)
    return [functools.partial(_captioned, clip, level, plain) for clip, level in zip(clips, found, strict=True)]


def _hear(clip: Pending, max_seconds: float) -> tuple[Prosody | None, Sequence[Hashable]]:
    """Returns what is measured of a clip, and the groups that it is compared within, the nearest first."""
    item = read(clip)
    if not isinstance(item, Utterance):
        return None, [()]
    # Letters of different languages, and syllables, are not one measure of tempo.
    corpus = (item.dataset, item.language, bool(item.transcript))
    groups = [(*corpus, "speaker", item.speaker), (*corpus, "gender", gender_of(item)), corpus]
    return measure(item, max_seconds), groups


def _captioned(clip: Pending, levels: Levels | None, plain: bool) -> Item:
    item = read(clip)
    if not isinstance(item, Utterance):
        return item
    if levels is not None:
        intensity = "strong" if is_strong(item) else "normal"
        captions = write(item.label, intensity, gender_of(item), levels, None if plain else random_of(item))
        told = {} if item.captions else {"caption_language": "en"}
        wanted = {kind: captions[kind] for kind in ("style", "overall") if kind in captions}
        item = dataclasses.replace(item, captions={**wanted, **item.captions}, attributes={**item.attributes, **told})
    return template_captions.fill(item, "en")


def write(
    emotion: str | None,
    intensity: str,
    gender: str | None,
    levels: Levels,
    rng: np.random.Generator | None,
    speaker: Sequence[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Writes the captions of one clip: one each of kind "emotion", "style" and "speaker", five of kind "overall".

    Args:
      emotion: a canonical label; None: captions of kind "style" and "speaker" only.
      intensity: "normal" or "strong".
      gender: "male" or "female", None where nobody knows.
      rng: chooses templates and words; None: plain words.
      speaker: templates of that kind; () leaves it out.
    """
    overall = _PLAIN_TEMPLATES
    if rng is not None:
        overall = [_OVERALL_TEMPLATES[i] for i in rng.permutation(len(_OVERALL_TEMPLATES))[:REFERENCES]]
    chosen = {
        "emotion": [_pick(_EMOTION_TEMPLATES, rng)],
        "style": [_pick(_STYLE_TEMPLATES, rng)],
        "speaker": [_pick(speaker, rng)] if speaker else [],
        "overall": overall,
    }
    return {
        kind: tuple(_fill(template, _words(emotion, intensity, gender, levels, rng)) for template in templates)
        for kind, templates in chosen.items()
        if templates and (emotion is not None or kind in ("style", "speaker"))
    }


def _words(
    emotion: str | None, intensity: str, gender: str | None, levels: Levels, rng: np.random.Generator | None
) -> Mapping[str, str]:
    strong = intensity == "strong"
    states, nouns = phrases(emotion, strong=strong and rng is not None) if emotion is not None else (("",), ("",))
    if strong and rng is None:
        states = (f"very {states[0]}",)
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


def _pick(options: Sequence[str], rng: np.random.Generator | None) -> str:
    return options[0 if rng is None else rng.integers(len(options))]
