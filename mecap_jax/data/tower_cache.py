"""The tower cache: the decoder tokens that frozen towers make of every clip, kept in files of records.

A directory holds
  {part}-{number}.arrayrecord   one msgpack record a clip; each process that encoded has written one part,
  clips.json                    ids in the order of the records,
  manifest.json                 what the tokens depend on ("source"), sha256 of every other file.
It appears under its name only when complete, and a reader refuses it when a byte differs or it depends on other things.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from mecap_jax.data.clips import DecodedClip
from mecap_jax.data.collate import TOKEN_DTYPES
from mecap_jax.data.manifest import MANIFEST, ShardError, sha256, write_manifest
from mecap_jax.data.media import MediaError
from mecap_jax.data.prompts import VideoGrid
from mecap_jax.data.records import RecordReader, RecordWriter, check_sum
from mecap_jax.data.shards import find_finished
from mecap_jax.json_files import parse_json, to_json

_INDEX = "clips.json"
_SHARD_SIZE = 256  # a clip of ten seconds may have megabytes
_KEYS = {"id", "audio", "video", "grid", "decoded"}


class TokenWriter:
    """Writes one part of a cache that is being built."""

    def __init__(self, directory: Path, part: int):
        self._directory, self._part, self._ids = directory, f"{part:03d}", []
        self._records = RecordWriter(directory, self._part, _SHARD_SIZE)

    def write(self, id: str, clip: DecodedClip | None) -> None:
        """Adds the tokens of a clip; None where it cannot be decoded."""
        tokens = clip or DecodedClip()
        record = {
            "id": id,
            "audio": None if tokens.audio_tokens is None else tokens.audio_tokens.tobytes(),
            "video": None if tokens.video_tokens is None else tokens.video_tokens.tobytes(),
            "grid": None if tokens.grid is None else dataclasses.astuple(tokens.grid),
            "decoded": clip is not None,
        }
        self._records.write(msgpack.packb(record))
        self._ids.append(id)

    def close(self) -> None:
        """Completes the part.

        Raises:
          ShardError: it could not be written in full.
        """
        self._records.close()
        text = to_json({"ids": self._ids, "shards": self._records.shards})
        _part_file(self._directory, self._part).write_text(text, encoding="utf-8")


def finish(building: Path, directory: Path, parts: int, source: Mapping[str, Any]) -> None:
    """Joins the parts in `building` and gives it the name `directory`, unless somebody was faster.

    Raises:
      ShardError: something else is in the way.
    """
    files = [_part_file(building, f"{part:03d}") for part in range(parts)]
    described = [parse_json(file.read_bytes()) for file in files]
    ids = [id for part in described for id in part["ids"]]
    (building / _INDEX).write_text(to_json(ids), encoding="utf-8")
    manifest = {
        "source": source,
        "index": {"file": _INDEX, "records": len(ids), "sha256": sha256(building / _INDEX)},
        "shards": [shard for part in described for shard in part["shards"]],
    }
    for file in files:
        file.unlink()
    write_manifest(building, manifest)
    try:
        building.rename(directory)
    except OSError:
        if find_finished(directory, source) is None:
            raise


class TokenReader:
    """The media tokens of clips by id, from threads and other processes as `RecordReader` says."""

    def __init__(self, directory: Path, source: Mapping[str, Any]):
        """Opens a cache that depends on `source`, of which "width" and "dtype" are shape and type of the tokens.

        Raises:
          ShardError: no cache, one that depends on something else, a file that is missing or has changed.
        """
        manifest = find_finished(directory, source)
        if manifest is None:
            raise ShardError(f"{directory} holds no tower cache")
        check_sum(directory, manifest["index"])
        self._records = RecordReader(directory, manifest["shards"])
        ids = _read_ids(directory / _INDEX)
        if len(ids) != len(self._records):
            raise ShardError(f"{directory / _INDEX} does not list the records of the files in {MANIFEST}")
        self._places = {id: place for place, id in enumerate(ids)}
        self._width, self._dtype = source["width"], TOKEN_DTYPES[source["dtype"]]

    def __getitem__(self, id: str) -> DecodedClip:
        """The encoded clip.

        Raises:
          KeyError: the cache has no such clip.
          MediaError: it could not be decoded when the cache was built.
          ShardError: the record is not what the cache lists.
        """
        place = self._places[id]
        try:
            record = msgpack.unpackb(self._records[place])
            if set(record) != _KEYS or record["id"] != id:
                raise ValueError(f"it is that of {record.get('id')!r}, {id!r} is listed")
            audio, video = (self._tokens(record[name]) for name in ("audio", "video"))
            grid = None if record["grid"] is None else VideoGrid(*record["grid"])
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            if isinstance(error, ShardError):
                raise
            raise ShardError(f"{self._records.place(place)} is no record of media tokens: {error}") from error
        if not record["decoded"]:
            raise MediaError("could not be decoded when its media were encoded")
        return DecodedClip(audio_tokens=audio, video_tokens=video, grid=grid)

    def _tokens(self, data: bytes | None) -> np.ndarray | None:
        return None if data is None else np.frombuffer(data, self._dtype).reshape(-1, self._width)


def _read_ids(path: Path) -> list[str]:
    try:
        ids = parse_json(path.read_bytes())
    except ValueError as error:
        raise ShardError(f"{path} is not JSON: {error}") from error
    if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
        raise ShardError(f"{path} must hold a list of ids")
    return ids


def _part_file(directory: Path, part: str) -> Path:
    return directory / f"{part}.json"
