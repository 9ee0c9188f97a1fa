"""Models from and to a directory in the Hugging Face layout.

Import maps the files and gives every device its part of every tensor, one tensor at a time: the host never holds more
than one of them beside the destination. Export is the way back; what was imported comes out byte for byte.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mecap_jax.config import differences
from mecap_jax.json_files import as_json, write_json
from mecap_jax.model_config import FeatureProjectorConfig, ModelConfig
from mecap_jax.models.checkpoints.families import LAYOUTS, PROJECTOR
from mecap_jax.models.checkpoints.hub_config import read_config, read_json
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles, write_file, write_tensors
from mecap_jax.models.checkpoints.table import CheckpointError, Table, TensorRule, by_path, flatten, load_tensors

# Beside the published files, for models that read precomputed features.
PROJECTOR_CONFIG, PROJECTOR_FILE = "feature_projector.json", "feature_projector.safetensors"


def read_model(directory: Path) -> ModelConfig:
    """The network in a directory, the projector of an export of ours included.

    Raises:
      CheckpointError: as `hub_config.read_config`, or the projector's configuration is not one.
    """
    model = read_config(directory)
    path = directory / PROJECTOR_CONFIG
    if not path.is_file():
        return model
    fields = read_json(path)
    try:
        lists = (tuple(fields["names"]), tuple(fields["dims"]))
        features = FeatureProjectorConfig(*lists, fields["hidden_size"], tuple(fields.get("layers", ())))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} must hold names, dims and hidden_size ({error!r})") from None
    sizes = (*features.dims, *features.layers, features.hidden_size)
    if any(type(size) is not int or size < 1 for size in sizes):
        raise CheckpointError(f"{path}: dims, layers and hidden_size must be positive integers, got {sizes!r:.80}")
    if misfit := features.misfit():
        raise CheckpointError(f"{path}: {misfit}")
    return dataclasses.replace(model, features=features)


def load_model(directory: Path, model: ModelConfig, abstract_params: Any) -> Any:
    """All parameters of the network that `read_model` found there. Raises as `load_weights`."""
    params = load_weights(directory, model, published_part(abstract_params))
    if model.features is not None:
        params |= load_projector(directory, abstract_params)
    return params


def save_model(
    directory: Path,
    model: ModelConfig,
    params: Any,
    source: Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
    dtype: str | None = None,
    prefix: str = "",
) -> None:
    """Writes all parameters; what `load_model` reads. Arguments and errors as of `save_weights`."""
    save_weights(directory, model, published_part(params), source, max_shard_bytes, dtype, prefix)
    if model.features is not None:
        save_projector(directory, model, params, dtype)


def save_projector(directory: Path, model: ModelConfig, params: Any, dtype: str | None = None) -> None:
    """Writes the projector's parameters and configuration; `dtype` and errors as of `save_weights`."""
    flat = flatten({_PROJECTOR: params[_PROJECTOR]})
    tensors = {}
    for path, leaf in flat.items():
        match = by_path(path, PROJECTOR)
        value = match.to_tensor([np.asarray(jax.device_get(leaf))])
        tensors[match.key] = _cast(match.key, value, dtype)
    write_file(directory / PROJECTOR_FILE, tensors)
    write_json(directory / PROJECTOR_CONFIG, dataclasses.asdict(model.features))


def load_projector(directory: Path, abstract_params: Any) -> dict[str, Any]:
    """The projector's parameters, under their name in the tree. Raises as `load_weights`."""
    files = TensorFiles(directory, single=PROJECTOR_FILE)
    part = {_PROJECTOR: abstract_params[_PROJECTOR]}
    return _load(directory, files, PROJECTOR, (), part)


_PROJECTOR = "feature_projector"


def load_weights(
    directory: Path, model: ModelConfig, abstract_params: Any, wanted: Callable[[str], bool] = lambda path: True
) -> Any:
    """Reads a family's published weights into the dtypes and shardings of `abstract_params`.

    Parts that the published model does not have (the feature projector, adapters) are not among them.

    Args:
      abstract_params: nested dict of ShapeDtypeStructs; with shardings, values go straight to their devices.
      wanted: which parameters are read, by dotted path; all are checked.

    Raises:
      CheckpointError: unknown or missing tensors, wrong shapes or dtypes, truncated files: one error lists them all.
    """
    patch = _patch_shape(model) if model.vision else ()
    tied = model.decoder.tie_word_embeddings
    return load_table(directory, LAYOUTS[model.family].table, tied, abstract_params, wanted=wanted, patch=patch)


def load_table(directory: Path, table: Table, tied: bool, abstract_params: Any, **rest) -> Any:
    """Reads the parameters that a table names into the dtypes and shardings of `abstract_params`.

    Args:
      tied: whether the decoder's output weights are its embeddings.
      rest: of `load_tensors`.

    Raises:
      CheckpointError: as `load_weights`.
    """
    files = TensorFiles(directory, table.key)
    rules, ignored = table.rules, table.ignored
    head, embeddings = (next(rule.key for rule in rules if rule.path == path) for path in (_HEAD, _EMBEDDINGS))
    if tied and {head, embeddings} <= set(files) and not files.problems:
        # Some files hold the output weights a second time; where they are not the embeddings, they are not tied.
        if np.array_equal(files[head].view(), files[embeddings].view()):
            rules, ignored = tuple(rule for rule in rules if rule.key != head), (*ignored, re.escape(head))
    return _load(directory, files, rules, ignored, abstract_params, zero=table.zero, **rest)


