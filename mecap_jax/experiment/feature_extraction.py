"""Features of clips by a frozen encoder, as files in EmotionTalk's layout, which importers find by clip.

`OUTPUT/<name>-FRA/<id>.npy` holds float32 `[states, width]`, `OUTPUT/<name>-UTT/<id>.npy` their mean `[width]`. In each
directory `extractor.json` says what they were made with, `sources.jsonl` from which media: what is there of the same
media is not made again, and what is there of others is neither taken for it nor overwritten.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mecap_jax.data import media
from mecap_jax.data.features import SAMPLE_RATE
from mecap_jax.data.inspection import Item, Pending, read
from mecap_jax.data.manifest import BadClip
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment.frozen_encoder import EncoderError, FrozenEncoder, Prepared
from mecap_jax.json_files import as_json, parse_json, read_file, read_json_object, to_json, write_json
from mecap_jax.text_files import printable
from mecap_jax.threads import ahead

FRAMES, UTTERANCE = "FRA", "UTT"
RECORD, _SOURCES = "extractor.json", "sources.jsonl"
_LARGEST_SOURCES = 2**30  # bytes: millions of clips
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
        own = {"encoder": encoder.name, "weights_sha256": encoder.weights_sha256, "layer": layer, **of_pictures}
        return own | encoder.described


class Extracted(NamedTuple):
    """What became of a clip: made, there already, or why there are no features of it."""

    id: str
    made: bool
    problem: str = ""


def check_name(name: str) -> None:
    """Raises `EncoderError` where features cannot be called so."""
    if Path(name).name != name or name.startswith("."):
        raise EncoderError(f"--name: {name!r:.80} is no name of a directory")


def refuse_links(root: Path, output: Path, name: str) -> None:
    """Refuses to write features called `name` in `output` through a link that leads out of `root`.

    Raises:
      EncoderError: names the link.
    """
    directories = [output / f"{name}-{kind}" for kind in (FRAMES, UTTERANCE)]
    inner = [entry for path in directories if path.is_dir() for entry in os.scandir(path) if entry.is_symlink()]
    for path in (output, lock_file(output, name), *directories, *map(Path, inner)):
        if not path.resolve().is_relative_to(root.resolve()):
            raise EncoderError(f"{path} leads out of {root}, and nothing is written there (--allow_outside does)")


def lock_file(output: Path, name: str) -> Path:
    """What one process at a time holds that writes features called `name`."""
    return output / f".{name}.lock"


def open_output(output: Path, name: str, encoder: FrozenEncoder, extraction: Extraction) -> dict[str, Path]:
    """Makes the directories of each kind, and says in them what they are made with.

    Raises:
      EncoderError: they hold features that were made with something else.
    """
    wanted = as_json(extraction.described(encoder))
    directories = {kind: output / f"{name}-{kind}" for kind in extraction.kinds}
    for directory in directories.values():
        if not (directory / RECORD).is_file() and not any(directory.glob("*.npy")):
            continue
        try:
            found = read_json_object(directory / RECORD)
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
        write_json(directory / RECORD, wanted)
        lines = [to_json({"id": id, "sha256": sha256}) for id, sha256 in _sources(directory).items()]
        write_whole(directory / _SOURCES, "".join(f"{line}\n" for line in lines).encode())
    return directories


def _sources(directory: Path) -> dict[str, str]:
    """The sha256 of the medium that each clip's features were made from; a line that a crash cut short is left out."""
    sources = {}
    path = directory / _SOURCES
    for line in read_file(path, _LARGEST_SOURCES).splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            row = parse_json(line)
            sources[str(row["id"])] = str(row["sha256"])
    return sources


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

    sources = {directory: _sources(directory) for directory in directories.values()}

    def open_clip(clip: Pending) -> _Opened | Extracted:
        return _open(read(clip), encoder, extraction, sources)

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

    def __init__(self, id: str, sha256: str, pieces: list[Prepared]):
        self.id, self.sha256, self.pieces = id, sha256, pieces
        self.states: list[np.ndarray | None] = [None] * len(pieces)


