"""How the files of HumanOmni-0.5B are read, the base of R1-Omni and ERV: its configuration, and which tensor is what.

Vision tower, audio tower and BERT are public models which HumanOmni takes as they are. As its code has it, they come
from directories of their own, which stand within HumanOmni's under the names that `config.json` has for them; copies of
their tensors among HumanOmni's own are passed over.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mecap_jax.model_config import DecoderConfig
from mecap_jax.models.bert import BertConfig
from mecap_jax.models.checkpoints.config_reader import Fields, read_decoder, read_dtype
from mecap_jax.models.checkpoints.families import DECODER
from mecap_jax.models.checkpoints.hub_config import CONFIG_FILE, read_json
from mecap_jax.models.checkpoints.table import CheckpointError, Table, TensorRule
from mecap_jax.models.encoders.pictures import PictureConfig
from mecap_jax.models.encoders.whisper import WhisperConfig
from mecap_jax.models.human_omni_projector import STAGE_DEPTH

MODEL_TYPE = "HumanOmni_qwen2"
TEXT_DIRECTORY = "bert-base-uncased"
# Fields of the training code, and one of another model's.
_TRAINING = (
    "freeze_mm_mlp_adapter",
    "hyper_layers",
    "image_aspect_ratio",
    "mm_projector_lr",
    "mm_tunable_parts",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "tune_mm_mlp_adapter",
    "use_mm_proj",
)
# Of the states of a vision tower with as many layers as it has, those that go into the last one.
VISION_LAYER = -2


@dataclasses.dataclass(frozen=True)
class HumanOmniConfig:
    """The network in a directory.

    Attributes:
      decoder: Qwen2.
      vision, audio, text: SigLIP, Whisper's encoder, BERT.
      vision_directory, audio_directory: their names within the directory.
      frames: how many frames of a video are looked at, however long it is.
      dtype: of parameters and matrix products outside of the towers; that which `config.json` names.
    """

    decoder: DecoderConfig
    vision: PictureConfig
    audio: WhisperConfig
    text: BertConfig
    vision_directory: str
    audio_directory: str
    frames: int
    dtype: str


def read_human_omni(directory: Path) -> HumanOmniConfig:
    """The network that `config.json` in a directory, and those of the towers within it, describe.

    Raises:
      CheckpointError: a file is missing, or fields are not implemented; all fields of a file are named at once.
    """
    path = directory / CONFIG_FILE
    config, problems = read_json(path), []
    fields = Fields(config, "", problems)
    fields.allow(*_TRAINING)
    if config.get("model_type") != MODEL_TYPE:
        fields.problem("model_type", f" {config.get('model_type')!r:.60} is not {MODEL_TYPE!r}")
    fields.expect("mm_projector_type", "all_in_one_small")
    fields.expect("mm_audio_projector_type", "mlp2x_gelu")
    fields.expect("mm_vision_select_layer", VISION_LAYER)
    fields.expect("mm_vision_select_feature", "patch")
    fields.expect("mm_use_x_start_end", True)
    names = [_directory_name(fields, name) for name in ("mm_vision_tower", "mm_audio_tower")]
    widths = [fields.number("mm_hidden_size"), fields.number("audio_hidden_size", 1280)]
    frames, tied = fields.number("num_frames", 8), fields.flag("tie_word_embeddings", False)
    dtype = read_dtype(fields, config)
    decoder = read_decoder(fields, tied=tied, multimodal=False)
    if problems:
        raise CheckpointError(f"{path} describes a network that is not implemented:\n  " + "\n  ".join(problems))
    vision = _read_tower(directory / names[0], PictureConfig.from_hugging_face)
    audio = _read_tower(directory / names[1], WhisperConfig.from_hugging_face)
    text = _read_tower(directory / TEXT_DIRECTORY, BertConfig.from_hugging_face)
    side = vision.image // vision.patch
    if vision.kind != "siglip":
        raise CheckpointError(f"{directory / names[0] / CONFIG_FILE}: only SigLIP is implemented, not {vision.kind}")
    if side % 2:
        raise CheckpointError(f"{directory / names[0] / CONFIG_FILE}: {side} x {side} patches do not divide by 2 x 2")
    for name, tower, said in zip(names, (vision, audio), widths):
        if tower.block.width != said:
            raise CheckpointError(f"{directory / name / CONFIG_FILE}: a width of {tower.block.width}, {path}: {said}")
    return HumanOmniConfig(decoder, vision, audio, text, *names, frames, dtype)


def _directory_name(fields: Fields, field: str) -> str:
    """The last part of the path or name that a field holds: where the tower is, within the directory."""
    value = fields.part(field)
    name = PurePosixPath(value).name if isinstance(value, str) else ""
    fields.require(re.fullmatch(r"\w[\w.-]*", name) is not None, field, f" = {value!r:.80} names no directory")
    return name


_Config = TypeVar("_Config")


def _read_tower(directory: Path, read: Callable[[Mapping[str, Any]], _Config]) -> _Config:
    try:
        return read(read_json(directory / CONFIG_FILE))
    except ValueError as error:
        place = "" if isinstance(error, CheckpointError) else f"{directory / CONFIG_FILE}: "
        raise CheckpointError(f"{place}{error}") from None


# --- table --------------------------------------------------------------------------------------------------------


def _linear(key: str, path: str) -> list[TensorRule]:
    return [TensorRule(f"{key}.weight", f"{path}.kernel", "transpose"), TensorRule(f"{key}.bias", f"{path}.bias")]


def _mlp(key: str, path: str) -> list[TensorRule]:
    return [*_linear(f"{key}.0", f"{path}.fc1"), *_linear(f"{key}.2", f"{path}.fc2")]


def _norm(key: str, path: str) -> list[TensorRule]:
    return [TensorRule(f"{key}.weight", f"{path}.scale"), TensorRule(f"{key}.bias", f"{path}.bias")]


def _block(key: str, path: str) -> list[TensorRule]:
    squeezes = (("fc1", "squeeze"), ("fc2", "excite"))
    return [
        *(TensorRule(f"{key}.conv{n}.conv.weight", f"{path}.conv{n}.kernel", "pointwise") for n in (1, 3)),
        TensorRule(f"{key}.conv2.conv.weight", f"{path}.conv2.kernel", "convolution"),
        *(rule for n in (1, 2, 3) for rule in _norm(f"{key}.conv{n}.bn", f"{path}.norm{n}")),
        *(TensorRule(f"{key}.se.{k}.weight", f"{path}.{p}.kernel", "pointwise") for k, p in squeezes),
        *(TensorRule(f"{key}.se.{k}.bias", f"{path}.{p}.bias") for k, p in squeezes),
        TensorRule(f"{key}.downsample.conv.weight", f"{path}.shortcut.kernel", "pointwise"),
        *_norm(f"{key}.downsample.bn", f"{path}.shortcut_norm"),
    ]


def _branch(name: str) -> list[TensorRule]:
    key, path = "model.mm_projector.", f"mm_projector.{name}"
    stages = [(stage, n) for stage in ("s1", "s2") for n in range(STAGE_DEPTH)]
    return [
        # Published blocks are counted from 1.
        *(rule for s, n in stages for rule in _block(f"{key}{s}_{name}.b{n + 1}", f"{path}.{s}.blocks.{n}")),
        TensorRule(f"{key}sampler_{name}.0.weight", f"{path}.sampler.kernel", "convolution"),
        TensorRule(f"{key}sampler_{name}.0.bias", f"{path}.sampler.bias"),
        *_mlp(f"{key}readout_{name}", f"{path}.readout"),
    ]


TABLE = Table(
    rules=(
        *DECODER,
        *_branch("video"),
        *_branch("body"),
        *_mlp("model.mm_projector.mlp_2xgelu_face", "mm_projector.face"),
        *_mlp("model.bert_gate", "bert_gate.mlp"),
        *_mlp("model.audio_projector", "audio_projector.mlp"),
    ),
    ignored=(
        *(rf"model\.{tower}\..*" for tower in ("vision_tower", "audio_tower", "bert_model")),
        # Of HumanOmni's compression of frames, which R1-Omni's code has not; its own code does not read them, either.
        r"model\.feature_compressor\.vlm_(query|key)_projector\.(weight|bias)",
    ),
)
