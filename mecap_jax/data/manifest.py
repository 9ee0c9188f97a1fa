"""What a directory of shards says about itself: its manifest and its index, checked before anything relies on them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mecap_jax.data.language import caption_language
from mecap_jax.text_files import printable

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.jsonl"


class ShardError(ValueError):
    """Shards that cannot be written or must not be read; the message names the file."""


@dataclasses.dataclass(frozen=True)
class BadClip:
    """A clip that was left out: its id and the reason, in one printable line each, for the manifest and the report."""

    id: str
    reason: str

    def __post_init__(self):
        for field in ("id", "reason"):
            object.__setattr__(self, field, printable(" ".join(getattr(self, field).split())))


@dataclasses.dataclass(frozen=True)
class IndexRow:
    """What is known of a record without reading it.

    Attributes:
      shard, position: file and place in it.
      labels, valence, attributes: as in `Utterance`, without attributes that are longer than 200 characters.
      transcript, captions: what was said, and the references by kind: text is small, and nobody should have to read
        media to learn a vocabulary or anchors from it.
      features: shape (frames, dim) by name.
      has_audio: whether there is sound, as a file of its own or as the video's sound track.
      has_video: whether there is a video.
      seconds: length of the sound; of the video where there is none; 0 without both.
      video_seconds, frames, width, height: of the video, 0 without one.
    """

    id: str
    dataset: str
    split: str
    shard: str
    position: int
    speaker: str
    dialogue: str | None
    language: str
    labels: Mapping[str, str]
    valence: float | None
    attributes: Mapping[str, str]
    transcript: str
    captions: Mapping[str, tuple[str, ...]]
    features: Mapping[str, tuple[int, int]]
    has_audio: bool
    has_video: bool
    seconds: float
    video_seconds: float
    frames: int
    width: int
    height: int

    @property
    def label(self) -> str | None:
        """The multimodal emotion label, or None where there is none."""
        return self.labels.get("multimodal")

    @property
    def caption_language(self) -> str:
        """BCP-47 code of the captions: the attribute of that name, else what their script says; "" without captions."""
        declared = self.attributes.get("caption_language", "") if self.captions else ""
        return declared or caption_language(text for texts in self.captions.values() for text in texts)


def describe(rows: Sequence[IndexRow], source: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says that data are: whether a program made them, which corpora, captions in which languages.

    Returns `synthetic` (bool), `datasets` and `caption_languages` (clips by name, the most frequent first).
    """
    languages = Counter(language for row in rows if (language := row.caption_language))
    return {
        "synthetic": source.get("importer") == "synthetic",
        "datasets": dict(Counter(row.dataset for row in rows).most_common()),
        "caption_languages": dict(languages.most_common()),
    }


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads and checks the manifest.

    Raises:
      ShardError: none, another schema version, or ill-formed; a file name that is more than a name.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ShardError(f"{directory} holds no shards: there is no {MANIFEST}; scripts/prepare_data.py makes them")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShardError(f"{path} is not JSON: {error}") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ShardError(f"{path} has schema version {version!r}, this code reads version {SCHEMA_VERSION}")
    try:
        entries = [manifest["index"], *manifest["shards"]]
        well_formed = isinstance(manifest["source"], dict) and all(
            isinstance(entry["file"], str) and isinstance(entry["sha256"], str) and isinstance(entry["records"], int)
            for entry in entries
        )
    except (KeyError, TypeError) as error:
        raise ShardError(f"{path} is incomplete: {error!r}") from error
    if not well_formed:
        raise ShardError(f"{path} is ill-formed: files need a name, a checksum and a number of records")
    for entry in entries:
        if entry["file"] in ("", ".", "..") or set(entry["file"]) & set("/\\\0"):
            raise ShardError(f"{path} names a file outside its directory: {entry['file']!r}")
    return manifest


def read_index(path: Path) -> list[IndexRow]:
    """Reads and checks the index.

    Raises:
      ShardError: names the line that does not follow the schema.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            if set(row) != set(_INDEX_TYPES):
                raise ShardError(f"fields {sorted(set(row) ^ set(_INDEX_TYPES))} are missing or unknown")
            for name, kind in _INDEX_TYPES.items():
                if not isinstance(row[name], kind):
                    raise ShardError(f"field {name!r} is {row[name]!r}")
            row["features"] = {name: tuple(shape) for name, shape in row["features"].items()}
            row["captions"] = {kind: tuple(texts) for kind, texts in row["captions"].items()}
            if not all(isinstance(text, str) for texts in row["captions"].values() for text in texts):
                raise ShardError(f"field 'captions' is {row['captions']!r:.80}")
        except (ValueError, TypeError) as error:
            raise ShardError(f"{path}, line {number}: {error}") from error
        rows.append(IndexRow(**row))
    return rows


def sha256(path: Path) -> str:
    """Returns the checksum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_INDEX_TYPES = {
    **dict.fromkeys(("id", "dataset", "split", "shard", "speaker", "language", "transcript"), str),
    **dict.fromkeys(("position", "frames", "width", "height"), int),
    **dict.fromkeys(("labels", "attributes", "captions", "features"), dict),
    **dict.fromkeys(("has_audio", "has_video"), bool),
    **dict.fromkeys(("seconds", "video_seconds"), float),
    "dialogue": (str, type(None)),
    "valence": (float, type(None)),
}
