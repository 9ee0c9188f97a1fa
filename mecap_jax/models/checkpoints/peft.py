"""Adapters in PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`.

Which module of the published model an adapted projection is, the family's table says: a rule `X.weight -> Y.kernel` by
transposition means that our Y is its X. The adapter is `lora_A` [rank, in] and `lora_B` [out, rank] there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mecap_jax.json_files import is_named, write_json
from mecap_jax.model_config import LoraConfig, ModelConfig
from mecap_jax.models.checkpoints.families import LAYOUTS
from mecap_jax.models.checkpoints.hub_config import read_json
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles, write_file
from mecap_jax.models.checkpoints.table import CheckpointError, TensorRule, by_path, flatten, load_tensors
from mecap_jax.models.lora import ADAPTER_LEAVES
from mecap_jax.models.parameters import split_params

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = dict(zip(ADAPTER_LEAVES, (".lora_A.weight", ".lora_B.weight")))

# Fields of `peft.LoraConfig` that change neither what an adapter computes nor which adapters there are beyond what the
# tensors say. Any other field that is set asks for a variant of LoRA that this is not, known today or not.
_NEUTRAL = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r lora_alpha "
    "lora_dropout target_modules exclude_modules bias init_lora_weights layers_to_transform layers_pattern "
    "megatron_core runtime_config qalora_group_size".split()
)
# Initialisations that leave the base model's weights alone (None: the field is missing).
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")


def save_peft(directory: Path, params: Any, config: ModelConfig, base_model_name_or_path: str) -> None:
    """Writes the adapters of a model into `directory`.

    Args:
      params: nested dict that holds the adapters; other leaves are ignored.
      config: the adapted model's.
      base_model_name_or_path: what the adapters are for, as `transformers` would load it.

    Raises:
      CheckpointError: the published model has no module for some of the adapters; names every such projection.
    """
    adapters, _ = split_params(params, ())
    keys = _keys(adapters, config)
    modules = {key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in keys.values()}
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if config.decoder.encoder else "CAUSAL_LM",
        "base_model_name_or_path": base_model_name_or_path,
        "inference_mode": True,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": config.lora.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
    }
    tensors = {keys[path]: _transposed(leaf) for path, leaf in flatten(adapters).items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / SETTINGS, settings)
    write_file(directory / TENSORS, tensors)


def load_peft(directory: Path, abstract_params: Any, config: ModelConfig) -> Any:
    """Reads adapters that `save_peft` or PEFT wrote: a nested dict of their leaves only, float32 on the host.

    Args:
      abstract_params: nested dict of shapes, of the adapted model or of its adapters.
      config: the adapted model's.

    Raises:
      CheckpointError: as `load_tensors`, with settings that differ or are not supported in the same list. Projections
        without a published module are refused as in `save_peft`.
    """
    if config.lora is None:
        raise CheckpointError(f"{directory} holds adapters, the model has none (config key 'model.lora')")
    settings, tensors = _read(directory, config)
    adapters, _ = split_params(abstract_params, ())
    rules = [TensorRule(key, path, "transpose") for path, key in _keys(adapters, config).items()]
    problems = _setting_problems(settings, config.lora)
    try:
        return load_tensors(
            tensors, rules, (), adapters, lambda value, _: np.array(value, np.float32), problems=problems
        )
    except CheckpointError as error:
        raise CheckpointError(f"the adapter in {directory}: {error}") from None


def read_peft_config(directory: Path, params: Any, config: ModelConfig) -> LoraConfig:
    """The adapters that a directory holds, for a model that is still without: what `load_peft` then asks for.

    Args:
      params: nested dict of the model's (abstract) parameters.
      config: the model's.

    Raises:
      CheckpointError: the files cannot be read, rank or scale is no number, or no tensor is of a projection here.
    """
    settings, tensors = _read(directory, config)
    for name, kinds in (("r", int), ("lora_alpha", int | float)):
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < _LARGEST:
            raise CheckpointError(f"{directory / SETTINGS}: {name} must be a positive number, got {value!r:.60}")
    modules = {key.removeprefix(_PREFIX).partition(".lora_")[0] for key in tensors}
    targets = []
    for path in flatten(params):
        match = by_path(path, LAYOUTS[config.family].table.rules)
        if match is not None and match.transform == "transpose" and path.endswith(".kernel"):
            if _in_memory(match.key.removesuffix(".weight"), config) in modules:
                targets.append(re.escape(path.removesuffix(".kernel")))
    if not targets:
        raise CheckpointError(
            f"the adapter in {directory} is of another model: {config.family} has none of its modules, such as "
            + ", ".join(sorted(modules)[:3])
        )
    return LoraConfig(rank=settings["r"], alpha=float(settings["lora_alpha"]), targets=tuple(targets))


_LARGEST = 1e6  # of a rank or scale that makes sense


def _transposed(tensor: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(tensor, np.float32).T)


def _keys(adapters: Any, config: ModelConfig) -> dict[str, str]:
    """The key of every adapter leaf in PEFT's layout, by our path."""
    keys, strangers = {}, set()
    for path in flatten(adapters):
        projection, _, leaf = path.rpartition(".")
        match = by_path(f"{projection}.kernel", LAYOUTS[config.family].table.rules)
        if match is None or len(match.paths) > 1 or match.transform != "transpose":
            strangers.add(projection)
        else:
            keys[path] = _PREFIX + _in_memory(match.key.removesuffix(".weight"), config) + _SUFFIXES[leaf]
    if strangers:
        raise CheckpointError(
            f"{config.family} has no linear module that is one of these projections and nothing else, so PEFT's layout "
            "cannot express their adapters (config key 'model.lora.targets'):\n  " + "\n  ".join(sorted(strangers))
        )
    return keys


