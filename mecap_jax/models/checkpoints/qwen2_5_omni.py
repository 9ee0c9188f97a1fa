"""Qwen2.5-Omni's thinker: which published tensor is which parameter.

Left, a key as `transformers` writes it for `Qwen2_5OmniThinkerForConditionalGeneration`; right, the path in our
parameter tree and the transform that leads from the published tensor to ours.
"""

from __future__ import annotations

from mecap_jax.models.checkpoints.table import Row, linear

_DECODER_LAYER = (r"model.language_model.layers.{i}.", "language_model.layers.{i}.")
_AUDIO_LAYER = (r"model.audio_tower.layers.{i}.", "audio_tower.layers.{i}.")
_VISION_BLOCK = (r"model.visual.blocks.{i}.", "visual.blocks.{i}.")

ROWS: tuple[Row, ...] = (
    Row("model.language_model.embed_tokens.weight", "language_model.embed_tokens.embedding"),
    Row("model.language_model.norm.weight", "language_model.norm.scale"),
    Row("lm_head.weight", "language_model.lm_head.kernel", "transpose"),
    *linear(_DECODER_LAYER, "self_attn.q_proj", bias=True),
    *linear(_DECODER_LAYER, "self_attn.k_proj", bias=True),
    *linear(_DECODER_LAYER, "self_attn.v_proj", bias=True),
    *linear(_DECODER_LAYER, "self_attn.o_proj"),
    *linear(_DECODER_LAYER, "mlp.gate_proj"),
    *linear(_DECODER_LAYER, "mlp.up_proj"),
    *linear(_DECODER_LAYER, "mlp.down_proj"),
    Row(_DECODER_LAYER[0] + "input_layernorm.weight", _DECODER_LAYER[1] + "input_layernorm.scale"),
    Row(_DECODER_LAYER[0] + "post_attention_layernorm.weight", _DECODER_LAYER[1] + "post_attention_layernorm.scale"),
    Row("model.audio_tower.conv1.weight", "audio_tower.conv1.kernel", "convolution_1d"),
    Row("model.audio_tower.conv1.bias", "audio_tower.conv1.bias"),
    Row("model.audio_tower.conv2.weight", "audio_tower.conv2.kernel", "convolution_1d"),
    Row("model.audio_tower.conv2.bias", "audio_tower.conv2.bias"),
    Row("model.audio_tower.ln_post.weight", "audio_tower.ln_post.scale"),
    Row("model.audio_tower.ln_post.bias", "audio_tower.ln_post.bias"),
    *linear(("model.audio_tower.", "audio_tower."), "proj", bias=True),
    *linear(_AUDIO_LAYER, "self_attn.q_proj", bias=True),
    *linear(_AUDIO_LAYER, "self_attn.k_proj"),
    *linear(_AUDIO_LAYER, "self_attn.v_proj", bias=True),
    *linear(_AUDIO_LAYER, "self_attn.out_proj", bias=True),
    *linear(_AUDIO_LAYER, "fc1", bias=True),
    *linear(_AUDIO_LAYER, "fc2", bias=True),
    Row(_AUDIO_LAYER[0] + "self_attn_layer_norm.weight", _AUDIO_LAYER[1] + "self_attn_layer_norm.scale"),
    Row(_AUDIO_LAYER[0] + "self_attn_layer_norm.bias", _AUDIO_LAYER[1] + "self_attn_layer_norm.bias"),
    Row(_AUDIO_LAYER[0] + "final_layer_norm.weight", _AUDIO_LAYER[1] + "final_layer_norm.scale"),
    Row(_AUDIO_LAYER[0] + "final_layer_norm.bias", _AUDIO_LAYER[1] + "final_layer_norm.bias"),
    Row("model.visual.patch_embed.proj.weight", "visual.patch_embed.kernel", "patch_convolution"),
    *linear(_VISION_BLOCK, "attn.q", bias=True),
    *linear(_VISION_BLOCK, "attn.k", bias=True),
    *linear(_VISION_BLOCK, "attn.v", bias=True),
    *linear(_VISION_BLOCK, "attn.proj", bias=True),
    *linear(_VISION_BLOCK, "mlp.gate_proj", bias=True),
    *linear(_VISION_BLOCK, "mlp.up_proj", bias=True),
    *linear(_VISION_BLOCK, "mlp.down_proj", bias=True),
    Row(_VISION_BLOCK[0] + "norm1.weight", _VISION_BLOCK[1] + "norm1.scale"),
    Row(_VISION_BLOCK[0] + "norm2.weight", _VISION_BLOCK[1] + "norm2.scale"),
    Row("model.visual.merger.ln_q.weight", "visual.merger.ln_q.scale"),
    Row("model.visual.merger.mlp.0.weight", "visual.merger.fc1.kernel", "transpose"),
    Row("model.visual.merger.mlp.0.bias", "visual.merger.fc1.bias"),
    Row("model.visual.merger.mlp.2.weight", "visual.merger.fc2.kernel", "transpose"),
    Row("model.visual.merger.mlp.2.bias", "visual.merger.fc2.bias"),
)

# In the checkpoint but not in the network: embeddings of audio start and end that no published code reads.
IGNORED = (r"model\.audio_tower\.audio_bos_eos_token\.weight",)
