"""What can truly be said about a clip: `facts_of` turns its prosody and action units into levels and features.

The caption grammars (`english`, `chinese`) only put words to these facts, so a caption never claims what the media
do not hold.
"""

from __future__ import annotations

import dataclasses

from mecap_jax.data.synthetic.expression import Expression
from mecap_jax.data.synthetic.face import Identity
from mecap_jax.data.synthetic.prosody import Prosody
from mecap_jax.data.synthetic.speakers import Speaker

# Borders between levels -2, -1, 0, 1 and 2.
_TEMPO_BORDERS = (0.8, 0.93, 1.08, 1.22)  # ratio
_PITCH_BORDERS = (-3.0, -1.2, 1.2, 4.5)  # semitones
_LOUDNESS_BORDERS = (-6.0, -2.0, 2.0, 6.5)  # decibels

LEVEL_WORDS = {
    "tempo": ("very slow", "slow", "steady", "fast", "very fast"),
    "pitch": ("very low", "low", "medium", "high", "very high"),
    "loudness": ("very quiet", "quiet", "normal", "loud", "very loud"),
}


Features = tuple[tuple[str, bool], ...]  # (feature, whether it is strong)

_MOST_SALIENT = 4


@dataclasses.dataclass(frozen=True)
class Facts:
    """A clip as its captions see it.

    Attributes:
      emotion, intensity: what voice and face show together.
      conflict: the modality that departs from it, "audio" or "video", or "none".
      other_emotion, other_intensity: what the departing modality shows.
      gender: "woman" or "man".
      language: of the speech, "en" or "zh".
      accent: eSpeak NG's name of the English accent.
      looks: visible traits out of "beard", "glasses" and "long hair"; empty without a face.
      has_face: whether there is a video.
      has_voice: whether there is sound.
      tempo, pitch, loudness: levels from -2 to 2, relative to the speaker.
      voice: loudness and pitch where they are not at level 0, then voice qualities, most salient first.
      face: features of the face, most salient first; empty where it is at rest.
      visible: names of all features of the face, salient or not.
      vivid: which of two sorts of strong emotion it is (a hot or a cold anger, ...).
    """

    emotion: str
    intensity: str
    conflict: str
    other_emotion: str
    other_intensity: str
    gender: str
    language: str
    accent: str
    looks: tuple[str, ...]
    has_face: bool
    tempo: int
    pitch: int
    loudness: int
    voice: Features
    face: Features
    visible: tuple[str, ...]
    vivid: bool
    has_voice: bool = True


def facts_of(
    emotion: str,
    intensity: str,
    conflict: str,
    other_emotion: str,
    other_intensity: str,
    speaker: Speaker,
    language: str,
    prosody: Prosody,
    identity: Identity,
    expression: Expression | None,
    has_voice: bool = True,
) -> Facts:
    """Reads the facts off a clip's parameters; `expression` is None where there is no video."""
    tempo = _level(prosody.tempo, _TEMPO_BORDERS)
    pitch = _level(prosody.pitch, _PITCH_BORDERS)
    loudness = _level(prosody.loudness, _LOUDNESS_BORDERS)
    traits = (("beard", identity.beard), ("glasses", identity.glasses), ("long hair", identity.long_hair))
    has_face = expression is not None
    visible = _face_features(expression) if has_face else ()
    return Facts(
        emotion=emotion,
        intensity=intensity,
        conflict=conflict,
        other_emotion=other_emotion,
        other_intensity=other_intensity,
        gender=speaker.gender,
        language=language,
        accent=speaker.accent,
        looks=tuple(name for name, present in traits if present and has_face),
        has_face=has_face,
        tempo=tempo,
        pitch=pitch,
        loudness=loudness,
        voice=(
            *_leaning(loudness, "quiet", "loud"),
            *_leaning(pitch, "low", "high"),
            *_qualities(prosody)[:_MOST_SALIENT],
        ),
        face=visible[:_MOST_SALIENT],
        visible=tuple(name for name, _ in visible),
        has_voice=has_voice,
        vivid=_is_vivid(emotion, prosody, None if conflict == "video" else expression),
    )