def _load(
    directory: Path, files: TensorFiles, rules: Sequence[TensorRule], ignored: Sequence[str], params: Any, **rest
) -> Any:
    """`load_tensors` onto the devices; errors name the directory, and what is wrong with its files."""
    known = dict(problems=files.problems, is_complete=files.is_complete)
    try:
        return load_tensors(files, rules, ignored, params, _place, **known, **rest)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None


_HEAD, _EMBEDDINGS = "language_model.lm_head.kernel", "language_model.embed_tokens.embedding"


def _place(value: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Puts a view onto the devices; strides are resolved on the way, without a copy of our own."""
    value = value if value.dtype == target.dtype else value.astype(target.dtype)
    sharding = target.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # Never aliased: an array that is a mapped file would change with the file.
    if len(sharding.device_set) == 1 and sharding.is_fully_addressable:
        return jax.device_put(value, sharding, may_alias=False)
    return jax.make_array_from_callback(value.shape, sharding, lambda part: np.array(value[part], order="C"))


def save_weights(
    directory: Path,
    model: ModelConfig,
    params: Any,
    source: Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
    dtype: str | None = None,
    prefix: str = "",
) -> None:
    """Writes parameters as the family's published tensors, a shard at a time.

    Args:
      params: nested dict of arrays, the feature projector and adapters left out.
      source: directory that the weights came from: tensors that the network has no use for are copied from there
        (zeros without it).
      dtype: what all tensors are rounded to, once; None leaves each the dtype that it has.
      prefix: of all keys ("thinker." in a whole Qwen2.5-Omni).

    Raises:
      CheckpointError: a parameter has no place in the family's layout, `source` cannot be read, or a value is too
        large for `dtype`.
    """
    flat, layout = flatten(params), LAYOUTS[model.family]
    matches = {}
    for path in flat:
        match = by_path(path, layout.table.rules)
        if match is not None:
            matches[match.key] = match
    written = {path for match in matches.values() for path in match.paths}
    if homeless := sorted(set(flat) ^ written):
        raise CheckpointError(f"{model.family} has no tensor for the parameters " + ", ".join(homeless))
    carried = {key: (rows, model.decoder.hidden_size) for key, rows in layout.carried.items()}
    original = TensorFiles(source, layout.table.key) if source is not None and carried else {}

    def carry(key: str) -> np.ndarray:
        return original[key].view() if key in original else np.zeros(carried[key], model.param_dtype)

    def tensor(key: str) -> np.ndarray:
        if key in carried:
            return _cast(key, carry(key), dtype)
        match = matches[key]
        values = [np.asarray(jax.device_get(flat[path])) for path in match.paths]
        shape = _patch_shape(model) if match.transform == "patch_convolution" else ()
        return _cast(key, match.to_tensor(values, shape), dtype)

    counts = {key: sum(flat[path].size for path in match.paths) for key, match in matches.items()}
    widths = {key: flat[match.paths[0]].dtype.itemsize for key, match in matches.items()}
    for key in carried:
        counts[key], widths[key] = carry(key).size, carry(key).dtype.itemsize
    if dtype is not None:
        widths = dict.fromkeys(widths, jnp.dtype(dtype).itemsize)
    sizes = {prefix + key: counts[key] * widths[key] for key in sorted(counts)}
    write_tensors(directory, sizes, lambda key: tensor(key.removeprefix(prefix)), max_shard_bytes)


def _cast(key: str, value: np.ndarray, dtype: str | None) -> np.ndarray:
    if dtype is None or value.dtype == jnp.dtype(dtype):
        return value
    with np.errstate(over="ignore"):  # named below
        cast = value.astype(jnp.dtype(dtype))
    if np.any(np.isinf(cast) & np.isfinite(value)):
        raise CheckpointError(f"tensor {key} holds {np.abs(value).max():.3g}, which is too large for {dtype}")
    return cast


def _patch_shape(model: ModelConfig) -> tuple[int, ...]:
    vision = model.vision
    return vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size


def published_part(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a family's files hold: all but the feature projector."""
    return {name: value for name, value in params.items() if name != _PROJECTOR}


def describe_mismatch(asked: ModelConfig, found: ModelConfig) -> list[str]:
    """The fields in which a configured network differs from the one that a directory describes."""
    asked, found = (as_json(dataclasses.asdict(model)) for model in (asked, found))
    return [
        f"model.{key}: {ours!r} asked, {theirs!r} there"
        for key, theirs, ours in differences(found, asked)
        if key.partition(".")[0] in _NETWORK
    ]


# What of a configuration is the checkpoint's business: not its name, its dtypes, or what we add to it.
_NETWORK = ("family", "decoder", "audio", "vision", "position_id_per_seconds", "seconds_per_chunk")
