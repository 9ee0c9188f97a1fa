"""What can be measured of a voice: pitch and its range, loudness and tempo, and what is unusual about them.

Nothing here is learnt: pitch is YIN's (de Cheveigné and Kawahara 2002) where it moves steadily, as a voice does and
noise does not; syllables are peaks of the level (after de Jong and Wempe 2009).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import librosa
import numpy as np
import scipy

from mecap_jax.data import media
from mecap_jax.data.utterance import Utterance

SAMPLE_RATE = 16_000
_LONGEST = 30.0  # seconds that are measured, from where something is heard
_FRAME, _HOP = 1024, 256  # samples; two periods of the lowest voice fit
_LOWEST, _HIGHEST = 65.0, 600.0  # Hz
_SILENT = 1e-3  # root mean square of a clip's loudest frame, -60 dB of full scale
_BELOW_PEAK = 30.0  # decibels: what is softer than the loudest frame by more is pause
_DIP = 2.0  # decibels between two syllables
_STEADY = 1.0  # semitones from one frame to the next
_VOICED = 0.2  # share of the frames heard that have to be steady: below it nobody speaks with a voice

_ENOUGH = 5  # clips that a comparison takes
# No difference is heard in less than this, however alike the clips are.
_LEAST_SPREAD = {"pitch": 1.0, "melody": 1.0, "loudness": 2.0, "rate": 0.1}
_UNUSUAL = 0.6  # spreads from the middle


@dataclasses.dataclass(frozen=True)
class Prosody:
    """Prosody of one clip as it was measured.

    Attributes:
      pitch: median fundamental frequency in semitones above 1 Hz.
      melody: semitones between its 10th and 90th percentile.
      loudness: level of what is heard in decibels of full scale; the recording's as much as the speaker's.
      rate: binary logarithm of letters said in a second, or of syllables where nobody knows what is said.
    """

    pitch: float
    melody: float
    loudness: float
    rate: float


def measure(utterance: Utterance, max_seconds: float) -> Prosody | None:
    """Returns the prosody of a clip, or None where no voice is heard or its sound cannot be decoded."""
    encoded = utterance.audio or utterance.video
    if encoded is None:
        return None
    try:
        waveform = media.decode_audio(encoded, SAMPLE_RATE, max_seconds)
    except media.MediaError:  # whoever stores the clip says so
        return None
    return _measure(waveform, sum(character.isalnum() for character in utterance.transcript))


def _measure(waveform: np.ndarray, letters: int) -> Prosody | None:
    """Measures a waveform `[S]` at `SAMPLE_RATE`, in which so many letters are said (0: nobody knows)."""
    _, (first, last) = librosa.effects.trim(waveform, top_db=_BELOW_PEAK, frame_length=_FRAME, hop_length=_HOP)
    heard = waveform[first : min(last, first + int(_LONGEST * SAMPLE_RATE))]
    if len(heard) < 2 * _FRAME:
        return None
    level = librosa.feature.rms(y=heard, frame_length=_FRAME, hop_length=_HOP)[0]
    if level.max() < _SILENT:
        return None
    loud = level > level.max() * 10 ** (-_BELOW_PEAK / 20)
    pitch = _steady_pitch(heard, loud)
    if not len(pitch):
        return None
    low, middle, high = np.quantile(pitch, (0.1, 0.5, 0.9))
    decibels = 20 * np.log10(np.maximum(level, level.max() * 10 ** (-_BELOW_PEAK / 20)))
    syllables = len(scipy.signal.find_peaks(decibels, prominence=_DIP)[0])
    seconds = (last - first if letters else len(heard)) / SAMPLE_RATE
    return Prosody(
        pitch=float(middle),
        melody=float(high - low),
        loudness=float(10 * np.log10(np.mean(np.square(level[loud])))),
        rate=float(np.log2(max(letters or syllables, 1) / seconds)),
    )


def _steady_pitch(heard: np.ndarray, loud: np.ndarray) -> np.ndarray:
    """Semitones of the frames of a voice; none of what has no pitch."""
    frequency = librosa.yin(heard, fmin=_LOWEST, fmax=_HIGHEST, sr=SAMPLE_RATE, frame_length=_FRAME, hop_length=_HOP)
    semitones = 12 * np.log2(frequency)
    moves = np.abs(np.diff(semitones, prepend=semitones[:1], append=semitones[-1:])) < _STEADY
    inside = (frequency > 1.02 * _LOWEST) & (frequency < 0.98 * _HIGHEST)  # YIN's answer to what has no period
    steady = moves[:-1] & moves[1:] & inside & loud
    return semitones[steady] if steady.sum() >= max(_VOICED * loud.sum(), 5) else semitones[:0]


def compare(measured: Sequence[Prosody | None], groups: Sequence[Sequence[Hashable]]) -> list[Mapping[str, str] | None]:
    """Returns how each clip's prosody stands among those of its group: "low", "medium" or "high", by what was measured.

    It is unusual where it lies more than .6 spreads from the group's median; a spread is half of what lies between the
    16th and the 84th percentile: a standard deviation, where values are normal.

    Args:
      groups: of each clip, the nearest first: the first one with five clips is what it is compared with, or the last.
    """
    members: dict[Hashable, list[Prosody]] = collections.defaultdict(list)
    for prosody, keys in zip(measured, groups, strict=True):
        for key in keys if prosody is not None else ():
            members[key].append(prosody)
    found: list[Mapping[str, str] | None] = []
    for prosody, keys in zip(measured, groups, strict=True):
        near = next((key for key in keys if len(members[key]) >= _ENOUGH), keys[-1])
        found.append(
            None if prosody is None else {name: _level(prosody, members[near], name) for name in _LEAST_SPREAD}
        )
    return found


def _level(prosody: Prosody, others: Sequence[Prosody], name: str) -> str:
    low, middle, high = np.quantile([getattr(other, name) for other in others], (0.16, 0.5, 0.84))
    away = (getattr(prosody, name) - middle) / max((high - low) / 2, _LEAST_SPREAD[name])
    return "high" if away > _UNUSUAL else "low" if away < -_UNUSUAL else "medium"
