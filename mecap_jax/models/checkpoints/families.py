"""How the files of every family are read and written: its configuration, and which tensor is which parameter.

The tables have a key of the published checkpoints on the left (without Qwen2.5-Omni's `thinker.`), and on the right the
path in our parameter tree and the transform that leads from the published tensor to ours. A family has the rules of the
parts it is made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints import bart, gpt2
from mecap_jax.models.checkpoints.config_reader import Fields, read_omni, read_text, read_vl, read_whole_omni
from mecap_jax.models.checkpoints.table import Table, TensorRule, linear

_DECODER_LAYER = ("model.layers.{i}.", "language_model.layers.{i}.")
_AUDIO_LAYER = ("audio_tower.layers.{i}.", "audio_tower.layers.{i}.")
_VISION_BLOCK = ("visual.blocks.{i}.", "visual.blocks.{i}.")


def _norm(prefix: tuple[str, str], name: str, *, bias: bool = False) -> list[TensorRule]:
    rules = [TensorRule(f"{prefix[0]}{name}.weight", f"{prefix[1]}{name}.scale")]
    return rules + ([TensorRule(f"{prefix[0]}{name}.bias", f"{prefix[1]}{name}.bias")] if bias else [])


DECODER = (
    TensorRule("model.embed_tokens.weight", "language_model.embed_tokens.embedding"),
    TensorRule("model.norm.weight", "language_model.norm.scale"),
    TensorRule("lm_head.weight", "language_model.lm_head.kernel", "transpose"),
    *linear(_DECODER_LAYER, "self_attn.q_proj", bias=True),
    *linear(_DECODER_LAYER, "self_attn.k_proj", bias=True),
    *linear(_DECODER_LAYER, "self_attn.v_proj", bias=True),
    *linear(_DECODER_LAYER, "self_attn.o_proj"),
    *_norm(_DECODER_LAYER, "self_attn.q_norm"),
    *_norm(_DECODER_LAYER, "self_attn.k_norm"),
    *linear(_DECODER_LAYER, "mlp.gate_proj"),
    *linear(_DECODER_LAYER, "mlp.up_proj"),
    *linear(_DECODER_LAYER, "mlp.down_proj"),
    *_norm(_DECODER_LAYER, "input_layernorm"),
    *_norm(_DECODER_LAYER, "post_attention_layernorm"),
)
_AUDIO = (
    TensorRule("audio_tower.conv1.weight", "audio_tower.conv1.kernel", "convolution"),
    TensorRule("audio_tower.conv1.bias", "audio_tower.conv1.bias"),
    TensorRule("audio_tower.conv2.weight", "audio_tower.conv2.kernel", "convolution"),
    TensorRule("audio_tower.conv2.bias", "audio_tower.conv2.bias"),
    *_norm(("audio_tower.", "audio_tower."), "ln_post", bias=True),
    *linear(("audio_tower.", "audio_tower."), "proj", bias=True),
    *linear(_AUDIO_LAYER, "self_attn.q_proj", bias=True),
    *linear(_AUDIO_LAYER, "self_attn.k_proj"),
    *linear(_AUDIO_LAYER, "self_attn.v_proj", bias=True),
    *linear(_AUDIO_LAYER, "self_attn.out_proj", bias=True),
    *linear(_AUDIO_LAYER, "fc1", bias=True),
    *linear(_AUDIO_LAYER, "fc2", bias=True),
    *_norm(_AUDIO_LAYER, "self_attn_layer_norm", bias=True),
    *_norm(_AUDIO_LAYER, "final_layer_norm", bias=True),
)
_VISION = (
    TensorRule("visual.patch_embed.proj.weight", "visual.patch_embed.kernel", "patch_convolution"),
    *linear(_VISION_BLOCK, "attn.proj", bias=True),
    *linear(_VISION_BLOCK, "mlp.gate_proj", bias=True),
    *linear(_VISION_BLOCK, "mlp.up_proj", bias=True),
    *linear(_VISION_BLOCK, "mlp.down_proj", bias=True),
    *_norm(_VISION_BLOCK, "norm1"),
    *_norm(_VISION_BLOCK, "norm2"),
    *_norm(("visual.merger.", "visual.merger."), "ln_q"),
    TensorRule("visual.merger.mlp.0.weight", "visual.merger.fc1.kernel", "transpose"),
    TensorRule("visual.merger.mlp.0.bias", "visual.merger.fc1.bias"),
    TensorRule("visual.merger.mlp.2.weight", "visual.merger.fc2.kernel", "transpose"),
    TensorRule("visual.merger.mlp.2.bias", "visual.merger.fc2.bias"),
)
_SEPARATE_QKV = tuple(rule for name in "qkv" for rule in linear(_VISION_BLOCK, f"attn.{name}", bias=True))
_FUSED_QKV = tuple(
    TensorRule(
        f"{_VISION_BLOCK[0]}attn.qkv.{published}",
        tuple(f"{_VISION_BLOCK[1]}attn.{name}.{ours}" for name in "qkv"),
        transform,
    )
    for published, ours, transform in (("weight", "kernel", "transpose"), ("bias", "bias", "none"))
)

# `transformers` names modules by these in memory, and drops them again in the files that it writes.
_IN_MEMORY = (
    (r"^model\.language_model\.", "model."),
    (r"^model\.visual\.", "visual."),
    (r"^model\.audio_tower\.", "audio_tower."),
)

# Embeddings of audio start and end: part of the published files, but no code reads them.
_AUDIO_ENDS = "audio_tower.audio_bos_eos_token.weight"

Reader = Callable[[Fields, Mapping[str, Any]], ModelConfig]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the files of a family are read and written.

    Attributes:
      readers: what makes a `ModelConfig` of the fields of a `config.json`, by its `model_type`.
      table: which tensor is which parameter.
      write: the fields of a `config.json` that say what the network is; None: Qwen's (`config_writer`).
      carried: tensors that a file must have although the network has no use for them: key -> rows of decoder width.
    """

    readers: Mapping[str, Reader]
    table: Table
    write: Callable[[ModelConfig], dict[str, Any]] | None = None
    carried: Mapping[str, int] = dataclasses.field(default_factory=dict)


