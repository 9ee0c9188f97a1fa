"""What a directory of shards says about itself: its manifest and its index, checked before anything relies on them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mecap_jax.data.language import caption_language
from mecap_jax.json_files import parse_json
from mecap_jax.text_files import printable

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
INDEX = "index.jsonl"
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\:"):
        raise ValueError("leads out of the directory")
    if printable(name) != name:
        raise ValueError("has characters that no file of ours has in its name")
    return name


Count = Annotated[int, Field(ge=0, lt=2**40)]
FileName = Annotated[str, Field(max_length=255), AfterValidator(_plain_name)]
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(TypedDict):
    """A file of the directory, how many records it has, and its sha256."""

    __pydantic_config__ = _STRICT
    file: FileName
    records: Count
    sha256: Checksum


class Manifest(TypedDict):
    """What the manifest of any directory of records holds; `sha256` is that of the manifest's other fields."""

    __pydantic_config__ = ConfigDict(**_STRICT, extra="allow")
    schema_version: int
    sha256: Checksum
    source: dict[str, Any]
    index: FileEntry
    shards: list[FileEntry]


class QuarantinedClip(TypedDict):
    __pydantic_config__ = ConfigDict(**_STRICT, extra="forbid")
    id: str
    reason: str


class DuplicateClip(TypedDict):
    __pydantic_config__ = ConfigDict(**_STRICT, extra="forbid")
    id: str
    of: str


class SplitCounts(TypedDict):
    __pydantic_config__ = _STRICT
    records: Count
    speakers: Count
    seconds: NonNegativeFloat
    labels: dict[str, Count]


class ShardManifest(Manifest):
    """What a directory of utterances adds: what made it, what the data are, what is in it and what was left out."""

    command: str
    records: Count
    synthetic: bool
    datasets: dict[str, Count]
    caption_languages: dict[str, Count]
    captioned: dict[str, Count]
    licences: dict[str, Count]
    splits: dict[str, SplitCounts]
    quarantined: list[QuarantinedClip]
    duplicates: list[DuplicateClip]


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
class Duplicate:
    """A clip that was left out because it is, byte for byte, the clip `of` that was taken; no bad clip."""

    id: str
    of: str

    def __post_init__(self):
        for field in ("id", "of"):
            object.__setattr__(self, field, printable(getattr(self, field)))


@dataclasses.dataclass(frozen=True)
class ClipRecord:
    """What is known of a record without reading it.

    Attributes:
      shard, position: file and place in it.
      labels, valence, attributes: as in `Utterance`, without attributes that are longer than 200 characters.
      transcript, captions, rationale: what was said, the references by kind, why the label is what it is: text is
        small, and nobody should have to read media to learn a vocabulary or anchors from it.
      features: shape (frames, dim) by name.
      has_audio: whether there is sound, as a file of its own or as the video's sound track.
      has_video: whether there is a video.
      seconds: length of the sound; of the video where there is none; 0 without both.
      video_seconds, frames, width, height: of the video, 0 without one.
    """

    __pydantic_config__ = ConfigDict(**_STRICT, extra="forbid")

    id: str
    dataset: str
    split: str
    shard: str
    position: Count
    speaker: str
    dialogue: str | None
    language: str
    labels: Mapping[str, str]
    valence: float | None
    attributes: Mapping[str, str]
    transcript: str
    captions: Mapping[str, tuple[str, ...]]
    rationale: str | None
    features: Mapping[str, tuple[Count, Count]]
    has_audio: bool
    has_video: bool
    seconds: NonNegativeFloat
    video_seconds: NonNegativeFloat
    frames: Count
    width: Count
    height: Count

    @property
    def label(self) -> str | None:
        """The multimodal emotion label, or None where there is none."""
        return self.labels.get("multimodal")

    @property
    def caption_language(self) -> str:
        """BCP-47 code of the captions: the attribute of that name, else what their script says; "" without captions."""
        declared = self.attributes.get("caption_language", "") if self.captions else ""
        return declared or caption_language(text for texts in self.captions.values() for text in texts)


def describe(rows: Sequence[ClipRecord], source: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says that data are: whether a program made them, which corpora, speech and captions in which
    languages, as far as they are known.

    Returns `synthetic` (bool), `datasets`, `speech_languages` and `caption_languages` (clips by name, the most frequent
    first).
    """
    speech = Counter(row.language for row in rows if row.language and (row.has_audio or row.transcript))
    captions = Counter(language for row in rows if (language := row.caption_language))
    return {
        "synthetic": source.get("importer") == "synthetic",
        "datasets": dict(Counter(row.dataset for row in rows).most_common()),
        "speech_languages": dict(speech.most_common()),
        "caption_languages": dict(captions.most_common()),
    }


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a manifest with its schema version and its checksum, and returns it.

    Raises:
      ShardError: a value that JSON does not have.
    """
    manifest = {**manifest, "schema_version": SCHEMA_VERSION}
    manifest["sha256"] = _digest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(directory: Path, kind: type = Manifest) -> dict[str, Any]:
    """Reads and checks a manifest: that it is as it was written, and then that it holds the keys of `kind`.

    Raises:
      ShardError: none, another schema version, changed since it was written, or ill-formed; names file and key.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ShardError(f"{directory} holds no shards: there is no {MANIFEST}; scripts/prepare_data.py makes them")
    try:
        manifest = parse_json(path.read_bytes())
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ShardError(f"{path} is not JSON: {error}") from error
    manifest = manifest if isinstance(manifest, dict) else {}
    if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
        made = printable(f"; it was made by {manifest['command']!r:.300}" if "command" in manifest else "")
        raise ShardError(
            f"{path} has schema version {version!r:.20}, this code reads version {SCHEMA_VERSION}: "
            f"delete the directory and make it again{made}"
        )
    if manifest.get("sha256") != (digest := _digest(manifest)):
        raise ShardError(f"{path} has changed: sha256 {digest}, expected {manifest.get('sha256')!r:.80}")
    try:
        _adapter(kind).validate_python(manifest)
    except ValidationError as error:
        raise ShardError(f"{path}: {_describe(error)}") from None
    return manifest


def read_index(path: Path) -> list[ClipRecord]:
    """Reads and checks the index.

    Raises:
      ShardError: names the line and the field that do not follow the schema.
    """
    rows, adapter = [], _adapter(ClipRecord)
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            rows.append(adapter.validate_json(line))
        except ValidationError as error:
            raise ShardError(f"{path}, line {number}: {_describe(error)}") from None
    return rows


def sha256(path: Path) -> str:
    """Returns the checksum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Returns the checksum of a manifest's fields, however they are laid out."""
    fields = {key: value for key, value in manifest.items() if key != "sha256"}
    try:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ShardError(f"a manifest cannot hold this: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def _describe(error: ValidationError) -> str:
    """The first problem in one line: key, what it must be, what it is."""
    first = error.errors(include_url=False)[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    problem = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    return printable(f"{key!r:.200}: {problem}{got}" if key else problem)
