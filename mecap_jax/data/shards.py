"""Shards: utterances in ArrayRecord files with an index, checksums and the record of how they were made.

A directory of shards holds
  {split}-{number}.arrayrecord   utterances (`utterance.serialize`), numbered from 00000 in each split,
  index.jsonl                    one small row a record, in the order of the shards: what batching needs to know,
  manifest.json                  schema version, source, what the data are, counts, sha256 of every other file,
                                 quarantined clips.
It appears under its name only when complete, and a reader refuses it when a single byte differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.config import SyntheticConfig, differences
from mecap_jax.data import media
from mecap_jax.data.building import building, remove_unfinished
from mecap_jax.data.inspection import Inspect, Inspected, Pending, in_threads
from mecap_jax.data.manifest import (
    INDEX,
    MANIFEST,
    BadClip,
    ClipRecord,
    Duplicate,
    ShardError,
    ShardManifest,
    describe,
    read_index,
    read_manifest,
    sha256,
    write_manifest,
)
from mecap_jax.data.records import RecordReader, RecordWriter, check_sum
from mecap_jax.data.utterance import SPLITS, Utterance, deserialize, serialize
from mecap_jax.json_files import as_json, to_json
from mecap_jax.text_files import printable

__all__ = ["BadClip", "Duplicate", "ClipRecord", "ShardError", "ShardReader", "find_finished", "summarise_bad", "write"]

_INDEX_ATTRIBUTE = 200  # characters: longer attributes are in the record alone

_NAMES_AND_NUMBERS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\d+(?:\.\d+)?""")


def write(
    clips: Iterable[Pending],
    directory: str | os.PathLike,
    command: str,
    source: Mapping[str, Any],
    shard_size: int = 1024,
    max_seconds: float = media.MAX_SECONDS,
    max_bad_fraction: float = 1.0,
    inspect: Inspect = in_threads,
) -> dict[str, Any]:
    """Streams utterances into a new directory of shards and returns its manifest.

    Every clip is decoded once: one whose media fail `media.probe`, or last longer than `max_seconds`, joins the
    quarantined ones, and so does one whose id is taken. A finished directory with the same `source` is left as it is
    and its manifest is returned, without touching `clips`. When anything goes wrong, nothing stays behind, and what
    killed builds left beside `directory` is removed.

    Args:
      clips: utterances, clips that the importer could not read, and copies of others, or functions that give one of
        these; in any order.
      directory: is made, with its parents; may exist if empty.
      command: what was run, for the manifest.
      source: settings that determine the content, JSON-serialisable.
      shard_size: records a shard.
      max_bad_fraction: more than this share of bad clips is an error.
      inspect: reads and decodes the clips, in order.

    Raises:
      ShardError: the directory holds something else, no clip is left, or too many are bad.
    """
    directory = Path(directory)
    source = json.loads(json.dumps(source, allow_nan=False))
    remove_unfinished(directory.parent)
    finished = find_finished(directory, source)
    if finished is not None:
        return finished
    # Whatever ends the build ends the processes that read ahead, too, and not when the interpreter is half gone.
    with building(directory) as unfinished, contextlib.closing(_each(inspect(clips, max_seconds))) as inspected:
        manifest = _build(unfinished, inspected, source, shard_size, max_bad_fraction)
        manifest = write_manifest(unfinished, {"command": printable(command), "source": source, **manifest})
        try:
            unfinished.rename(directory)
        except OSError:  # another process may have finished the same build meanwhile
            manifest = find_finished(directory, source)
            if manifest is None:
                raise
    return manifest


