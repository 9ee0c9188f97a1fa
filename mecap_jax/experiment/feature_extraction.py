"""Features of clips by a frozen encoder, as files in EmotionTalk's layout, which importers find by clip.

`OUTPUT/<name>-FRA/<id>.npy` holds float32 `[states, width]`, `OUTPUT/<name>-UTT/<id>.npy` their mean `[width]`. What is
there already is not made again; `extractor.json` in each directory says what it was made with.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mecap_jax.data import media
from mecap_jax.data.features import SAMPLE_RATE
from mecap_jax.data.inspection import Item, Pending, read
from mecap_jax.data.manifest import BadClip
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment.frozen_encoder import EncoderError, FrozenEncoder, Prepared
from mecap_jax.json_files import as_json, read_json_object, write_json
from mecap_jax.text_files import printable
from mecap_jax.threads import ahead

FRAMES, UTTERANCE = "FRA", "UTT"
_RECORD = "extractor.json"
_AHEAD = 4  # decoded clips that wait
_LONGEST_ID = 240  # bytes: what a file system takes, less endings


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What is extracted.

    Attributes:
      layer: see `FrozenEncoder.encode`.
      kinds: `FRAMES` (every state), `UTTERANCE` (their mean), or both.
      fps: pictures a second that are looked at; 0 takes `max_frames` evenly spaced ones.
      max_frames: most pictures of a clip.
      batch: pieces that are encoded at once.
    """

    layer: int | str
    kinds: tuple[str, ...] = (FRAMES, UTTERANCE)
    fps: float = 2.0
    max_frames: int = 64
    batch: int = 8

    def described(self, encoder: FrozenEncoder) -> dict[str, Any]:
        """What the numbers depend on, as JSON types."""
        of_pictures = {"fps": self.fps, "max_frames": self.max_frames} if encoder.modality == "video" else {}
        layer = self.layer + encoder.layers + 1 if isinstance(self.layer, int) and self.layer < 0 else self.layer
        return {"encoder": encoder.name, "weights_sha256": encoder.weights_sha256, "layer": layer, **of_pictures}


class Extracted(NamedTuple):
    """What became of a clip: made, there already, or why there are no features of it."""

    id: str
    made: bool
    problem: str = ""


def check_name(name: str) -> None:
    """Raises `EncoderError` where features cannot be called so."""
    if Path(name).name != name or name.startswith("."):
        raise EncoderError(f"--name: {name!r:.80} is no name of a directory")


def open_output(output: Path, name: str, encoder: FrozenEncoder, extraction: Extraction) -> dict[str, Path]:
    """Makes the directories of each kind, and says in them what they are made with.

    Raises:
      EncoderError: they hold features that were made with something else.
    """
    wanted = as_json(extraction.described(encoder))
    directories = {kind: output / f"{name}-{kind}" for kind in extraction.kinds}
    for directory in directories.values():
        if not (directory / _RECORD).is_file() and not any(directory.glob("*.npy")):
            continue
        try:
            found = read_json_object(directory / _RECORD)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{directory} holds features, and not how they were made: {error}") from None
        differing = [
            f"{key}: {found.get(key)!r:.80} there, {wanted.get(key)!r:.80} asked"
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        ]
        if differing:
            raise EncoderError(f"{directory} holds other features ({'; '.join(differing)}); choose another --name")
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / _RECORD, wanted)
    return directories


def extract(
    clips: Iterable[Pending],
    encoder: FrozenEncoder,
    extraction: Extraction,
    directories: dict[str, Path],
) -> Iterator[Extracted]:
    """Writes the features of every clip; yields what became of each, as they are done.

    Args:
      clips: what importers return; functions are called in threads, a few ahead.
      directories: by kind, as `open_output` returns them.
    """

    def open_clip(clip: Pending) -> _Opened | Extracted:
        return _open(read(clip), encoder, extraction, directories)

    batches, seen = _Batches(encoder, extraction), set()
    for opened in ahead(open_clip, clips, _AHEAD):
        if opened.id in seen:
            yield Extracted(opened.id, False, "its id occurs twice, and the first one has the features")
            continue
        seen.add(opened.id)
        if isinstance(opened, Extracted):
            yield opened
            continue
        for done in batches.add(opened):
            yield _save(done, directories)
    for done in batches.finish():
        yield _save(done, directories)


