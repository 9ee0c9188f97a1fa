"""The table behind an import: rows of published key, parameter path and transform, and the loader that reads it.

Loading is strict: a tensor that no row names, a parameter that no tensor fills and a wrong shape are all collected
and reported in one error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model; the message lists every problem."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One published tensor and the parameter it becomes; `{i}` stands for a layer's number on both sides."""

    key: str
    path: str
    transform: str = "none"


def linear(prefix: tuple[str, str], name: str, *, bias: bool = False) -> list[Row]:
    """Rows of a linear layer: published weights are [out, in], ours [in, out]."""
    rows = [Row(f"{prefix[0]}{name}.weight", f"{prefix[1]}{name}.kernel", "transpose")]
    return rows + ([Row(f"{prefix[0]}{name}.bias", f"{prefix[1]}{name}.bias")] if bias else [])


_TRANSFORMS = {
    "none": lambda x: x,
    "transpose": lambda x: x.T,
    "convolution_1d": lambda x: x.transpose(2, 1, 0),  # [out, in, width] -> [width, in, out]
    "patch_convolution": lambda x: x.reshape(x.shape[0], -1).T,  # a convolution that is one product per patch
}


def flatten(params: Any) -> dict[str, Any]:
    """Flattens a nested parameter dict into `a.b.0.c` paths."""
    return {
        ".".join(str(getattr(k, "key", k)) for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }


def load_tensors(
    tensors: Mapping[str, np.ndarray], rows: Sequence[Row], ignored: Sequence[str], abstract_params: Any
) -> Any:
    """Builds the parameter tree from published tensors.

    Args:
      tensors: published tensors by key.
      rows, ignored: the family's table.
      abstract_params: nested dict of shapes and dtypes to fill.

    Raises:
      CheckpointError: lists every unknown key, missing parameter and wrong shape at once.
    """
    targets = flatten(abstract_params)
    patterns = [(re.compile(re.escape(row.key).replace(r"\{i\}", r"(\d+)") + "$"), row) for row in rows]
    filled: dict[str, np.ndarray] = {}
    problems = []
    for key, tensor in tensors.items():
        matches = [(match, row) for pattern, row in patterns if (match := pattern.match(key))]
        if not matches:
            if not any(re.fullmatch(pattern, key) for pattern in ignored):
                problems.append(f"unknown tensor {key}")
            continue
        match, row = matches[0]
        path = row.path.replace("{i}", match.group(1)) if match.groups() else row.path
        if path not in targets:
            problems.append(f"tensor {key} has no parameter {path} in this configuration")
            continue
        value = _TRANSFORMS[row.transform](tensor)
        if value.shape != targets[path].shape:
            problems.append(f"tensor {key} has shape {value.shape}, parameter {path} has {targets[path].shape}")
            continue
        filled[path] = value
    problems += [f"no tensor for parameter {path}" for path in targets if path not in filled]
    if problems:
        raise CheckpointError("checkpoint does not fit the model:\n  " + "\n  ".join(sorted(problems)))
    leaves = [np.asarray(filled[path], targets[path].dtype) for path in targets]
    return jax.tree.unflatten(jax.tree.structure(abstract_params), leaves)
