"""Files of records: ArrayRecord in numbered files with checksums, read at random by any thread or process.

What a record means is its owner's business (`shards`: utterances, `tower_cache`: media tokens).
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mecap_jax.data.manifest import MANIFEST, ShardError, sha256


class RecordWriter:
    """Writes records into `{prefix}-{number}.arrayrecord`, `shard_size` to a file.

    Attributes:
      shards: of each file that is complete its name, number of records and sha256.
    """

    def __init__(self, directory: Path, prefix: str, shard_size: int):
        self.shards: list[dict[str, Any]] = []
        self._directory, self._prefix, self._shard_size = directory, prefix, shard_size
        self._writer: ArrayRecordWriter | None = None
        self._records = 0

    def write(self, record: bytes) -> tuple[str, int]:
        """Appends a record; returns its file and its position there.

        Raises:
          ShardError: the file that is full now could not be written.
        """
        if self._records == self._shard_size:
            self.close()
        if self._writer is None:
            _claim_array_record()
            self._writer = ArrayRecordWriter(str(self._directory / self._name), "group_size:1")
        self._writer.write(record)
        self._records += 1
        return self._name, self._records - 1

    def close(self) -> None:
        """Completes the last file.

        Raises:
          ShardError: it could not be written in full.
        """
        if self._writer is None:
            return
        self._writer.close()
        path = self._directory / self._name
        if len(ArrayRecordDataSource([str(path)])) != self._records:  # a full disk goes unnoticed by the writer
            raise ShardError(f"{path.name} could not be written in full")
        self.shards.append({"file": path.name, "records": self._records, "sha256": sha256(path)})
        self._writer, self._records = None, 0

    @property
    def _name(self) -> str:
        return f"{self._prefix}-{len(self.shards):05d}.arrayrecord"


class RecordReader:
    """Random access to the records of several files.

    Safe to share between threads and to pickle into other processes: files are opened lazily, by the process that
    reads. It survives a fork too, as long as the parent has neither read nor written records yet; after that,
    array_record would crash in the child, and a `ShardError` says so instead.
    """

    def __init__(self, directory: Path, shards: Sequence[Mapping[str, Any]], verify: bool = True):
        """`shards` are entries of a manifest; with `verify` every file is compared with its checksum.

        Raises:
          ShardError: a file is missing, has changed, or is too small for its records.
        """
        self._directory, self._shards = directory, shards
        for shard in shards:
            path = directory / shard["file"]
            if not path.is_file():
                raise ShardError(f"{path} is missing")
            if shard["records"] > (size := path.stat().st_size):
                raise ShardError(f"{path} cannot hold {shard['records']} records in {size} bytes")
            if verify:
                check_sum(directory, shard)
        self._ends = list(itertools.accumulate(shard["records"] for shard in shards))
        self._source: ArrayRecordDataSource | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> bytes:
        """Reads record i of all files together, 0 <= i < len(self).

        Raises:
          ShardError: it is unreadable, or a file has another number of records than was said.
        """
        try:
            return self._open()[i]
        except RuntimeError as error:
            raise ShardError(f"{self.place(i)} is unreadable: {error}") from error

    def place(self, i: int) -> str:
        """File and position of a record, for messages."""
        shard = bisect.bisect_right(self._ends, i)
        position = i - (self._ends[shard - 1] if shard else 0)
        return f"{self._directory / self._shards[shard]['file']}: record {position}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def _open(self) -> ArrayRecordDataSource:
        _claim_array_record()
        if self._source is None:
            files = [(self._directory / shard["file"], shard["records"]) for shard in self._shards]
            for path, records in files:
                _check_count(path, records)
            self._source = ArrayRecordDataSource([f"{path}[0:{records}]" for path, records in files])
        return self._source


def _check_count(path: Path, expected: int) -> None:
    try:
        file = ArrayRecordReader(str(path))
        found = file.num_records()
        file.close()
    except RuntimeError as error:
        raise ShardError(f"{path} is unreadable: {error}") from error
    if found != expected:
        raise ShardError(f"{path} has {found} records, {MANIFEST} says {expected}")


def check_sum(directory: Path, entry: Mapping[str, Any]) -> None:
    """Compares a file with its entry in a manifest.

    Raises:
      ShardError: it is missing or has changed.
    """
    path = directory / entry["file"]
    if not path.is_file():
        raise ShardError(f"{path} is missing")
    found = sha256(path)
    if found != entry["sha256"]:
        raise ShardError(f"{path} has changed: sha256 {found}, expected {entry['sha256']}")


_array_record_process: int | None = None


def _claim_array_record() -> None:
    """Notes that this process uses array_record, whose threads are lost in a fork: opening a file would then crash."""
    global _array_record_process
    if _array_record_process is None:
        _array_record_process = os.getpid()
    if _array_record_process != os.getpid():
        raise ShardError(
            "this process was forked from one that had opened shards, which array_record does not survive; "
            "start reader processes with 'spawn' or 'forkserver', or fork before reading"
        )
