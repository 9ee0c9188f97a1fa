"""Directories of `*.safetensors`: tensors as views of the files, and shards written one at a time."""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mecap_jax.json_files import is_named, parse_json, read_json_object, why_unreadable, write_json
from mecap_jax.models.checkpoints.table import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# All that the format knows. Those of less than a byte are packed there and must not be looked at; nothing here does.
_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "C64": np.complex64,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "BOOL": np.bool_,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F6_E2M3": ml_dtypes.float6_e2m3fn, "F6_E3M2": ml_dtypes.float6_e3m2fn, "F4": ml_dtypes.float4_e2m1fn,
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
      is_complete: whether it is known of all files what they hold.

    Raises:
      CheckpointError: no safetensors in the directory, an index that is none, or quantised weights.
    """

    def __init__(self, directory: Path, rename: Callable[[str], str] = lambda key: key, single: str = SINGLE):
        """`rename` maps the keys in the files; `single` is the file's name where there is no index."""
        self._locations: dict[str, Location] = {}
        self.problems: list[str] = []
        self.is_complete = True
        for file, expected in _files(directory, single).items():
            try:
                locations = _read_header(directory / file)
            except (OSError, ValueError) as error:
                self.problems.append(f"{file}: {error}")
                self.is_complete = False
                continue
            try:
                with safe_open(directory / file, "numpy"):  # checks the header against the length of the file
                    pass
            except (OSError, SafetensorError) as error:  # its tensors are still known: what else is wrong is found, too
                self.problems.append(f"{file}: {error}")
            if expected is not None and expected != set(locations):
                self.problems += [f"{file}: lacks the tensor {key}" for key in sorted(expected - set(locations))]
                self.problems += [f"{file}: the index does not name {key}" for key in sorted(set(locations) - expected)]
            for key, location in locations.items():
                if rename(key) in self._locations:
                    self.problems.append(f"{file}: a second tensor {rename(key)}")
                self._locations[rename(key)] = location
        _refuse_quantised(directory, self)

    def __getitem__(self, key: str) -> Location:
        return self._locations[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)


def _files(directory: Path, single: str) -> dict[str, set[str] | None]:
    """File names, and the keys that the index says they hold (None without an index)."""
    there = [name for name in (single, INDEX)[: 1 + (single == SINGLE)] if is_named(directory / name)]
    if single in there:
        return {single: None}
    if not there:
        raise CheckpointError(
            f"{directory} holds neither {single} nor {INDEX} (pickled weights such as *.bin are not read)"
        )
    try:
        weight_map = read_json_object(directory / INDEX)["weight_map"]
        files: dict[str, set[str] | None] = {file: set() for file in sorted(set(weight_map.values()))}
        for key, file in weight_map.items():
            files[file].add(key)
    except (OSError, ValueError) as error:  # names the file
        raise CheckpointError(f"the index of the weights: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{directory / INDEX} is not an index of safetensors: {error!r:.200}") from error
    if not files:
        raise CheckpointError(f"{directory / INDEX} names no files")
    for file in files:
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise CheckpointError(f"{directory / INDEX}: {file!r:.80} is not the name of a safetensors file beside it")
    return files


def _refuse_quantised(directory: Path, tensors: Mapping[str, Location]) -> None:
    """Refuses weights that are stored in less than 16 bits, as floats or packed into integers with scales beside."""
    for key, tensor in tensors.items():
        if packed := _PACKED.search(key):
            kind = f"weights quantised with {_PACKERS[packed.group(1)]}"
        elif tensor.dtype.kind in "fV" and ml_dtypes.finfo(tensor.dtype).bits < 16:
            kind = f"{tensor.dtype.name} weights (quantised)"
        else:
            continue
        raise CheckpointError(f"{directory}: {kind} are not supported ({key}); use the bfloat16 release of the model")


# What the usual tools call the tensors that stand in for, or beside, a layer's weight.
_PACKERS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
}
_PACKED = re.compile(rf"\.({'|'.join(_PACKERS)})$")

# Neither a path, nor "..", "" or anything else than weights.
_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")


def _read_header(path: Path) -> dict[str, Location]:
    """Where the tensors of one file say they are; whether the file is that long is not checked here.

    Raises:
      OSError: it cannot be read.
      ValueError: it begins with something else.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size < _LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = parse_json(file.read(size))
        locations = {}
        for key, entry in header.items():
            if key != "__metadata__":
                dtype = np.dtype(_DTYPES[entry["dtype"]])
                locations[key] = Location(path, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), dtype)
        return locations
    except OSError as error:
        raise OSError(why_unreadable(path, error)) from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"no safetensors header ({error!r:.80})") from error


# The limit of the format's own reader.
_LARGEST_HEADER = 100_000_000


def write_file(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file of tensors, with the permissions of any new file; by default as readers of the Hugging Face
    layout expect it."""
    path.touch()
    mode = path.stat().st_mode
    # "pt" is what they look for; the bytes are the same in every framework.
    metadata = dict(metadata or {"format": "pt"})
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    path.chmod(mode)  # the library makes it unreadable to others


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
        write_json(directory / INDEX, index)