def find_finished(directory: str | os.PathLike, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the manifest of a finished build from `source`, or None where nothing is in the way of one.

    Raises:
      ShardError: something else is there; the message names the settings that differ.
    """
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / MANIFEST).is_file():
        raise ShardError(f"{directory} exists and holds no finished shards; not overwriting it")
    manifest = read_manifest(directory)
    found = (_with_later_settings(as_json(settings)) for settings in (manifest["source"], source))
    differing = [f"{key}: {theirs!r} there, {mine!r} asked" for key, theirs, mine in differences(*found)]
    if differing:
        raise ShardError(
            f"{directory} holds shards of another source: {'; '.join(differing)}. Delete it or choose another directory"
        )
    return manifest


def _with_later_settings(source: dict[str, Any]) -> dict[str, Any]:
    """A source with the settings that did not exist yet when its shards were made, as they were then: a setting of the
    synthetic corpus that is added has a default that changes nothing."""
    if not isinstance(known := source.get("synthetic"), dict):
        return source
    return source | {"synthetic": as_json(dataclasses.asdict(SyntheticConfig())) | known}


class ShardReader:
    """Random access to a directory of shards, from threads and other processes as `RecordReader` says.

    Attributes:
      manifest: the manifest.
      index: one `ClipRecord` a record; `reader[i]` is the utterance of `index[i]`.
    """

    def __init__(self, directory: str | os.PathLike, verify: bool = True):
        """Checks the directory.

        Args:
          verify: also compare every shard with its checksum; the index always is.

        Raises:
          ShardError: no shards, another schema version, a file that is missing, changed or outside the directory.
        """
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory, ShardManifest)
        check_sum(self.directory, self.manifest["index"])
        self._records = RecordReader(self.directory, self.manifest["shards"], verify)
        self.index = read_index(self.directory / self.manifest["index"]["file"])
        entries = self.manifest["shards"]
        places = ((shard["file"], i) for shard in entries for i in range(shard["records"]))
        counts = {len(self._records), len(self.index), self.manifest["records"], self.manifest["index"]["records"]}
        if len(counts) > 1 or any((row.shard, row.position) != place for row, place in zip(self.index, places)):
            raise ShardError(f"{self.directory / INDEX} does not list the records of the shards in {MANIFEST}")

    @property
    def checksum(self) -> str:
        """SHA-256 of what the records are, wherever they are."""
        files = [entry["sha256"] for entry in (self.manifest["index"], *self.manifest["shards"])]
        return hashlib.sha256(to_json(files).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Utterance:
        """Reads a record.

        Raises:
          IndexError: no such record.
          UtteranceError: the record does not follow the schema.
          ShardError: the record is not the one that the index lists.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        i %= len(self)
        utterance = deserialize(self._records[i])
        if utterance.id != self.index[i].id:
            raise ShardError(f"{self._records.place(i)} is {utterance.id!r}, {INDEX} has {self.index[i].id!r}")
        return utterance


# --- building ---------------------------------------------------------------------------------------------------


def _each(inspected: Iterable[Inspected]) -> Iterator[Inspected]:
    """The same as a generator, which can be closed whatever iterates."""
    yield from inspected


def _build(
    directory: Path,
    items: Iterator[Inspected],
    source: Mapping[str, Any],
    shard_size: int,
    max_bad_fraction: float,
) -> dict[str, Any]:
    """Writes shards and index; returns the part of the manifest that follows from the records."""
    bad: list[BadClip] = []
    duplicates: list[Duplicate] = []
    seen: dict[str, tuple[str, bytes]] = {}
    licences: Counter[str] = Counter()
    splits = {split: _SplitWriter(directory, split, shard_size) for split in SPLITS}
    for number, item in enumerate(items):
        if isinstance(item, BadClip):
            bad.append(item)
            continue
        if isinstance(item, Duplicate):
            duplicates.append(item)
            continue
        utterance, facts = item
        record = serialize(utterance)
        here = f"record {number} ({utterance.split}, speaker {utterance.speaker!r})"
        known = seen.setdefault(utterance.id, (here, (digest := hashlib.sha256(record).digest())))
        if known[0] != here:
            if known[1] == digest:
                duplicates.append(Duplicate(utterance.id, utterance.id))
            else:
                bad.append(BadClip(utterance.id, f"id {utterance.id!r} occurs twice: {known[0]} and {here}"))
            continue
        licences[utterance.licence] += 1
        splits[utterance.split].write(utterance, record, facts)
    total = len(seen) + len(bad)
    if not total:
        raise ShardError("there are no clips to write")
    if not seen or len(bad) > max_bad_fraction * total:
        raise ShardError(
            f"{len(bad)} of {total} clips are bad (allowed: {max_bad_fraction:.1%})\n{summarise_bad(bad)}".rstrip()
        )
    for writer in splits.values():
        writer.close()
    rows = [row for writer in splits.values() for row in writer.rows]
    with (directory / INDEX).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False, allow_nan=False) + "\n")
    return {
        "records": len(rows),
        **describe(rows, source),
        "splits": {split: _count(writer.rows) for split, writer in splits.items() if writer.rows},
        "captioned": dict(Counter(kind for row in rows for kind in row.captions if row.captions[kind])),
        "licences": dict(licences.most_common()),
        "quarantined": [dataclasses.asdict(clip) for clip in bad],
        "duplicates": [dataclasses.asdict(clip) for clip in duplicates],
        "index": {"file": INDEX, "records": len(rows), "sha256": sha256(directory / INDEX)},
        "shards": [shard for writer in splits.values() for shard in writer.shards],
    }


