"""Importer for RAVDESS, acted emotional speech (Livingstone and Russo 2018, PLOS ONE 13(5): e0196391).

Reads the official layout (`Actor_01/03-01-05-01-02-01-01.wav`, videos `01-*.mp4` and `02-*.mp4`) or the same names in
any folder, as wav, flac or mp4. The seven fields of a name are modality (01 sound and picture, 02 picture only, 03
sound only), vocal channel (01 speech, 02 song), emotion, intensity, statement, repetition and actor. Files of one take
become one utterance; songs are left out.

Splits go by actor, odd numbers are men and even ones women: 01 to 14 train, 15 and 16 validate, 17 to 24 test.

A CSV whose first column is `clip` (a file name without its ending) adds facial features to the takes it lists. It is
looked for in the input directory and in a directory `visual` inside, beside or one level above it. Its columns are
standardised with the train actors' mean and standard deviation.

Labels are the acted emotion, for all modalities. RAVDESS has no captions: `prosody_captions` composes them from the
label, the intensity and the measured voice.
"""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import hashlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np

from mecap_jax.data import media
from mecap_jax.data.importers import (
    BadClip,
    Duplicate,
    ImporterError,
    ImportSettings,
    Pending,
    prosody_captions,
    tables,
)
from mecap_jax.data.importers.files import is_junk, read_clip, walk
from mecap_jax.data.importers.prosody_captions import Levels
from mecap_jax.data.utterance import Utterance
from mecap_jax.text_files import decode_text, printable

_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_STATEMENTS = ("Kids are talking by the door.", "Dogs are sitting by the door.")
_SYLLABLES = 7  # of either statement
_TRAIN_ACTORS = range(1, 15)
_VALIDATION_ACTORS = range(15, 17)
# An actor speaks 60 takes: two statements twice, neutral once and seven emotions in two intensities.
OFFICIAL = {"train": {"clips": 840}, "validation": {"clips": 120}, "test": {"clips": 480}}
SPEAKER = (
    "An adult {sex} speaker with a North American accent.",
    "An adult {person} who talks with a North American accent.",
    "The speaker is {an_adult} with a North American accent.",
)
_MEDIA = (".wav", ".flac", ".mp4")
_CLIP = "clip"  # the first column of a table of facial features
_LICENCE = "CC-BY-NC-SA-4.0"

SAMPLE_RATE = 16_000
FRAME, HOP = 1024, 256  # samples
SILENCE_DB = 30.0  # below the loudest frame: silence before and after the sentence
VOICED_SHARE = 0.1  # of the loudest frame's amplitude: frames whose pitch counts
PITCH_HZ = (65.0, 700.0)


class Take(NamedTuple):
    """What the last five fields of a file name say."""

    emotion: str
    intensity: str
    statement: str
    repetition: int
    actor: int

    @property
    def gender(self) -> str:
        return "male" if self.actor % 2 else "female"

    @property
    def split(self) -> str:
        if self.actor in _TRAIN_ACTORS:
            return "train"
        return "validation" if self.actor in _VALIDATION_ACTORS else "test"


@dataclasses.dataclass(frozen=True)
class Voice:
    """A measured voice.

    Attributes:
      pitch_hz: median of the fundamental frequency.
      melody_semitones: its range between the 10th and the 90th percentile.
      loudness_db: root mean square between the silences, relative to full scale.
      rate_per_s: syllables a second between the silences.
    """

    pitch_hz: float
    melody_semitones: float
    loudness_db: float
    rate_per_s: float


def clips(input: Path, settings: ImportSettings) -> list[Pending]:
    """Returns the spoken takes in a directory, ordered by name.

    All voices are measured at once, because a caption compares them with the train actors': pitch and melody within
    a gender.

    Raises:
      ImporterError: no RAVDESS files, or facial features that cannot be read.
    """
    takes, found = _find_takes(input, settings.allow_outside)
    features, provenance, problems = _read_features(input)
    print(f"measuring {len(takes)} voices", file=sys.stderr)
    voices: dict[str, Voice] = {}
    for key, files in takes.items():
        try:
            if key in problems:
                raise ValueError(problems[key])
            voices[key] = measure(media.decode_audio(_sound(input, files, settings.allow_outside)))
        except ValueError as error:
            found.append(BadClip(f"ravdess_{key}", str(error)))
    borders = _tertiles(voices) if voices else {}
    for key, voice in voices.items():
        take = parse(key)
        levels = _levels(voice, take.gender, borders)
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
        label = settings.label(take.emotion)
        utterance = Utterance(
            id=f"ravdess_{key}",
            dataset="ravdess",
            split=take.split,
            speaker=f"ravdess_{take.actor:02d}",
            features={"openwillis": features[key]} if key in features else {},
            transcript=take.statement,
            language="en",
            labels=dict.fromkeys(("audio", "video", "multimodal"), label) if label else {},
            captions=prosody_captions.write(label or take.emotion, take.intensity, take.gender, levels, rng, SPEAKER),
            attributes={
                "gender": take.gender,
                "intensity": take.intensity,
                **{f"{name}_level": level for name, level in dataclasses.asdict(levels).items()},
                **{name: f"{value:.2f}" for name, value in dataclasses.asdict(voice).items()},
                **({"openwillis": provenance} if key in features else {}),
            },
            licence=_LICENCE,
        )
        found.append(functools.partial(_with_media, utterance, input, takes[key], settings.allow_outside))
    return found


