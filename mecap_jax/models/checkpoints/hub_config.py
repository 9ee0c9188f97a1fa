"""`config.json` of the Hugging Face families, read into a `ModelConfig`.

Reading is strict: every field is implemented, has the one value that the code implements, or is known to leave the
network as it is; any other field is refused by name. The published layout (`thinker_config` inside Qwen2.5-Omni's,
flat fields of Qwen2.5-VL, `rope_scaling`) and the one that transformers 5 writes (`text_config`, `rope_parameters`)
are both read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mecap_jax.json_files import read_json_object
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.config_reader import Fields
from mecap_jax.models.checkpoints.families import LAYOUTS
from mecap_jax.models.checkpoints.table import CheckpointError

CONFIG_FILE = "config.json"


def read_config(directory: Path) -> ModelConfig:
    """The network that `config.json` in a directory describes; `param_dtype` is the dtype it names.

    Raises:
      CheckpointError: no such file, an unknown family, or fields that are not implemented; all are named.
    """
    path = directory / CONFIG_FILE
    return parse_config(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
      CheckpointError: no such file, or it holds something else.
    """
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from None


def parse_config(config: Mapping[str, Any], name: str) -> ModelConfig:
    """See `read_config`; `name` is what errors call the configuration."""
    readers = {kind: reader for layout in LAYOUTS.values() for kind, reader in layout.readers.items()}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in readers:
        raise CheckpointError(f"{name}: model_type {kind!r:.80} is not one of {sorted(readers)}")
    problems: list[str] = []
    parsed = readers[kind](Fields(config, "", problems), config)
    if problems:
        raise CheckpointError(f"{name} describes a network that is not implemented:\n  " + "\n  ".join(problems))
    return parsed