def summarise_bad(bad: Iterable[BadClip], reasons: int = 10, examples: int = 3) -> str:
    """Returns one line a kind of reason, the most frequent first, with a few ids; "" where nothing is bad.

    Reasons that differ in names and numbers only are of one kind: the first of them stands for all.
    """
    kinds: dict[str, list[BadClip]] = {}
    for clip in bad:
        kinds.setdefault(_NAMES_AND_NUMBERS.sub("", clip.reason), []).append(clip)
    ordered = sorted(kinds.values(), key=lambda clips: -len(clips))
    lines = []
    for clips in ordered[:reasons]:
        alike = " and the like" if len({clip.reason for clip in clips}) > 1 else ""
        ids = ", ".join(clip.id for clip in clips[:examples]) + (", ..." if len(clips) > examples else "")
        lines.append(f"  {len(clips)} x {clips[0].reason}{alike}: {ids}")
    if len(ordered) > reasons:
        lines.append(f"  and {sum(map(len, ordered[reasons:]))} more for {len(ordered) - reasons} reasons")
    return "\n".join(lines)


def _count(rows: list[ClipRecord]) -> dict[str, Any]:
    labels = Counter(row.labels.get("multimodal", "") for row in rows)
    return {
        "records": len(rows),
        "speakers": len({row.speaker for row in rows}),
        "seconds": round(sum(row.seconds for row in rows), 1),
        "labels": {label: count for label, count in sorted(labels.items()) if label},
    }


class _SplitWriter:
    """Writes the records of one split, and its rows of the index."""

    def __init__(self, directory: Path, split: str, shard_size: int):
        self.rows: list[ClipRecord] = []
        self._split, self._records = split, RecordWriter(directory, split, shard_size)

    @property
    def shards(self) -> list[dict[str, Any]]:
        return [{**shard, "split": self._split} for shard in self._records.shards]

    def write(self, utterance: Utterance, record: bytes, facts: Mapping[str, Any]) -> None:
        name, position = self._records.write(record)
        copied = ("id", "dataset", "split", "speaker", "dialogue", "language", "valence", "transcript", "rationale")
        row = ClipRecord(
            **{field: getattr(utterance, field) for field in copied},
            shard=name,
            position=position,
            labels=dict(utterance.labels),
            attributes={k: v for k, v in utterance.attributes.items() if len(v) <= _INDEX_ATTRIBUTE},
            captions=dict(utterance.captions),
            features={feature: tuple(x.shape) for feature, x in utterance.features.items()},
            **facts,
        )
        self.rows.append(row)

    def close(self) -> None:
        self._records.close()
