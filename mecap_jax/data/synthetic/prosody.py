"""How an emotion sounds: `prosody_of` draws the parameters of one clip, `speak` makes its waveform.

Parameters are relative to the speaker's habitual voice, so captions can state them as they are. Directions follow
the acoustic profiles of vocal emotion (Banse and Scherer 1996; Juslin and Laukka 2003); sizes are larger than in
life, because a small model has to learn them from some hundred clips.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mecap_jax.data.synthetic import espeak
from mecap_jax.data.synthetic.speakers import Speaker

SAMPLE_RATE = espeak.SAMPLE_RATE
MAX_SECONDS = 2.4

_NEUTRAL_LEVEL_DB = -25.0  # root mean square of a neutral clip, below full scale
_LANGUAGE_RATE = {"en": 1.0, "zh": 1.13}  # eSpeak counts words; this makes the sentences about equally long
# eSpeak's pitch setting -> semitones, measured on its default voice.
_PITCH_SETTING, _PITCH_SEMITONES = (0, 25, 50, 75, 99), (-6.3, -3.6, 0.0, 4.2, 8.6)


@dataclasses.dataclass(frozen=True)
class Prosody:
    """Prosody of one clip, relative to the speaker's neutral voice.

    Attributes:
      tempo: ratio of speaking rates.
      pitch: semitones.
      pitch_range: ratio of pitch ranges.
      loudness: decibels.
      brightness: decibels at 4 kHz against 500 Hz.
      glide: semitones between start and end; positive rises.
      tremor, breath, roughness, creak: strength of a voice quality in [0, 1].
    """

    tempo: float = 1.0
    pitch: float = 0.0
    pitch_range: float = 1.0
    loudness: float = 0.0
    brightness: float = 0.0
    glide: float = 0.0
    tremor: float = 0.0
    breath: float = 0.0
    roughness: float = 0.0
    creak: float = 0.0


# At full strength; tempo and range as logarithms to base 2, so that every entry scales linearly with intensity.
_PROFILES = {
    "neutral": dict(),
    "happy": dict(tempo=0.26, pitch=4.5, pitch_range=0.85, loudness=5.0, brightness=5.0, glide=1.0),
    "sad": dict(tempo=-0.45, pitch=-3.0, pitch_range=-1.3, loudness=-9.0, brightness=-9.0, glide=-3.0, breath=0.4),
    "angry": dict(tempo=0.22, pitch=1.0, pitch_range=0.3, loudness=10.0, brightness=7.0, glide=-1.0, roughness=1.0),
    "surprised": dict(tempo=-0.12, pitch=7.5, pitch_range=0.9, loudness=3.0, brightness=1.0, glide=8.0),
    "disgusted": dict(tempo=-0.38, pitch=-4.5, pitch_range=-0.3, loudness=1.5, brightness=-3.0, glide=-2.0, creak=1.0),
    "fearful": dict(tempo=0.42, pitch=5.0, pitch_range=-0.8, loudness=-5.0, brightness=1.0, tremor=1.0, breath=0.8),
}
_MOST_BEYOND = 3.0  # semitones
_TEMPO_LIMITS = (0.72, 1.38)
_STRENGTH = {"mild": 0.55, "moderate": 0.8, "strong": 1.1}


def prosody_of(emotion: str, intensity: str, rng: np.random.Generator) -> Prosody:
    """Draws the prosody of one clip.

    Each parameter varies by itself, so that clips of one emotion and intensity still differ in what can be said
    about them.
    """
    profile = {name: 0.0 for name in (f.name for f in dataclasses.fields(Prosody))} | _PROFILES[emotion]
    strength = 0.0 if emotion == "neutral" else _STRENGTH[intensity]
    value = {name: size * strength * rng.uniform(0.7, 1.3) for name, size in profile.items()}
    jitter = dict(tempo=0.05, pitch=0.4, pitch_range=0.1, loudness=0.7, brightness=0.5, glide=0.4)
    value |= {name: value[name] + rng.normal(0.0, sd) for name, sd in jitter.items()}
    for name in ("tremor", "breath", "roughness", "creak"):
        value[name] = min(value[name], 1.0)
    value["tempo"] = float(np.clip(2.0 ** value["tempo"], *_TEMPO_LIMITS))
    value["pitch_range"] = 2.0 ** value["pitch_range"]
    return Prosody(**{name: float(x) for name, x in value.items()})


def speak(text: str, language: str, speaker: Speaker, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Returns `text` as `speaker` says it with `prosody`: float32 mono in [-1, 1] at `SAMPLE_RATE`.

    Raises:
      SpeechError: eSpeak NG refuses the voice or the text, or the clip is longer than `MAX_SECONDS`.
    """
    semitones = speaker.pitch + prosody.pitch - 12.0 * np.log2(speaker.vocal_tract)
    waveform = espeak.synthesize(
        text,
        voice_name(speaker, language),
        rate=round(speaker.rate * _LANGUAGE_RATE[language] * prosody.tempo / speaker.vocal_tract),
        pitch=round(float(np.interp(semitones, _PITCH_SEMITONES, _PITCH_SETTING))),
        pitch_range=round(min(50.0 * prosody.pitch_range, 99.0)),
    )
    # What eSpeak's pitch setting cannot reach is played faster: a raised larynx shortens the vocal tract, too.
    beyond = float(np.clip(semitones - _PITCH_SEMITONES[-1], 0.0, _MOST_BEYOND))
    waveform = _warp(_trim(waveform), speaker.vocal_tract * 2.0 ** (beyond / 12.0), prosody)
    waveform = _roughen(waveform, prosody.roughness)
    waveform = _creak(waveform, prosody.creak)
    waveform = _tilt(waveform, prosody.brightness)
    waveform = _breathe(waveform, prosody.breath, rng)
    waveform = _level(waveform, _NEUTRAL_LEVEL_DB + prosody.loudness)
    if len(waveform) > MAX_SECONDS * SAMPLE_RATE:
        raise espeak.SpeechError(
            f"{len(waveform) / SAMPLE_RATE:.2f} s of speech exceed {MAX_SECONDS} s: {text!r} by {speaker.id}"
        )
    return waveform


