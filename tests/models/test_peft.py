"""Adapters go to PEFT and come from it, and compute there what they compute here."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from mecap_jax.model_config import FeatureProjectorConfig, LoraConfig
from mecap_jax.models.checkpoints.hub import load_weights, save_weights
from mecap_jax.models.checkpoints.hub_config import read_config
from mecap_jax.models.checkpoints.peft import load_peft, read_peft_config, save_peft
from mecap_jax.models.checkpoints.table import CheckpointError, flatten
from mecap_jax.models.lora import merge_lora
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.models.parameters import merge_params, split_params
from tests import hub_models, miniature

# PEFT looks at an attribute that transformers is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
DECODER = r"language_model\.layers\.\d+\.(self_attn\.[qo]|mlp\.down)_proj"
TOWERS = (r"audio_tower\..*\.(k_proj|fc1)", r"audio_tower\.proj", r"visual\..*\.(attn\.[qv]|mlp\.up_proj)")
TARGETS = {
    "qwen2_5_omni": (DECODER, *TOWERS, r"visual\.merger\.fc2"),
    "qwen2_5_vl": (DECODER, r"visual\..*\.(attn\.proj|mlp\.up_proj)", r"visual\.merger\.fc1"),
    "qwen2": (DECODER,),
}


@pytest.fixture(scope="module", params=TARGETS)
def model(request, tmp_path_factory):
    return adapted(request.param, TARGETS[request.param], tmp_path_factory.mktemp(request.param))


def adapted(family, targets, directory):
    """(published model in torch, its directory, our configuration with adapters, our parameters with drawn ones)."""
    published = hub_models.make(family)
    published.save_pretrained(directory)
    base = read_config(directory)
    config = dataclasses.replace(base, lora=LoraConfig(rank=3, alpha=6.0, targets=targets))
    _, state = nnx.split(MultimodalLM(config, nnx.Rngs(0)))
    adapters, frozen = split_params(nnx.to_pure_dict(state), ())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), frozen)
    weights = load_weights(directory, base, shapes)
    return published, directory, config, merge_params(miniature.trained_adapters(adapters), weights)


def tensors_of(directory):
    return {key: value for path in directory.glob("*.safetensors") for key, value in load_file(path).items()}


def test_peft_merges_what_we_write_as_we_do(model, tmp_path):
    assert isinstance(merged_by_both(model, tmp_path), peft.PeftModelForCausalLM)


def test_peft_takes_adapters_of_an_encoder_for_what_they_are(tmp_path):
    """In all layers of both sides, and in the attention between them."""
    model = adapted("bart", LoraConfig.of_text(miniature.BART.decoder).targets, tmp_path / "bart")
    assert isinstance(merged_by_both(model, tmp_path), peft.PeftModelForSeq2SeqLM)
    paths = {path.rpartition(".")[0] for path in flatten(split_params(model[3], ())[0])}
    encoder, decoder = model[2].decoder.encoder.num_hidden_layers, model[2].decoder.num_hidden_layers
    assert len(paths) == (4 + 2) * encoder + (4 + 4 + 2) * decoder
    assert LoraConfig.of_text(miniature.CONFIG.decoder) == LoraConfig()


def merged_by_both(model, tmp_path):
    """Compares what PEFT and we make of the adapters; returns PEFT's model."""
    published, directory, config, params = model
    save_peft(tmp_path / "adapter", params, config, str(directory))
    fresh = type(published).from_pretrained(directory)
    theirs = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert sorted(name for name, x in theirs.named_parameters() if "lora_" in name) == sorted(
        key.replace(".weight", ".default.weight") for key in tensors_of(tmp_path / "adapter")
    )
    theirs.merge_and_unload().save_pretrained(tmp_path / "theirs")
    merged = merge_lora(params, config.lora)
    (tmp_path / "ours").mkdir()
    save_weights(tmp_path / "ours", dataclasses.replace(config, lora=None), merged, source=directory)
    expected, ours, before = (tensors_of(path) for path in (tmp_path / "theirs", tmp_path / "ours", directory))
    assert expected.keys() == ours.keys()
    changed = 0
    for key, value in expected.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, err_msg=key)
        changed += bool(np.abs(value - before[key]).max() > 1e-3)
    assert changed == len(flatten(split_params(params, ())[0])) // 2
    return theirs