# By the names of `families.FAMILIES`.
LAYOUTS: dict[str, Layout] = {
    "qwen2_5_omni": Layout(
        {"qwen2_5_omni_thinker": read_omni, "qwen2_5_omni": read_whole_omni},
        Table(
            rules=DECODER + _AUDIO + _VISION + _SEPARATE_QKV,
            # What a whole Qwen2.5-Omni speaks with; captions are text.
            ignored=(r"talker\..*", r"token2wav\..*", _AUDIO_ENDS.replace(".", r"\.")),
            aliases=((r"^thinker\.", ""), *_IN_MEMORY),
        ),
        carried={_AUDIO_ENDS: 2},
    ),
    "qwen2_5_vl": Layout({"qwen2_5_vl": read_vl}, Table(rules=DECODER + _VISION + _FUSED_QKV, aliases=_IN_MEMORY)),
    "qwen2": Layout({"qwen2": read_text}, Table(rules=DECODER)),
    "qwen3": Layout({"qwen3": read_text}, Table(rules=DECODER)),
    "gpt2": Layout({"gpt2": gpt2.read_config}, gpt2.TABLE, gpt2.write_config),
    "bart": Layout({"bart": bart.read_config}, bart.TABLE, bart.write_config),
}

# Precomputed features are no part of the published models: their projector stands in files of its own beside them.
PROJECTOR = (
    TensorRule("mix", "feature_projector.mix"),  # where features hold several layers
    *_norm(("", "feature_projector."), "norm", bias=True),
    *linear(("", "feature_projector."), "fc1", bias=True),
    *linear(("", "feature_projector."), "fc2", bias=True),
)