def voice_name(speaker: Speaker, language: str) -> str:
    """Returns eSpeak NG's name of the speaker's voice in a language, such as "en-us+m3"."""
    return f"{'cmn' if language == 'zh' else speaker.accent}+{speaker.variant}"


def _trim(waveform: np.ndarray, pause: float = 0.05) -> np.ndarray:
    """Cuts leading and trailing silence down to `pause` seconds."""
    heard = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    margin = int(pause * SAMPLE_RATE)
    return waveform[max(0, heard[0] - margin) : heard[-1] + margin]


def _warp(waveform: np.ndarray, vocal_tract: float, prosody: Prosody) -> np.ndarray:
    """Plays the waveform at a varying speed: vocal tract length, pitch glide and tremor in one resampling."""
    time = np.arange(len(waveform)) / SAMPLE_RATE
    # Half of the glide falls into the last third, where listeners hear the intonation of a question or a sigh.
    position = time / time[-1]
    glide = prosody.glide * (0.5 * position + 0.5 * np.clip(3.0 * position - 2.0, 0.0, 1.0))
    semitones = glide - glide.mean() + 0.9 * prosody.tremor * np.sin(2.0 * np.pi * 6.5 * time)
    speed = vocal_tract * 2.0 ** (semitones / 12.0)
    played_at = np.cumsum(1.0 / speed) / SAMPLE_RATE
    output_time = np.arange(int(played_at[-1] * SAMPLE_RATE)) / SAMPLE_RATE
    warped = np.interp(output_time, played_at, waveform)
    return warped * (1.0 - 0.35 * prosody.tremor * (1.0 + np.sin(2.0 * np.pi * 6.5 * output_time)))


def _roughen(waveform: np.ndarray, roughness: float) -> np.ndarray:
    """Overdrives the voice: a pressed, shouted quality."""
    if roughness == 0.0:
        return waveform
    gain = 1.0 + 9.0 * roughness
    peak = np.abs(waveform).max()
    return np.tanh(gain * waveform / peak) * peak


def _creak(waveform: np.ndarray, creak: float) -> np.ndarray:
    """Low pulses as in creaky voice: the amplitude drops 35 times a second."""
    phase = np.arange(len(waveform)) * (35.0 / SAMPLE_RATE)
    return waveform * (1.0 - 0.8 * creak * (np.sin(2.0 * np.pi * phase) > 0.0))


def _tilt(waveform: np.ndarray, decibels: float) -> np.ndarray:
    """Raises (or lowers) the spectrum above 500 Hz by `decibels` at 4 kHz, in proportion to octaves."""
    frequency = np.fft.rfftfreq(len(waveform), 1.0 / SAMPLE_RATE)
    octaves = np.clip(np.log2(np.maximum(frequency, 1.0) / 500.0), 0.0, 4.0)
    return np.fft.irfft(np.fft.rfft(waveform) * 10.0 ** (decibels * octaves / 60.0), len(waveform))


def _breathe(waveform: np.ndarray, breath: float, rng: np.random.Generator) -> np.ndarray:
    """Adds aspiration noise that follows the envelope of the voice."""
    if breath == 0.0:
        return waveform
    noise = np.diff(rng.standard_normal(len(waveform) + 1))
    return waveform + 0.35 * breath * noise * _envelope(waveform)


def _envelope(waveform: np.ndarray, window: float = 0.02) -> np.ndarray:
    size = int(window * SAMPLE_RATE)
    total = np.cumsum(np.concatenate([np.zeros(size), np.square(waveform)]))
    return np.sqrt(np.maximum(total[size:] - total[:-size], 0.0) / size)


def _level(waveform: np.ndarray, decibels: float) -> np.ndarray:
    """Scales to a root mean square of `decibels` below full scale, with a soft ceiling."""
    scaled = waveform * 10.0 ** (decibels / 20.0) / np.sqrt(np.mean(np.square(waveform)))
    return np.where(
        np.abs(scaled) < 0.7, scaled, np.sign(scaled) * (0.7 + 0.29 * np.tanh((np.abs(scaled) - 0.7) / 0.29))
    ).astype(np.float32)