def test_what_peft_trained_computes_the_same_here(model, tmp_path):
    _, directory, config, params = model
    published = hub_models.make(config.family)
    targets = r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qo]|mlp\.down)_proj"
    settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, lora_dropout=0.1)
    adapted = peft.get_peft_model(published, settings).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, targets=(DECODER,)))
    graphdef, state = nnx.split(MultimodalLM(config, nnx.Rngs(0)))
    abstract = nnx.to_pure_dict(state)
    adapters = load_peft(tmp_path, abstract, config)
    assert len(flatten(adapters)) == len(tensors_of(tmp_path))
    ids = np.random.default_rng(0).integers(4, 600, (2, 9))
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor(ids)).logits.numpy()

    @jax.jit
    def logits(params):
        decoder = nnx.merge(graphdef, params).language_model
        positions = jnp.broadcast_to(jnp.arange(9), (2, 3, 9))
        mask, after = jnp.ones((2, 9), bool), jnp.full(2, 9)
        hidden, _ = decoder.prefill(decoder.embed_tokens(jnp.asarray(ids)), positions, mask, after)
        return decoder.logits(hidden)

    weights = split_params(params, ())[1]
    chex.assert_trees_all_close(logits(merge_params(adapters, weights)), expected, atol=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An adapter of the miniature, in float32."""
    directory = tmp_path_factory.mktemp("adapter")
    params = miniature.trained_adapters(miniature.model(config=miniature.LORA)[1])
    save_peft(directory, params, miniature.LORA, "somewhere")
    return directory, params


def rewrite(directory, target, settings=None, tensors=None):
    target.mkdir(exist_ok=True)
    old = json.loads((directory / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**old, **(settings or {})}))
    save_file(tensors or tensors_of(directory), target / "adapter_model.safetensors")
    return target


def test_written_and_read_again_is_the_same(written):
    directory, params = written
    chex.assert_trees_all_equal(load_peft(directory, params, miniature.LORA), split_params(params, ())[0])
    settings = json.loads((directory / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(
        [
            *(f"model.language_model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv"),
            *(f"model.language_model.layers.{i}.mlp.down_proj" for i in (0, 1)),
            *(f"model.visual.blocks.{i}.attn.q" for i in (0, 1)),
            "model.audio_tower.layers.0.fc1",
        ]
    )
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (2, 8.0, "somewhere")


@pytest.mark.parametrize(
    "prefix, decoder", [("thinker.", "model."), ("", "model."), ("thinker.model.", "language_model.")]
)
def test_names_of_a_whole_omni_and_of_published_files_are_read(written, tmp_path, prefix, decoder):
    directory, params = written
    renamed = {}
    for key, value in tensors_of(directory).items():
        name = key.removeprefix("base_model.model.model.").replace("language_model.", decoder)
        renamed[f"base_model.model.{prefix}{name}"] = value
    rewrite(directory, tmp_path, tensors=renamed)
    chex.assert_trees_all_equal(load_peft(tmp_path, params, miniature.LORA), split_params(params, ())[0])


@pytest.mark.parametrize(
    "wrapped",
    [
        "base_model.model.{module}.default.weight",
        "module.base_model.model.{module}.emotion.weight",
        "base_model.model._orig_mod.{module}.weight",
        "_orig_mod.module.base_model.model.model.{module}.default.weight",
        "{module}.weight",
    ],
)
def test_adapters_that_were_saved_with_what_was_wrapped_around_them_are_read(written, tmp_path, wrapped):
    """PEFT's own names in memory hold the adapter's, DDP, torch.compile and Lightning put theirs in front."""
    directory, params = written
    names = {key: key.removeprefix("base_model.model.").removesuffix(".weight") for key in tensors_of(directory)}
    renamed = {wrapped.format(module=names[key]): value for key, value in tensors_of(directory).items()}
    rewrite(directory, tmp_path, tensors=renamed)
    chex.assert_trees_all_equal(load_peft(tmp_path, params, miniature.LORA), split_params(params, ())[0])


def test_two_adapters_in_one_file_are_refused(written, tmp_path):
    directory, params = written
    tensors = tensors_of(directory)
    key = next(iter(tensors))
    other = key.replace(".weight", ".second.weight")
    with pytest.raises(CheckpointError, match=f"a second tensor {re.escape(key)}"):
        load_peft(rewrite(directory, tmp_path, tensors=tensors | {other: tensors[key]}), params, miniature.LORA)


@pytest.mark.parametrize(
    "settings", [{"r": 2.5}, {"r": 10**30}, {"r": True}, {"lora_alpha": 1e300}, {"r": [2]}, {"r": None}]
)
def test_ranks_and_scales_that_are_none_are_refused(written, tmp_path, settings):
    directory, params = written
    rewrite(directory, tmp_path, settings)
    with pytest.raises(CheckpointError, match=f"{next(iter(settings))} must be a positive number"):
        read_peft_config(tmp_path, split_params(params, ())[1], miniature.CONFIG)


def test_adapters_that_are_not_finite_are_refused(written, tmp_path):
    directory, params = written
    tensors = tensors_of(directory)
    key = next(iter(tensors))
    tensors[key][0, 0] = np.nan
    with pytest.raises(CheckpointError, match=f"NaN or infinity: {re.escape(key)}"):
        load_peft(rewrite(directory, tmp_path, tensors=tensors), params, miniature.LORA)


def test_every_problem_is_named_at_once(written, tmp_path):
    directory, params = written
    tensors = tensors_of(directory)
    layer = "base_model.model.model.language_model.layers."
    del tensors[f"{layer}1.mlp.down_proj.lora_A.weight"]
    tensors[f"{layer}0.self_attn.q_proj.lora_B.weight"] = np.zeros((7, 2), np.float32)
    tensors[f"{layer}5.self_attn.q_proj.lora_A.weight"] = np.zeros((2, 32), np.float32)
    settings = {
        "r": 4, "lora_alpha": 4, "use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"], "bias": "all",
        "rank_pattern": {"q_proj": 3}, "init_lora_weights": "pissa_niter_4", "use_of_tomorrow": 1, "lora_bias": False,
    }  # fmt: skip
    rewrite(directory, tmp_path, settings, tensors)
    with pytest.raises(CheckpointError) as error:
        load_peft(tmp_path, params, miniature.LORA)
    message = str(error.value)
    for words in (
        "no tensor for parameter language_model.layers.1.mlp.down_proj.lora_a",
        f"tensor {layer}0.self_attn.q_proj.lora_B.weight has shape (7, 2)",
        "parameter language_model.layers.0.self_attn.q_proj.lora_b wants (32, 2)",
        f"unknown tensor {layer}5.self_attn.q_proj.lora_A.weight",
        "r is 4, here it is 2",
        "lora_alpha is 4, here it is 8.0",
        "bias is 'all', here it is 'none'",
        "use_dora = True is not supported",
        "use_rslora = True is not supported",
        "modules_to_save = ['lm_head'] is not supported",
        "rank_pattern = {'q_proj': 3} is not supported",
        "use_of_tomorrow = 1 is not supported",
        "init_lora_weights = 'pissa_niter_4' is not supported",
    ):
        assert words in message, words
    assert "lora_bias" not in message


def test_files_that_are_not_there_or_not_readable_are_named(written, tmp_path):
    directory, params = written
    with pytest.raises(CheckpointError, match="adapter_config.json and adapter_model.safetensors missing"):
        load_peft(tmp_path, params, miniature.LORA)
    rewrite(directory, tmp_path)
    with pytest.raises(CheckpointError, match="'model.lora'"):
        load_peft(tmp_path, params, miniature.CONFIG)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_peft(tmp_path, params, miniature.LORA)


def test_projections_that_the_published_model_does_not_have_are_refused(tmp_path):
    """Qwen2.5-VL's vision tower has q, k and v in one module; the feature projector is ours."""
    config = dataclasses.replace(
        miniature.LORA,
        family="qwen2_5_vl",
        audio=None,
        lora=LoraConfig(
            rank=2, targets=(DECODER, r"visual\..*\.[qk]", r"visual\.patch_embed", r"feature_projector\.fc1")
        ),
        features=FeatureProjectorConfig(names=("face",), dims=(6,), hidden_size=16),
    )
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: MultimodalLM(config, nnx.Rngs(0)))))
    with pytest.raises(CheckpointError) as error:
        save_peft(tmp_path, params, config, "somewhere")
    refused = str(error.value).splitlines()[1:]
    assert [name.strip() for name in refused] == [
        "feature_projector.fc1",
        *(f"visual.blocks.{i}.attn.{name}" for i in (0, 1) for name in "kq"),
        "visual.patch_embed",
    ]
    assert not list(tmp_path.iterdir())