def _open(
    item: Item, encoder: FrozenEncoder, extraction: Extraction, sources: Mapping[Path, Mapping[str, str]]
) -> _Opened | Extracted:
    if not isinstance(item, Utterance):
        reason = item.reason if isinstance(item, BadClip) else f"is a copy of {item.of}"
        return Extracted(item.id, False, reason)
    if not names_a_file(item.id):
        return Extracted(item.id, False, "its id is no name of a file")
    try:
        medium = _medium(item, encoder)
        sha256 = hashlib.sha256(medium).hexdigest()
        there = [path for directory in sources if (path := directory / f"{item.id}.npy").is_file()]
        for path in there:
            if (found := sources[path.parent].get(item.id)) != sha256:
                raise ValueError(
                    f"{path} was made from a file with sha256 {found}, which is {sha256} now; remove it to make it anew"
                )
        if len(there) == len(sources):
            return Extracted(item.id, False)
        return _Opened(item.id, sha256, encoder.prepare(_decode(medium, encoder, extraction)))
    except ValueError as error:  # media, too
        return Extracted(item.id, False, str(error))


def names_a_file(id: str) -> bool:
    """Whether a clip's features can be called by its id."""
    too_long = len(id.encode("utf-8", "surrogateescape")) > _LONGEST_ID
    return Path(id).name == id and not id.startswith(".") and "\0" not in id and not too_long


def _medium(item: Utterance, encoder: FrozenEncoder) -> bytes:
    """The encoded file that the features are made from."""
    pictures = encoder.modality == "video"
    medium = item.video if pictures or item.audio is None else item.audio
    if medium is None:
        raise ValueError("it has no video" if pictures else "it has no sound")
    return medium


def _decode(medium: bytes, encoder: FrozenEncoder, extraction: Extraction) -> np.ndarray:
    if encoder.modality == "audio":
        return media.decode_audio(medium, SAMPLE_RATE)
    return media.decode_video(medium, extraction.max_frames, extraction.fps, shrink=encoder.shrink).pixels


class _Batches:
    """Gathers pieces of one shape and runs the encoder over as many as fit into a batch."""

    def __init__(self, encoder: FrozenEncoder, extraction: Extraction):
        self._encoder, self._layer, self._size = encoder, extraction.layer, extraction.batch
        self._frames = FRAMES in extraction.kinds
        self._waiting: dict[Any, list[tuple[_Opened, int]]] = collections.defaultdict(list)

    def add(self, clip: _Opened) -> Iterator[_Opened]:
        """Adds a clip; yields those that are complete now."""
        for number, piece in enumerate(clip.pieces):
            pieces = self._waiting[self._encoder.shape(piece)]
            pieces.append((clip, number))
            if len(pieces) == self._size:
                yield from self._run(pieces)
                pieces.clear()

    def finish(self) -> Iterator[_Opened]:
        """Encodes what is left, short pieces beside long ones; only the last batch is smaller, with its own program."""
        left = [waiting for pieces in self._waiting.values() for waiting in pieces]
        left.sort(key=lambda waiting: -len(waiting[0].pieces[waiting[1]].array))
        for i in range(0, len(left), self._size):
            yield from self._run(left[i : i + self._size])

    def _run(self, pieces: Sequence[tuple[_Opened, int]]) -> Iterator[_Opened]:
        inputs = [clip.pieces[number] for clip, number in pieces]
        for (clip, number), states in zip(pieces, self._encoder.encode(inputs, self._layer)):
            # All layers of every state of a long sound would fill the memory.
            clip.states[number] = states if self._frames else states.mean(axis=0, keepdims=True)
        yield from dict.fromkeys(clip for clip, _ in pieces if all(states is not None for states in clip.states))


def _save(clip: _Opened, directories: dict[str, Path]) -> Extracted:
    if not all(np.isfinite(states).all() for states in clip.states):
        return Extracted(clip.id, False, "its states are not finite")
    counts = [piece.states for piece in clip.pieces]
    mean = np.average([states.mean(axis=0) for states in clip.states], axis=0, weights=counts).astype(np.float32)
    for kind, directory in directories.items():
        with (directory / _SOURCES).open("a", encoding="utf-8") as file:  # first: features never lack their line
            file.write(to_json({"id": clip.id, "sha256": clip.sha256}) + "\n")
        data = io.BytesIO()
        np.save(data, np.concatenate(clip.states) if kind == FRAMES else mean, allow_pickle=False)
        write_whole(directory / f"{clip.id}.npy", data.getvalue())
    return Extracted(clip.id, True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file as a whole: an interrupted run leaves none that is half there."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def summarise(found: Iterable[Extracted]) -> str:
    """How many clips were made, were there, and could not be made."""
    found = list(found)
    made, bad = sum(clip.made for clip in found), [clip for clip in found if clip.problem]
    there = len(found) - made - len(bad)
    parts = [f"{made} clips made"] + ([f"{there} there already"] if there else [])
    parts += [f"{len(bad)} without features, such as {printable(bad[0].id)}: {bad[0].problem}"] if bad else []
    return ", ".join(parts)