def level_word(scale: str, level: int) -> str:
    """Returns the plain word of a level: ("tempo", 2) -> "very fast"."""
    return LEVEL_WORDS[scale][level + 2]


def _level(value: float, borders: tuple[float, ...]) -> int:
    return sum(value > border for border in borders) - 2


def _leaning(level: int, below: str, above: str) -> Features:
    return (((above if level > 0 else below), abs(level) == 2),) if level else ()


def _qualities(prosody: Prosody) -> Features:
    """Most salient first: salience is the value over the threshold that makes a feature audible; twice it is strong."""
    thresholds = (
        ("trembling", prosody.tremor, 0.45),
        ("rough", prosody.roughness, 0.45),
        ("creaky", prosody.creak, 0.45),
        ("breathy", prosody.breath, 0.3),
        ("rising", prosody.glide, 2.5),
        ("falling", -prosody.glide, 1.5),
        ("lively", prosody.pitch_range - 1.0, 0.3),
        ("monotone", 1.0 - prosody.pitch_range, 0.3),
        ("bright", prosody.brightness, 3.0),
        ("dark", -prosody.brightness, 3.0),
    )
    return _salient(thresholds)


def _face_features(units: Expression) -> Features:
    inner, outer, lower = units["AU1"], units["AU2"], units["AU4"]
    both, tense = min(inner, outer), min(inner, lower)
    grin = units["AU12"]
    thresholds = (
        ("brows knitted up", tense, 0.28),
        ("brows raised", both if tense < 0.28 else 0.0, 0.3),
        ("brows slanted", inner if both < 0.3 and tense < 0.28 else 0.0, 0.3),
        ("brows lowered", lower if tense < 0.28 else 0.0, 0.3),
        ("eyes wide", units["AU5"], 0.3),
        ("eyes crinkled", units["AU6"], 0.35),
        ("eyes narrowed", units["AU7"], 0.3),
        ("eyelids drooping", units["AU43"], 0.25),
        ("nose wrinkled", units["AU9"], 0.3),
        ("smile toothy", grin if max(units["AU25"], units["AU26"]) > 0.3 else 0.0, 0.3),
        ("smile closed", grin if max(units["AU25"], units["AU26"]) <= 0.3 else 0.0, 0.3),
        ("mouth downturned", units["AU15"], 0.3),
        ("lips stretched", units["AU20"], 0.3),
        ("lips pressed", units["AU23"], 0.3),
        ("lip curled", units["AU10"] if units["AU25"] <= 0.3 else 0.0, 0.3),
        ("teeth bared", units["AU25"] if grin <= 0.3 and max(units["AU10"], lower) > 0.3 else 0.0, 0.3),
        ("jaw dropped", units["AU26"] if grin <= 0.3 else 0.0, 0.3),
        ("chin puckered", units["AU17"], 0.35),
    )
    return _salient(thresholds)


def _salient(thresholds: tuple[tuple[str, float, float], ...]) -> Features:
    salience = [(value / threshold, name) for name, value, threshold in thresholds if value > threshold]
    salience.sort(key=lambda entry: -entry[0])
    return tuple((name, value > 2.2) for value, name in salience)


def _is_vivid(emotion: str, prosody: Prosody, units: Expression | None) -> bool:
    """Tells two sorts of one emotion apart, by the face where it shows the emotion, else by the voice."""
    if units is not None:
        return {
            "happy": units["AU26"] > 0.25,
            "sad": units["AU43"] < 0.25,
            "angry": units["AU25"] > 0.35,
            "surprised": units["AU26"] > 0.6,
            "disgusted": units["AU9"] > units["AU10"],
            "fearful": units["AU2"] > 0.2,
        }.get(emotion, False)
    return {
        "happy": prosody.tempo > 1.2,
        "sad": prosody.loudness > -7.0,
        "angry": prosody.loudness > 8.0,
        "surprised": prosody.pitch > 5.5,
        "disgusted": prosody.creak > 0.75,
        "fearful": prosody.tempo > 1.25,
    }.get(emotion, False)