def files_beside(input: Path, settings: ImportSettings) -> list[Path]:
    """The table of facial features, which may stand outside the input directory."""
    return [path for path in [_find_table(input)] if path]


def parse(key: str) -> Take:
    """Reads the fields of "emotion-intensity-statement-repetition-actor".

    Raises:
      ValueError: not five two-digit numbers, or one out of range.
    """
    fields = key.split("-")
    if len(fields) != 5 or not all(len(field) == 2 and field.isascii() and field.isdigit() for field in fields):
        raise ValueError(f"{key!r} is not emotion-intensity-statement-repetition-actor")
    numbers = tuple(map(int, fields))
    for number, most, name in zip(numbers, (8, 2, 2, 2, 24), ("emotion", "intensity", *Take._fields[2:]), strict=True):
        if not 1 <= number <= most:
            raise ValueError(f"{key!r}: {name} must be 01 to {most:02d}, got {number:02d}")
    emotion, intensity, statement, repetition, actor = numbers
    if emotion == 1 and intensity == 2:
        raise ValueError(f"{key!r}: there is no strong neutral")
    return Take(
        _EMOTIONS[emotion - 1], ("normal", "strong")[intensity - 1], _STATEMENTS[statement - 1], repetition, actor
    )


def measure(waveform: np.ndarray) -> Voice:
    """Measures the voice in a recording of one of the two statements (YIN for the pitch).

    Args:
      waveform: float32 `[S]` at 16 kHz.

    Raises:
      ValueError: silence, or too little voice for a pitch.
    """
    if not np.abs(waveform).max() > 0:
        raise ValueError("audio: silent, there is no voice to measure")
    speech, _ = librosa.effects.trim(waveform, top_db=SILENCE_DB, frame_length=FRAME, hop_length=HOP)
    if len(speech) < 4 * FRAME:
        raise ValueError(f"audio: only {len(speech) / SAMPLE_RATE:.2f} s between the silences")
    low, high = PITCH_HZ
    frequency = librosa.yin(speech, fmin=low, fmax=high, sr=SAMPLE_RATE, frame_length=FRAME, hop_length=HOP)
    level = librosa.feature.rms(y=speech, frame_length=FRAME, hop_length=HOP)[0]
    loud = level > VOICED_SHARE * level.max()
    semitones = 12 * np.log2(frequency)
    median = float(np.median(semitones[loud]))
    # Jumps, and distances of nearly an octave, are errors of the pitch tracker rather than melody.
    sung = semitones[loud & (np.abs(np.gradient(semitones)) < 2) & (np.abs(semitones - median) < 10)]
    melody = float(np.subtract(*np.percentile(sung, (90, 10)))) if len(sung) else 0.0
    return Voice(
        pitch_hz=2 ** (median / 12),
        melody_semitones=melody,
        loudness_db=20 * math.log10(float(np.sqrt(np.mean(np.square(speech, dtype=np.float64))))),
        rate_per_s=_SYLLABLES / (len(speech) / SAMPLE_RATE),
    )


def _find_takes(directory: Path, allow_outside: bool) -> tuple[dict[str, dict[str, str]], list[Pending]]:
    """Returns the files (field -> relative path) of each take, and what is left out: other names, second files."""
    takes: dict[str, dict[str, str]] = {}
    left_out: list[Pending] = []
    songs = 0
    for path in walk(directory, allow_outside):
        if path.suffix.lower() not in _MEDIA:
            continue
        name = str(path)
        modality, _, rest = path.stem.partition("-")
        channel, _, key = rest.partition("-")
        try:
            if modality not in ("01", "02", "03") or channel not in ("01", "02"):
                raise ValueError(f"{path.name!r} is not named as RAVDESS names its files")
            parse(key)
        except ValueError as error:
            left_out.append(BadClip(name, str(error)))
            continue
        if channel == "02":
            songs += 1
            continue
        files = takes.setdefault(key, {})
        field = "audio" if modality == "03" else "video"
        if modality == "02" and Path(files.get("video", "")).name.startswith("01"):
            continue  # the picture of 02 is that of 01, which has sound as well
        if field in files:
            left_out.append(_second_file(directory, name, files[field]))
            continue
        files[field] = name
    if songs:
        print(f"{printable(str(directory))}: {songs} songs are left out, only speech is imported", file=sys.stderr)
    if not takes:
        raise ImporterError(f"{directory} holds no RAVDESS speech files (such as 03-01-05-01-02-01-01.wav)")
    return dict(sorted(takes.items())), left_out


