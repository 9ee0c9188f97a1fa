"""The table behind import and export: rules of published key, parameter path and transform, read in both directions.

Loading is strict: a tensor that no rule names, a parameter that no tensor fills, a wrong shape and a dtype that is not
floating point are all collected and reported in one error.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np

MOST_LAYERS = 1000  # a stranger's configuration must not keep a machine busy with making layers


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model; the message lists every problem."""


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """One published tensor and the parameter it becomes; `{i}` stands for a layer's number on both sides.

    Several paths: the published tensor is divided into as many equal parts, along the axis of its outputs.
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
      rules: what is read and written.
      ignored: regular expressions of keys that are knowingly left out.
      aliases: (pattern, replacement), applied in order to the keys of a file before rules are looked up.
      zero: parameters that are zero where a file has no tensor for them.
    """

    rules: tuple[TensorRule, ...]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    zero: tuple[str, ...] = ()

    def key(self, key: str) -> str:
        """The key as the rules have it."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        return key


def linear(prefix: tuple[str, str], name: str, *, bias: bool = False) -> list[TensorRule]:
    """Rows of a linear layer: published weights are [out, in], ours [in, out]."""
    rules = [TensorRule(f"{prefix[0]}{name}.weight", f"{prefix[1]}{name}.kernel", "transpose")]
    return rules + ([TensorRule(f"{prefix[0]}{name}.bias", f"{prefix[1]}{name}.bias")] if bias else [])


# To ours and back; views wherever NumPy can make one. The way back is given the published shape behind the first axis.
_TRANSFORMS: dict[str, tuple[Callable, Callable]] = {
    "none": (lambda x: x, lambda x, shape: x),
    "transpose": (lambda x: x.T, lambda x, shape: x.T),
    # [in, out] on both sides: GPT-2's "Conv1D".
    "product": (lambda x: x, lambda x, shape: x),
    "row": (lambda x: x[0], lambda x, shape: x[None]),
    # [out, in, *width] <-> [*width, in, out]
    "convolution": (lambda x: np.moveaxis(x, (1, 0), (-2, -1)), lambda x, shape: np.moveaxis(x, (-2, -1), (1, 0))),
    # A convolution of width 1 over rows and columns is one product: [out, in, 1, 1] <-> [in, out].
    "pointwise": (lambda x: x[:, :, 0, 0].T, lambda x, shape: x.T[:, :, None, None]),
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
        size = tensor.shape[self._outputs] // len(self.paths)
        for n, path in enumerate(self.paths):
            part = slice(n * size, (n + 1) * size)
            yield path, to_ours(tensor[..., part] if self._outputs else tensor[part])

    def published_shape(self, shape: tuple[int, ...], patch: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Shape of the published tensor whose parts become parameters of `shape`; `patch` as in `load_tensors`."""
        if self.transform == "patch_convolution":
            first, *rest = (shape[1], *patch)
        elif self.transform == "convolution":
            first, *rest = (shape[-1], shape[-2], *shape[:-2])
        elif self.transform == "pointwise":
            first, *rest = (*shape[::-1], 1, 1)
        elif self.transform == "row":
            return (1, *shape)
        elif self.transform == "product":
            return (*shape[:-1], shape[-1] * len(self.paths))
        else:
            first, *rest = shape if self.transform == "none" else shape[::-1]
        return (first * len(self.paths), *rest)

    @property
    def _outputs(self) -> int:
        """The published tensor's axis of outputs, along which several parameters stand."""
        return -1 if self.transform == "product" else 0

    def to_tensor(self, values: Sequence[np.ndarray], shape: tuple[int, ...] = ()) -> np.ndarray:
        """The published tensor; `shape` is its shape behind the first axis, for transforms that lose it."""
        parts = [_TRANSFORMS[self.transform][1](value, shape) for value in values]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self._outputs)


@functools.cache
def _patterns(rules: tuple[TensorRule, ...], side: str) -> list[tuple[re.Pattern, TensorRule]]:
    texts = [rule.key if side == "key" else rule.paths[0] for rule in rules]
    return [(re.compile(re.escape(text).replace(r"\{i\}", r"([0-9]+)")), rule) for text, rule in zip(texts, rules)]


def _find(text: str, rules: tuple[TensorRule, ...], side: str) -> Match | None:
    for pattern, rule in _patterns(rules, side):
        if match := pattern.fullmatch(text):
            number = match.group(1) if match.groups() else ""
            return Match(
                rule.key.replace("{i}", number), tuple(p.replace("{i}", number) for p in rule.paths), rule.transform
            )
    return None


def by_key(key: str, rules: Sequence[TensorRule]) -> Match | None:
    """What a published tensor becomes, or None where no rule names it."""
    return _find(key, tuple(rules), "key")


def by_path(path: str, rules: Sequence[TensorRule]) -> Match | None:
    """Which published tensor a parameter is (the first part of), or None."""
    return _find(path, tuple(rules), "path")


