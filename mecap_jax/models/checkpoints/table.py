"""The table behind import and export: rows of published key, parameter path and transform, read in both directions.

Loading is strict: a tensor that no row names, a parameter that no tensor fills, a wrong shape and a dtype that is not
floating point are all collected and reported in one error.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model; the message lists every problem."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One published tensor and the parameter it becomes; `{i}` stands for a layer's number on both sides.

    Several paths: the published tensor is divided into as many equal parts along its first axis.
    """

    key: str
    path: str | tuple[str, ...]
    transform: str = "none"

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclasses.dataclass(frozen=True)
class Table:
    """A family's checkpoint layout.

    Attributes:
      rows: what is read and written.
      ignored: regular expressions of keys that are knowingly left out.
      aliases: (pattern, replacement), applied in order to the keys of a file before rows are looked up.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    def key(self, key: str) -> str:
        """The key as the rows have it."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key


def linear(prefix: tuple[str, str], name: str, *, bias: bool = False) -> list[Row]:
    """Rows of a linear layer: published weights are [out, in], ours [in, out]."""
    rows = [Row(f"{prefix[0]}{name}.weight", f"{prefix[1]}{name}.kernel", "transpose")]
    return rows + ([Row(f"{prefix[0]}{name}.bias", f"{prefix[1]}{name}.bias")] if bias else [])


# To ours and back; views wherever NumPy can make one. The way back is given the published shape behind the first axis.
_TRANSFORMS: dict[str, tuple[Callable, Callable]] = {
    "none": (lambda x: x, lambda x, shape: x),
    "transpose": (lambda x: x.T, lambda x, shape: x.T),
    # [out, in, width] <-> [width, in, out]
    "convolution_1d": (lambda x: x.transpose(2, 1, 0), lambda x, shape: x.transpose(2, 1, 0)),
    # A convolution whose stride is its width is one product per patch.
    "patch_convolution": (lambda x: x.reshape(x.shape[0], -1).T, lambda x, shape: x.T.reshape(-1, *shape)),
}


def flatten(params: Any) -> dict[str, Any]:
    """Flattens a nested parameter dict into `a.b.0.c` paths."""
    return {
        ".".join(str(getattr(k, "key", k)) for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }


@dataclasses.dataclass(frozen=True)
class Match:
    """A published tensor and the parameters it fills, layer numbers filled in."""

    key: str
    paths: tuple[str, ...]
    transform: str

    def to_params(self, tensor: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (path, value); views of `tensor`."""
        to_ours, _ = _TRANSFORMS[self.transform]
        if len(self.paths) == 1:
            yield self.paths[0], to_ours(tensor)
            return
        size = len(tensor) // len(self.paths)
        for n, path in enumerate(self.paths):
            yield path, to_ours(tensor[n * size : (n + 1) * size])

    def to_tensor(self, values: Sequence[np.ndarray], shape: tuple[int, ...] = ()) -> np.ndarray:
        """The published tensor; `shape` is its shape behind the first axis, for transforms that lose it."""
        parts = [_TRANSFORMS[self.transform][1](value, shape) for value in values]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@functools.cache
def _patterns(rows: tuple[Row, ...], side: str) -> list[tuple[re.Pattern, Row]]:
    texts = [row.key if side == "key" else row.paths[0] for row in rows]
    return [(re.compile(re.escape(text).replace(r"\{i\}", r"(\d+)") + "$"), row) for text, row in zip(texts, rows)]


def _find(text: str, rows: tuple[Row, ...], side: str) -> Match | None:
    for pattern, row in _patterns(rows, side):
        if match := pattern.match(text):
            number = match.group(1) if match.groups() else ""
            return Match(
                row.key.replace("{i}", number), tuple(p.replace("{i}", number) for p in row.paths), row.transform
            )
    return None


def by_key(key: str, rows: Sequence[Row]) -> Match | None:
    """What a published tensor becomes, or None where no row names it."""
    return _find(key, tuple(rows), "key")


def by_path(path: str, rows: Sequence[Row]) -> Match | None:
    """Which published tensor a parameter is (the first part of), or None."""
    return _find(path, tuple(rows), "path")


def load_tensors(
    tensors: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    ignored: Sequence[str],
    abstract_params: Any,
    place: Callable[[np.ndarray, Any], Any] = lambda value, target: np.asarray(value, target.dtype),
) -> Any:
    """Builds the parameter tree from published tensors, one at a time.

    Args:
      tensors: published tensors by key. Everything is checked by shape and dtype before any value is read, so views of
        files cost nothing.
      rows, ignored: the family's table.
      abstract_params: nested dict of shapes and dtypes to fill.
      place: makes the final array of a value (a view of a tensor) and its target.

    Raises:
      CheckpointError: lists every unknown key, missing parameter, wrong shape and wrong dtype at once.
    """
    targets = flatten(abstract_params)
    ignore = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or "(?!)")
    chosen: list[Match] = []
    filled: dict[str, str] = {}
    problems = []
    for key, tensor in tensors.items():
        match = by_key(key, rows)
        if match is None:
            if not ignore.fullmatch(key):
                problems.append(f"unknown tensor {key}")
            continue
        if not is_float(tensor.dtype):
            problems.append(f"tensor {key} has dtype {tensor.dtype}, expected floating point")
            continue
        fits = True
        for path, value in match.to_params(_without_memory(tensor)):
            if path not in targets:
                problems.append(f"tensor {key} has no parameter {path} in this configuration")
            elif value.shape != targets[path].shape:
                problems.append(f"tensor {key} has shape {value.shape}, parameter {path} has {targets[path].shape}")
            elif path in filled:
                problems.append(f"tensors {filled[path]} and {key} are both parameter {path}")
            else:
                filled[path] = key
                continue
            fits = False
            filled.setdefault(path, key)  # named once, as misfit, and not again as missing
        if fits:
            chosen.append(match)
    problems += [f"no tensor for parameter {path}" for path in targets if path not in filled]
    if problems:
        raise CheckpointError("checkpoint does not fit the model:\n  " + "\n  ".join(sorted(problems)))
    leaves = {}
    for match in chosen:
        for path, value in match.to_params(tensors[match.key]):
            leaves[path] = place(value, targets[path])
    return jax.tree.unflatten(jax.tree.structure(abstract_params), [leaves[path] for path in targets])


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is a floating-point one that parameters are stored in."""
    return dtype in (np.float32, np.float16, ml_dtypes.bfloat16)


def _without_memory(tensor: np.ndarray) -> np.ndarray:
    """An array of the same shape that holds one number, to see what transforms do to shapes."""
    return np.broadcast_to(np.zeros((), np.uint8), tensor.shape)
