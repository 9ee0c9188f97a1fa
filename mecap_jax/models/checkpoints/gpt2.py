"""GPT-2's files (Radford et al., 2019): its configuration, read and written, and which tensor is which parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mecap_jax.model_config import DecoderConfig, ModelConfig
from mecap_jax.models.checkpoints.config_reader import Fields, read_dtype
from mecap_jax.models.checkpoints.table import MOST_LAYERS, Table, TensorRule

_LAYER = ("transformer.h.{i}.", "language_model.layers.{i}.")


def _both(key: str, path: str, weight: str = "scale") -> tuple[TensorRule, TensorRule]:
    """Weight and bias of a norm, or of a product whose weight is [in, out] here, too ("Conv1D")."""
    transform = "none" if weight == "scale" else "product"
    return TensorRule(f"{key}.weight", f"{path}.{weight}", transform), TensorRule(f"{key}.bias", f"{path}.bias")


def _product(key: str, path: str) -> tuple[TensorRule, TensorRule]:
    return _both(_LAYER[0] + key, _LAYER[1] + path, "kernel")


_QUERIES_KEYS_VALUES = tuple(
    TensorRule(
        f"{_LAYER[0]}attn.c_attn.{published}",
        tuple(f"{_LAYER[1]}self_attn.{name}_proj.{ours}" for name in "qkv"),
        "product" if ours == "kernel" else "none",
    )
    for published, ours in (("weight", "kernel"), ("bias", "bias"))
)
TABLE = Table(
    rules=(
        TensorRule("transformer.wte.weight", "language_model.embed_tokens.embedding"),
        TensorRule("transformer.wpe.weight", "language_model.embed_positions.embedding"),
        TensorRule("lm_head.weight", "language_model.lm_head.kernel", "transpose"),
        *_both("transformer.ln_f", "language_model.norm"),
        *_both(f"{_LAYER[0]}ln_1", f"{_LAYER[1]}input_layernorm"),
        *_both(f"{_LAYER[0]}ln_2", f"{_LAYER[1]}post_attention_layernorm"),
        *_QUERIES_KEYS_VALUES,
        *_product("attn.c_proj", "self_attn.o_proj"),
        *_product("mlp.c_fc", "mlp.up_proj"),
        *_product("mlp.c_proj", "mlp.down_proj"),
    ),
    ignored=(r"transformer\.h\.[0-9]+\.attn\.(masked_)?bias",),  # the causal mask
    aliases=((r"^(?=(wte|wpe|ln_f|h)\.)", "transformer."),),  # the published files hold the part without a head
)


def read_config(fields: Fields, config: Mapping[str, Any]) -> ModelConfig:
    """The network that the fields of a `config.json` describe; see `hub_config`."""
    tied, dtype = fields.flag("tie_word_embeddings", True), read_dtype(fields, config)
    width, heads, layers = (fields.number(name) for name in ("n_embd", "n_head", "n_layer"))
    fields.expect("activation_function", "gelu_new")
    fields.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        fields.expect(name, False)
    # Of training, and of a head that says one thing of a whole text.
    fields.allow("attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx", "summary_activation", "summary_first_dropout")
    fields.allow("summary_proj_to_labels", "summary_type", "summary_use_proj")
    decoder = DecoderConfig(
        vocab_size=fields.number("vocab_size"),
        hidden_size=width,
        intermediate_size=fields.number("n_inner", 4 * width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=max(1, width // heads),
        rms_norm_eps=fields.number("layer_norm_epsilon", 1e-5, float),
        tie_word_embeddings=tied,
        max_position_embeddings=fields.number("n_positions", 1024),
    )
    fields.require(width % heads == 0, "n_head", f" = {heads} does not divide n_embd = {width}")
    fields.require(layers <= MOST_LAYERS, "n_layer", f" = {layers} is out of range")
    fields.finish()
    return ModelConfig(name="gpt2", family="gpt2", decoder=decoder, param_dtype=dtype)


def write_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` that `read_config` reads."""
    decoder = model.decoder
    return {
        "vocab_size": decoder.vocab_size,
        "n_positions": decoder.max_position_embeddings,
        "n_embd": decoder.hidden_size,
        "n_inner": decoder.intermediate_size,
        "n_layer": decoder.num_hidden_layers,
        "n_head": decoder.num_attention_heads,
        "layer_norm_epsilon": decoder.rms_norm_eps,
        "activation_function": "gelu_new",
    }
