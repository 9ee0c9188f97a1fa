"""A checkpoint is the run's where both mean the same model, whatever settings their versions of the project know."""

import dataclasses
import json

import pytest

from mecap_jax.config import Config
from mecap_jax.experiment.weights import describe
from mecap_jax.model_config import LoraConfig, ModelConfig, TextEncoderConfig
from mecap_jax.training.description import disagreements, written
from tests import miniature

LORA = dataclasses.replace(miniature.CONFIG, lora=LoraConfig())


def described(model: ModelConfig) -> dict:
    return describe(Config("a run", model))


def saved(model: ModelConfig, **changes) -> dict:
    """What a checkpoint of it says, read back, with other values by dotted key; ... is a key that is not there."""
    tree = json.loads(json.dumps(written(described(model))))
    for key, value in changes.items():
        *path, name = key.split("__")
        node = tree["model"]
        for part in path:
            node = node[part]
        node.pop(name, None)
        if value is not ...:
            node[name] = value
    return tree


def with_decoder(**changes) -> ModelConfig:
    return dataclasses.replace(miniature.CONFIG, decoder=dataclasses.replace(miniature.CONFIG.decoder, **changes))


def test_what_was_saved_is_what_it_is_of():
    for model in (miniature.CONFIG, miniature.GPT2, miniature.BART, LORA):
        assert disagreements(saved(model), described(model)) == []
        assert not {"remat", "remat_keeps", "unroll"} & saved(model)["model"].keys()
    how = dataclasses.replace(miniature.CONFIG, remat=True, remat_keeps=("mlp",), unroll=True)
    assert disagreements(saved(miniature.CONFIG), described(how)) == []
    assert disagreements(saved(miniature.GPT2), described(miniature.BART)) == [
        f"model.decoder.encoder: None there, {written(miniature.BART.decoder.encoder)!r} here"
    ]


def test_checkpoints_of_earlier_versions_load():
    """From before decoders with learned positions, and before what a gradient keeps was no part of it."""
    early = dict(decoder__max_position_embeddings=..., decoder__encoder=..., features__layers=..., remat=True)
    early |= dict(remat_keeps=["mlp"], unroll=False)
    assert disagreements(saved(miniature.CONFIG, **early), described(miniature.CONFIG)) == []
    assert disagreements(saved(LORA, lora__dropout=..., lora__targets=...), described(LORA)) == []


@pytest.mark.parametrize(
    "key, model, there, here",
    [
        ("decoder.qk_norm", with_decoder(qk_norm=True), False, True),
        ("decoder.attention_bias", with_decoder(attention_bias=False), True, False),
        ("decoder.rope_theta", with_decoder(rope_theta=1e4), 1e6, 1e4),
        ("lora.alpha", dataclasses.replace(LORA, lora=LoraConfig(alpha=8.0)), 32.0, 8.0),
        ("lora.rank", dataclasses.replace(LORA, lora=LoraConfig(rank=8)), 16, 8),
        ("decoder.encoder.start_ids", dataclasses.replace(miniature.BART, decoder=dataclasses.replace(
            miniature.BART.decoder, encoder=TextEncoderConfig(2, 2, 40, start_ids=(1, 0)))), [2, 0], [1, 0]),
        ("decoder.hidden_size", miniature.CONFIG, None, 32),  # has no default
    ],
)  # fmt: skip
def test_what_a_checkpoint_does_not_know_had_its_default_there(key, model, there, here):
    found = disagreements(saved(model, **{key.replace(".", "__"): ...}), described(model))
    assert found == [f"model.{key}: {there!r} there, {here!r} here"]


def test_what_is_not_known_here_must_be_off():
    for off in (None, False, 0, "", [], {}):
        assert disagreements(saved(miniature.CONFIG, decoder__sinks=off), described(miniature.CONFIG)) == []
    assert disagreements(saved(miniature.CONFIG, decoder__sinks=4), described(miniature.CONFIG)) == [
        "model.decoder.sinks: 4 there, None here"
    ]
