"""Directories of `*.safetensors`: tensors as views of the files, and shards written one at a time."""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mecap_jax.models.checkpoints.table import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a tensor's bytes are."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def view(self) -> np.ndarray:
        """The tensor, mapped: bytes are read when they are looked at, and let go with the array."""
        count = int(np.prod(self.shape))
        if not count:
            return np.zeros(self.shape, self.dtype)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        end = self.offset + count * self.dtype.itemsize
        with self.file.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), end - start, access=mmap.ACCESS_READ, offset=start)
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped.madvise(mmap.MADV_WILLNEED)  # read ahead in one go, not page by page as they are touched
        return np.frombuffer(mapped, self.dtype, count, self.offset - start).reshape(self.shape)


class TensorFiles(Mapping[str, Location]):
    """Where the tensors of a directory are, by key; nothing is read but the files' headers.

    Attributes:
      problems: files that are missing, truncated, ill-formed or at odds with the index.

    Raises:
      CheckpointError: no safetensors in the directory, or an index that is none.
    """

    def __init__(self, directory: Path, rename: Callable[[str], str] = lambda key: key, single: str = SINGLE):
        """`rename` maps the keys in the files; `single` is the file's name where there is no index."""
        self._locations: dict[str, Location] = {}
        self.problems: list[str] = []
        for file, expected in _files(directory, single).items():
            try:
                locations = _read_header(directory / file)
                with safe_open(directory / file, "numpy"):  # checks the header against the length of the file
                    pass
            except (OSError, SafetensorError) as error:
                self.problems.append(f"{file}: {error}")
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                self.problems.append(f"{file}: no safetensors header ({error!r:.80})")
                continue
            if expected is not None and expected != set(locations):
                self.problems += [f"{file}: lacks the tensor {key}" for key in sorted(expected - set(locations))]
                self.problems += [f"{file}: the index does not name {key}" for key in sorted(set(locations) - expected)]
            for key, location in locations.items():
                if rename(key) in self._locations:
                    self.problems.append(f"{file}: a second tensor {rename(key)}")
                self._locations[rename(key)] = location

    def __getitem__(self, key: str) -> Location:
        return self._locations[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)


def _files(directory: Path, single: str) -> dict[str, set[str] | None]:
    """File names, and the keys that the index says they hold (None without an index)."""
    if (directory / single).is_file():
        return {single: None}
    if single != SINGLE or not (directory / INDEX).is_file():
        raise CheckpointError(
            f"{directory} holds neither {single} nor {INDEX} (pickled weights such as *.bin are not read)"
        )
    try:
        weight_map = json.loads((directory / INDEX).read_bytes())["weight_map"]
        files: dict[str, set[str] | None] = {file: set() for file in sorted(set(weight_map.values()))}
        for key, file in weight_map.items():
            files[file].add(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{directory / INDEX} is not an index of safetensors: {error!r}") from error
    if not files:
        raise CheckpointError(f"{directory / INDEX} names no files")
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{directory / INDEX}: the file name {file!r} leaves the directory")
    return files


def _read_header(path: Path) -> dict[str, Location]:
    """Where the tensors of one file say they are; whether the file is that long is not checked here."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < _LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(file.read(size))
    locations = {}
    for key, entry in header.items():
        if key != "__metadata__":
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            locations[key] = Location(path, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), dtype)
    return locations


# The limit of the format's own reader.
_LARGEST_HEADER = 100_000_000


def write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one file of tensors, as readers of the Hugging Face layout expect it."""
    # "pt" is what they look for; the bytes are the same in every framework.
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)  # the library leaves it unreadable to others


def write_tensors(
    directory: Path,
    sizes: Mapping[str, int],
    tensor: Callable[[str], np.ndarray],
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes tensors in the Hugging Face layout: one file, or shards and an index.

    Args:
      sizes: bytes by key, in the order of the files.
      tensor: gives the tensor of a key; called once for each, one shard's worth at a time.
      max_shard_bytes: a file is no larger, unless a single tensor is.

    Raises:
      CheckpointError: the directory holds weights already, which a reader could take for these.
    """
    if stale := sorted(path.name for path in directory.glob("model*.safetensors*")):
        raise CheckpointError(f"{directory} holds weights already: {', '.join(stale)}")
    shards: list[list[str]] = [[]]
    size = total = 0
    for key, nbytes in sizes.items():
        total += nbytes
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += nbytes
    weight_map = {}
    for n, keys in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(keys, name)
        write_file(directory / name, {key: tensor(key) for key in keys})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