@runtime_checkable
class Tensor(Protocol):
    """What is loaded: a NumPy array, or something that knows its shape and dtype and maps the values on demand."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def view(self) -> np.ndarray: ...


def load_tensors(
    tensors: Mapping[str, Tensor],
    rules: Sequence[TensorRule],
    ignored: Sequence[str],
    abstract_params: Any,
    place: Callable[[np.ndarray, Any], Any] = lambda value, target: np.array(value, target.dtype),
    *,
    wanted: Callable[[str], bool] = lambda path: True,
    patch: tuple[int, ...] = (),
    problems: Sequence[str] = (),
    is_complete: bool = True,
    zero: Sequence[str] = (),
) -> Any:
    """Builds the parameter tree from published tensors, one at a time.

    Args:
      tensors: published tensors by key. Everything is checked by shape and dtype before any value is read.
      rules, ignored: the family's table.
      abstract_params: nested dict of shapes and dtypes to fill.
      place: makes the final array of a value (a view of a tensor) and its target.
      wanted: which parameters are read, by path; all are checked.
      patch: shape of a patch (channels, frames, height, width), for a convolution over patches.
      problems: what is known to be wrong already.
      is_complete: whether `tensors` are all that there should be; otherwise it is not named which are missing.
      zero: parameters that may be missing, and are zero then, by path.

    Returns:
      The nested dict of the wanted parameters.

    Raises:
      CheckpointError: lists every unknown key, missing parameter, wrong shape and wrong dtype at once, or every tensor
        that holds NaN or infinity; or the weights are quantised.
    """
    targets = flatten(abstract_params)
    ignore = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or "(?!)")
    chosen: dict[str, Match] = {}
    filled: dict[str, str] = {}
    problems = list(problems)
    for key, tensor in tensors.items():
        match = by_key(key, rules)
        if match is None:
            if not ignore.fullmatch(key):
                problems.append(f"unknown tensor {key}")
            continue
        problem = _problem(key, tensor, match, targets, patch)
        for path in match.paths:
            if path in filled:
                problem = f"tensors {filled[path]} and {key} are both parameter {path}"
            filled.setdefault(path, key)
        if problem is None:
            chosen[key] = match
        else:
            problems.append(problem)
    if is_complete:
        problems += [f"no tensor for parameter {path}" for path in targets if path not in filled and path not in zero]
    if problems:
        raise CheckpointError("checkpoint does not fit the model:\n  " + "\n  ".join(sorted(problems)))
    missing = [path for path in zero if path in targets and path not in filled and wanted(path)]
    leaves = {path: place(np.zeros(targets[path].shape, targets[path].dtype), targets[path]) for path in missing}
    broken = []
    for key, match in chosen.items():
        if any(map(wanted, match.paths)):
            tensor = tensors[key].view()
            if not all_finite(tensor):
                broken.append(key)
            elif not broken:
                for path, value in match.to_params(tensor):
                    leaves[path] = place(value, targets[path])
    if broken:
        raise CheckpointError("tensors hold NaN or infinity: " + ", ".join(sorted(broken)))
    part = select_params(abstract_params, wanted)
    return jax.tree.unflatten(jax.tree.structure(part), [leaves[path] for path in flatten(part)])


def all_finite(tensor: np.ndarray) -> bool:
    """Whether floating-point values are neither NaN nor infinite, from their bits: seven times as fast in bfloat16."""
    bits = np.dtype(f"u{tensor.dtype.itemsize}")
    infinity = np.array(np.inf, tensor.dtype).view(bits)
    magnitude = bits.type(np.iinfo(bits).max >> 1)
    flat = tensor.reshape(-1).view(bits)
    return all((flat[i : i + _BLOCK] & magnitude).max() < infinity for i in range(0, len(flat), _BLOCK))


_BLOCK = 2**18  # values; what is computed of them stays in the cache


def _problem(key: str, tensor: Tensor, match: Match, targets: Mapping[str, Any], patch: tuple[int, ...]) -> str | None:
    """Why a tensor cannot become its parameters, or None."""
    if tensor.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
        return f"tensor {key} has dtype {tensor.dtype}, read are float32, bfloat16 and float16"
    for path in match.paths:
        if path not in targets:
            return f"tensor {key} has no parameter {path} in this configuration"
        expected = match.published_shape(tuple(targets[path].shape), patch)
        if tuple(tensor.shape) != expected:
            return f"tensor {key} has shape {tuple(tensor.shape)}, parameter {path} wants {expected}"
    return None


def select_params(tree: Any, wanted: Callable[[str], bool], prefix: str = "") -> Any:
    """The part of a nested dict whose leaves have a wanted dotted path, without empty branches; copies nothing."""
    selected = {}
    for name, child in tree.items():
        path = f"{prefix}{name}"
        if not isinstance(child, dict):
            if wanted(path):
                selected[name] = child
        elif part := select_params(child, wanted, f"{path}."):
            selected[name] = part
    return selected