class _Opened:
    """A clip whose pieces wait for the encoder."""

    def __init__(self, id: str, pieces: list[Prepared]):
        self.id, self.pieces = id, pieces
        self.states: list[np.ndarray | None] = [None] * len(pieces)


def _open(
    item: Item, encoder: FrozenEncoder, extraction: Extraction, directories: dict[str, Path]
) -> _Opened | Extracted:
    if not isinstance(item, Utterance):
        reason = item.reason if isinstance(item, BadClip) else f"is a copy of {item.of}"
        return Extracted(item.id, False, reason)
    too_long = len(item.id.encode("utf-8", "surrogateescape")) > _LONGEST_ID
    if Path(item.id).name != item.id or item.id.startswith(".") or "\0" in item.id or too_long:
        return Extracted(item.id, False, "its id is no name of a file")
    if all((directory / f"{item.id}.npy").is_file() for directory in directories.values()):
        return Extracted(item.id, False)
    try:
        return _Opened(item.id, encoder.prepare(_medium(item, encoder, extraction)))
    except ValueError as error:  # media, too
        return Extracted(item.id, False, str(error))


def _medium(item: Utterance, encoder: FrozenEncoder, extraction: Extraction) -> np.ndarray:
    if encoder.modality == "video":
        if item.video is None:
            raise ValueError("it has no video")
        frames = media.decode_video(item.video, extraction.max_frames, extraction.fps, shrink=encoder.shrink)
        return frames.pixels
    sound = item.video if item.audio is None else item.audio
    if sound is None:
        raise ValueError("it has no sound")
    return media.decode_audio(sound, SAMPLE_RATE)


class _Batches:
    """Gathers pieces of one shape and runs the encoder over as many as fit into a batch."""

    def __init__(self, encoder: FrozenEncoder, extraction: Extraction):
        self._encoder, self._layer, self._size = encoder, extraction.layer, extraction.batch
        self._waiting: dict[Any, list[tuple[_Opened, int]]] = collections.defaultdict(list)

    def add(self, clip: _Opened) -> Iterator[_Opened]:
        """Adds a clip; yields those that are complete now."""
        for number, piece in enumerate(clip.pieces):
            pieces = self._waiting[self._encoder.shape(piece)]
            pieces.append((clip, number))
            if len(pieces) == self._size:
                yield from self._run(pieces)

    def finish(self) -> Iterator[_Opened]:
        """Encodes what is left."""
        for pieces in self._waiting.values():
            yield from self._run(pieces)

    def _run(self, pieces: list[tuple[_Opened, int]]) -> Iterator[_Opened]:
        if not pieces:
            return
        inputs = [clip.pieces[number] for clip, number in pieces]
        filled = [*inputs, *[inputs[-1]] * (self._size - len(inputs))]  # one program a shape
        for (clip, number), states in zip(pieces, self._encoder.encode(filled, self._layer)):
            clip.states[number] = states
        complete = dict.fromkeys(clip for clip, _ in pieces if all(states is not None for states in clip.states))
        pieces.clear()
        yield from complete


def _save(clip: _Opened, directories: dict[str, Path]) -> Extracted:
    states = np.concatenate(clip.states)
    if not np.isfinite(states).all():
        return Extracted(clip.id, False, "its states are not finite")
    for kind, directory in directories.items():
        _write(directory / f"{clip.id}.npy", states if kind == FRAMES else states.mean(axis=0))
    return Extracted(clip.id, True)


def _write(path: Path, array: np.ndarray) -> None:
    """Writes a file as a whole: an interrupted run leaves none that is half there."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(data.getvalue())
    os.replace(temporary, path)


def summarise(found: Iterable[Extracted]) -> str:
    """How many clips were made, were there, and could not be made."""
    found = list(found)
    made, bad = sum(clip.made for clip in found), [clip for clip in found if clip.problem]
    there = len(found) - made - len(bad)
    parts = [f"{made} clips made"] + ([f"{there} there already"] if there else [])
    parts += [f"{len(bad)} without features, such as {printable(bad[0].id)}: {bad[0].problem}"] if bad else []
    return ", ".join(parts)