# Modules of multimodal models have other names in memory than their tensors have in published files. Adapters that were
# trained on a whole Qwen2.5-Omni, or with an earlier `transformers`, have the published ones.
_RENAMES = (
    (r"^thinker\.", ""),
    (r"^model\.(?=layers\.)", "model.language_model."),
    (r"^(?=visual\.|audio_tower\.)", "model."),
)


def _in_memory(module: str, config: ModelConfig) -> str:
    """A module's name in the `transformers` model, given that or its published one."""
    if config.audio is None and config.vision is None:
        return module
    for pattern, replacement in _RENAMES:
        module = re.sub(pattern, replacement, module)
    return module


# What trainers wrap around a model, and PEFT around its adapters, where the state of the whole is what was saved.
_WRAPPERS = re.compile(r"^(base_model\.model\.|module\.|_orig_mod\.|model\.(?=(model|thinker)\.))+")
_ADAPTER = re.compile(r"(\.lora_[AB])\.[^.]+(\.weight)$")  # its name, such as "default"


def _read(directory: Path, config: ModelConfig) -> tuple[Mapping[str, Any], TensorFiles]:
    """The settings, and the tensors under the names that `save_peft` gives them."""

    def rename(key: str) -> str:
        return _PREFIX + _in_memory(_ADAPTER.sub(r"\1\2", _WRAPPERS.sub("", key)), config)

    missing = [name for name in (SETTINGS, TENSORS) if not is_named(directory / name)]
    if missing:
        raise CheckpointError(f"no adapter in {directory}: {' and '.join(missing)} missing")
    settings, files = read_json(directory / SETTINGS), TensorFiles(directory, rename, single=TENSORS)
    if files.problems:
        raise CheckpointError(f"the adapter in {directory} cannot be read: {'; '.join(files.problems)}")
    return settings, files


def _setting_problems(settings: Mapping[str, Any], lora: LoraConfig) -> list[str]:
    """What the adapter's settings ask for and the model does not do."""
    expected = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha, "bias": "none"}
    problems = [
        f"{SETTINGS}: {name} is {settings.get(name)!r}, here it is {value!r}"
        for name, value in expected.items()
        if settings.get(name) != value
    ]
    problems += [
        f"{SETTINGS}: {name} = {value!r} is not supported"
        for name, value in settings.items()
        if value and name not in _NEUTRAL
    ]
    start = settings.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        problems.append(f"{SETTINGS}: init_lora_weights = {start!r} is not supported, it may change the base model")
    return problems
