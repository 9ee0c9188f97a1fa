"""`config.json` of the Hugging Face families, written from a `ModelConfig`, for transformers 4.57 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecap_jax.families import FAMILIES
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.families import LAYOUTS


def format_config(model: ModelConfig, special_ids: Mapping[str, int | list[int] | None]) -> dict[str, Any]:
    """`config.json` of a model that was not read from one.

    Args:
      special_ids: ids of special tokens by the family's names for them (`audio_token_index`, `eos_token_id`, ...).
    """
    decoder, vision, audio, family = model.decoder, model.vision, model.audio, FAMILIES[model.family]
    whole: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": model.param_dtype,
        "tie_word_embeddings": decoder.tie_word_embeddings,
        **special_ids,
    }
    if write := LAYOUTS[model.family].write:
        return whole | write(model)
    text = {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "rms_norm_eps": decoder.rms_norm_eps,
        "hidden_act": "silu",
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": decoder.rope_theta,
            **({"mrope_section": list(decoder.mrope_section)} if decoder.mrope_section else {}),
        },
    }
    if decoder.qk_norm:
        text["head_dim"] = decoder.head_dim
    if vision is None:
        return for_earlier_versions(whole | text, decoder.tie_word_embeddings)
    whole["text_config"] = text | {
        name: special_ids.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    whole["vision_config"] = {
        "depth": vision.depth,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "window_size": vision.window_size,
        "in_channels": vision.in_channels,
        "fullatt_block_indexes": list(vision.fullatt_block_indexes),
        "out_hidden_size": decoder.hidden_size,
    }
    if family.positions == "mrope":
        whole["vision_config"]["tokens_per_second"] = model.position_id_per_seconds
    if audio is not None:
        seconds = model.seconds_per_chunk
        whole |= {
            "position_id_per_seconds": model.position_id_per_seconds,
            "seconds_per_chunk": int(seconds) if seconds == int(seconds) else seconds,
            "audio_config": {
                "num_mel_bins": audio.num_mel_bins,
                "d_model": audio.d_model,
                "encoder_layers": audio.encoder_layers,
                "encoder_attention_heads": audio.encoder_attention_heads,
                "encoder_ffn_dim": audio.encoder_ffn_dim,
                "n_window": audio.n_window,
                "max_source_positions": audio.max_source_positions,
                "output_dim": decoder.hidden_size,
            },
        }
    return for_earlier_versions(whole, decoder.tie_word_embeddings)


def for_earlier_versions(config: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """The configuration with what transformers before version 5 reads elsewhere, and would take defaults for.

    Those are the base of the rotary frequencies, their division between time, height and width, and `tied`: whether the
    output weights are the embeddings.
    """
    text = config.get("text_config")
    inner = dict(text) if isinstance(text, Mapping) else dict(config)
    rope = inner.get("rope_parameters")
    if isinstance(rope, Mapping):
        inner["rope_theta"] = rope["rope_theta"]
        if "mrope_section" in rope:
            inner["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if not isinstance(text, Mapping):
        return inner
    return dict(config) | {"text_config": inner | {"tie_word_embeddings": tied}}


def within_omni(thinker: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a whole Qwen2.5-Omni that has nothing but this thinker."""
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "model_type": "qwen2_5_omni",
        "dtype": thinker.get("dtype"),
        "enable_audio_output": False,
        "thinker_config": dict(thinker),
    }
