"""The models that steps are taken with."""

from __future__ import annotations

import dataclasses

from benchmarks.throughput.work import Work
from mecap_jax.model_config import (
    AudioTowerConfig,
    DecoderConfig,
    FeatureProjectorConfig,
    ModelConfig,
    VisionTowerConfig,
)

# 28 million parameters; with rotary positions of one axis, a Qwen2.5.
DECODER = DecoderConfig(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=True,
)
DECODERS = {
    "28m": DECODER,
    # Qwen2.5's published shapes.
    "0.5b": ModelConfig.features_qwen2_5_0_5b(FeatureProjectorConfig((), (), 1)).decoder,
    "3b": dataclasses.replace(ModelConfig.qwen2_5_vl_3b().decoder, mrope_section=None),
}
# Towers that cost, for a media token, about as much of the decoder as the published ones do beside that of 3B.
_VISION = VisionTowerConfig(hidden_size=256, intermediate_size=684, depth=6, num_heads=4, fullatt_block_indexes=(2, 5))
_AUDIO = AudioTowerConfig(
    num_mel_bins=128, d_model=256, encoder_layers=6, encoder_attention_heads=4, encoder_ffn_dim=1024
)
_MROPE = dataclasses.replace(DECODER, mrope_section=(8, 12, 12))
_TEXT = ModelConfig(name="text", family="qwen2", decoder=DECODER)
_ROWS = {
    "text": _TEXT,
    "embeddings": _TEXT,
    "image": ModelConfig(name="image", family="qwen2_5_vl", decoder=_MROPE, vision=_VISION, position_id_per_seconds=2),
    "clips": ModelConfig(name="clips", family="qwen2_5_omni", decoder=_MROPE, audio=_AUDIO, vision=_VISION),
}


def model_of(work: Work) -> ModelConfig:
    """The model of a row; only those without towers come in other sizes."""
    model = _ROWS[work.row]
    decoder = model.decoder if work.size == "28m" else DECODERS[work.size]
    return dataclasses.replace(model, decoder=decoder, dtype=work.dtype)