def _second_file(directory: Path, name: str, taken: str) -> BadClip | Duplicate:
    try:
        if filecmp.cmp(directory / name, directory / taken, shallow=False):
            return Duplicate(name, taken)
    except OSError as error:
        return BadClip(name, f"cannot read {name!r}: {error.strerror}")
    return BadClip(name, f"same take as {taken!r}")


def _with_media(
    utterance: Utterance, directory: Path, files: Mapping[str, str], allow_outside: bool
) -> Utterance | BadClip:
    try:
        read = {field: read_clip(directory, path, allow_outside) for field, path in files.items()}
    except ValueError as error:
        return BadClip(utterance.id, str(error))
    return dataclasses.replace(utterance, **read)


def _sound(directory: Path, files: Mapping[str, str], allow_outside: bool) -> bytes:
    return read_clip(directory, files.get("audio", files.get("video", "")), allow_outside)


# --- facial features --------------------------------------------------------------------------------------------


def _read_features(directory: Path) -> tuple[dict[str, np.ndarray], str, dict[str, str]]:
    """Returns standardised features float32 `[1, columns]` by take, where they come from, and what is wrong by take."""
    path = _find_table(directory)
    if path is None:
        return {}, "", {}
    values: dict[str, np.ndarray] = {}
    problems: dict[str, str] = {}
    columns: list[str] = []
    for number, row in tables.read_table(path):
        key = ""
        try:
            if isinstance(row, ValueError):
                raise row
            columns = columns or [name for name in row if name != _CLIP]
            take = Path(row.get(_CLIP, "")).stem[6:]  # without modality and channel
            parse(take)
            key = take
            values[key] = _numbers(row, columns)
        except ValueError as error:
            problems[key or f"line {number}"] = f"{path.name}, line {number}: {error}"
    if lost := [problem for key, problem in problems.items() if key.startswith("line ")]:
        print(f"{path}: lines that are of no take: {len(lost)}, e.g. {printable(lost[0])}", file=sys.stderr)
    train = {key: row for key, row in values.items() if parse(key).split == "train"}
    if not train:
        hint = f" ({next(iter(problems.values()))})" if problems else ""
        raise ImporterError(f"{path} has no train actor (01 to 14) to standardise its columns with{hint}")
    table = np.stack(list(train.values()))
    mean, deviation = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-6)
    actors = {parse(key).actor for key in train}
    provenance = f"{path.name}, columns standardised over {len(train)} takes of {len(actors)} train actors"
    features = {key: ((row - mean) / deviation).astype(np.float32)[None] for key, row in values.items()}
    return features, provenance, problems


def _numbers(row: Mapping[str, str], columns: list[str]) -> np.ndarray:
    if missing := set(columns) - set(row):
        raise ValueError(f"column {min(missing)!r} is empty")
    numbers = np.array([row[name] for name in columns], np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not finite")
    return numbers


def _find_table(directory: Path) -> Path | None:
    directory = directory.resolve()
    places = (directory, directory / "visual", directory.parent / "visual", directory.parent.parent / "visual")
    candidates = {path for place in places for path in place.glob("*.csv") if path.is_file() and not is_junk(path)}
    found = [path for path in sorted(candidates) if _is_feature_table(path)]
    if len(found) > 1:
        raise ImporterError(f"more than one table of facial features: {', '.join(map(str, found))}")
    return found[0] if found else None


def _is_feature_table(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = decode_text(file.read(4096)).lstrip()
    except OSError:
        return False
    return start.startswith((f"{_CLIP},", f"{_CLIP};", f'"{_CLIP}"'))


# --- comparison -------------------------------------------------------------------------------------------------


def _tertiles(voices: Mapping[str, Voice]) -> dict[tuple[str, str], np.ndarray]:
    """Returns the borders between thirds of the train actors' voices (of all, without train actors).

    Keys are (measure, gender); pitch and melody are compared inside a gender, the other measures among all.
    """
    train = {key: voice for key, voice in voices.items() if parse(key).split == "train"} or voices
    borders = {}
    for name in (field.name for field in dataclasses.fields(Voice)):
        for gender in ("male", "female"):
            alike = [voice for key, voice in train.items() if parse(key).gender == gender]
            if name in ("loudness_db", "rate_per_s") or not alike:
                alike = list(train.values())
            borders[name, gender] = np.percentile([getattr(voice, name) for voice in alike], (100 / 3, 200 / 3))
    return borders


def _levels(voice: Voice, gender: str, borders: Mapping[tuple[str, str], np.ndarray]) -> Levels:
    def level(name: str) -> str:
        return ("low", "medium", "high")[int(np.searchsorted(borders[name, gender], getattr(voice, name)))]

    return Levels(
        pitch=level("pitch_hz"),
        melody=level("melody_semitones"),
        loudness=level("loudness_db"),
        rate=level("rate_per_s"),
    )
