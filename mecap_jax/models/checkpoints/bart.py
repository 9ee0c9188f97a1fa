"""BART's files (arXiv 1910.13461): its configuration, read and written, and which tensor is which parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mecap_jax.model_config import DecoderConfig, ModelConfig, TextEncoderConfig
from mecap_jax.models.checkpoints.config_reader import Fields, read_dtype
from mecap_jax.models.checkpoints.table import MOST_LAYERS, Table, TensorRule

_STACKS = (("model.encoder.", "language_model.encoder."), ("model.decoder.", "language_model."))
_RENAMED = {"self_attn.out_proj": "self_attn.o_proj", "encoder_attn.out_proj": "encoder_attn.o_proj"} | {
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}


def _rules() -> Iterator[TensorRule]:
    for key, path in _STACKS:
        decoder = path == "language_model."
        yield TensorRule(f"{key}embed_positions.weight", f"{path}embed_positions.embedding")
        yield from _norm(f"{key}layernorm_embedding", f"{path}layernorm_embedding")
        key, path = f"{key}layers.{{i}}.", f"{path}layers.{{i}}."
        for attention in ("self_attn", "encoder_attn")[: 1 + decoder]:
            yield from _norm(f"{key}{attention}_layer_norm", f"{path}{attention}_layer_norm")
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from _linear(key, path, f"{attention}.{name}")
        yield from (rule for name in ("fc1", "fc2") for rule in _linear(key, path, name))
        yield from _norm(f"{key}final_layer_norm", f"{path}final_layer_norm")


def _norm(key: str, path: str) -> tuple[TensorRule, TensorRule]:
    return TensorRule(f"{key}.weight", f"{path}.scale"), TensorRule(f"{key}.bias", f"{path}.bias")


def _linear(key: str, path: str, name: str) -> Iterator[TensorRule]:
    ours = _RENAMED.get(name, name)
    yield TensorRule(f"{key}{name}.weight", f"{path}{ours}.kernel", "transpose")
    yield TensorRule(f"{key}{name}.bias", f"{path}{ours}.bias")


TABLE = Table(
    rules=(
        TensorRule("model.shared.weight", "language_model.embed_tokens.embedding"),
        TensorRule("lm_head.weight", "language_model.lm_head.kernel", "transpose"),
        TensorRule("final_logits_bias", "language_model.final_logits_bias", "row"),
        *_rules(),
    ),
    ignored=(r"model\.(encoder|decoder)\.embed_tokens\.weight",),  # the shared ones once more
    aliases=((r"^(?=(shared|encoder|decoder)\.)", "model."),),  # some published files hold the part without a head
    zero=("language_model.final_logits_bias",),
)


def read_config(fields: Fields, config: Mapping[str, Any]) -> ModelConfig:
    """The network that the fields of a `config.json` describe; see `hub_config`."""
    width, dtype = fields.number("d_model"), read_dtype(fields, config)
    sizes = {
        side: [fields.number(f"{side}_{name}") for name in ("layers", "attention_heads", "ffn_dim")]
        for side in ("encoder", "decoder")
    }
    fields.expect("activation_function", "gelu")
    fields.expect("tie_word_embeddings", True)
    fields.expect("is_encoder_decoder", True)
    fields.expect("normalize_embedding", True)
    for name in ("scale_embedding", "normalize_before", "add_final_layer_norm", "add_bias_logits"):
        fields.expect(name, False)
    fields.expect("static_position_embeddings", False)
    # Of training, or of a head that says one thing of a whole text; and the encoder's layers under another name.
    fields.allow("dropout", "attention_dropout", "activation_dropout", "classif_dropout", "classifier_dropout")
    fields.allow("encoder_layerdrop", "decoder_layerdrop", "num_hidden_layers", "num_labels", "output_past")
    start = tuple(
        config.get(name) if type(config.get(name)) is int else default
        for name, default in (("decoder_start_token_id", 2), ("bos_token_id", 0))
    )
    layers, heads, hidden = sizes["decoder"]
    decoder = DecoderConfig(
        vocab_size=fields.number("vocab_size"),
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=max(1, width // heads),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=fields.number("max_position_embeddings", 1024),
        encoder=TextEncoderConfig(*sizes["encoder"], start_ids=start),
    )
    for side, (layers, heads, _) in sizes.items():
        fields.require(width % heads == 0, f"{side}_attention_heads", f" = {heads} does not divide d_model = {width}")
        fields.require(layers <= MOST_LAYERS, f"{side}_layers", f" = {layers} is out of range")
    in_range = all(0 <= token < decoder.vocab_size for token in start)
    fields.require(in_range, "decoder_start_token_id", f", bos_token_id = {start} is out of range")
    fields.finish()
    return ModelConfig(name="bart", family="bart", decoder=decoder, param_dtype=dtype)


def write_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` that `read_config` reads."""
    decoder = model.decoder
    sides = {"encoder": decoder.encoder, "decoder": decoder}
    sizes = {
        "layers": "num_hidden_layers",
        "attention_heads": "num_attention_heads",
        "ffn_dim": "intermediate_size",
    }
    return {
        "vocab_size": decoder.vocab_size,
        "d_model": decoder.hidden_size,
        **{f"{side}_{theirs}": getattr(x, ours) for side, x in sides.items() for theirs, ours in sizes.items()},
        "max_position_embeddings": decoder.max_position_embeddings,
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        **start_fields(model),
    }


def start_fields(model: ModelConfig) -> dict[str, int]:
    """What `generate` of transformers begins an answer with; nothing for a network without an encoder of text."""
    if model.decoder.encoder is None:
        return {}
    first, second = model.decoder.encoder.start_ids
    return {"decoder_start_token_id": first, "bos_token_id": second, "forced_bos_token_id": second}
