"""An encoder-decoder equals `transformers`: states, logits, greedy text and gradients behind prompts of words."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from mecap_jax.batch import Completions
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs
from mecap_jax.model_config import FeatureProjectorConfig, ModelConfig
from mecap_jax.models.checkpoints.bart import TABLE
from mecap_jax.models.checkpoints.hub import describe_mismatch
from mecap_jax.models.checkpoints.hub_config import parse_config
from mecap_jax.models.checkpoints.table import CheckpointError, by_key, flatten
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.training.sft import negative_log_likelihood
from tests.published_family import conversations, load, open_family, their_inputs

START = [2, 0]
TARGET = [7, 300, 11, 12, 60]


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    return open_family("bart", tmp_path_factory.mktemp("bart"))


def test_states_and_logits_of_a_batch_of_prompts(bart):
    """Padded on the right to one shape, against each prompt alone."""
    rows = conversations("bart")
    batch = jax.tree.map(jnp.asarray, bart.ours(rows))
    tokens = jnp.broadcast_to(jnp.array(TARGET), (len(rows), 1, len(TARGET)))

    @jax.jit
    def run(params):
        model = nnx.merge(bart.graphdef, params)
        mask = jnp.arange(batch.tokens.shape[1]) < batch.length[:, None]
        text = model.language_model
        states = text.encoder(model.embed_prompt(batch), mask, text.running)
        return states, text.logits(model.completion_states(batch, tokens))

    states, logits = run(bart.params)
    for b, row in enumerate(rows):
        inputs = their_inputs(bart, row)
        n = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][0].tolist() == batch.tokens[b, :n].tolist() and n == batch.length[b]
        with torch.no_grad():
            out = bart.reference(**inputs, decoder_input_ids=torch.tensor([[*START, *TARGET[:-1]]]))
        np.testing.assert_allclose(states[b, :n], out.encoder_last_hidden_state[0], atol=1e-4, rtol=0)
        assert out.logits.std() > 0.3, "logits are not of unit scale"
        np.testing.assert_allclose(logits[b, 0], out.logits[0, 1:], atol=1e-4, rtol=0)


def test_greedy_text_is_the_same_and_decoding_equals_the_whole_pass(bart):
    rows = conversations("bart")
    batch = bart.ours(rows)
    generation = generate(
        bart.graphdef, bart.params, batch, np.zeros(2, np.uint32), np.arange(len(rows), dtype=np.int32),
        group_size=1, max_new_tokens=48, temperature=0.0, end_ids=(100_000,),
    )  # fmt: skip
    for b, row in enumerate(rows):
        with torch.no_grad():
            expected = bart.reference.generate(**their_inputs(bart, row), max_new_tokens=49, do_sample=False)
        assert expected[0, :2].tolist() == START
        np.testing.assert_array_equal(generation.tokens[b, 0], expected[0, 2:])
    completions = Completions(generation.tokens, jnp.ones(generation.tokens.shape, bool))
    whole = completion_logprobs(bart.graphdef, bart.params, batch, completions, temperature=1.0)
    np.testing.assert_allclose(generation.logprobs, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_of_every_parameter(bart, remat):
    """What the bias of the logits is, files say: nothing trains it."""
    row, wanted = conversations("bart")[-1], torch.tensor(TARGET)
    bart.reference.zero_grad()
    out = bart.reference(**their_inputs(bart, row), decoder_input_ids=torch.tensor([[*START, *TARGET[:-1]]]))
    loss = torch.nn.functional.cross_entropy(out.logits[0, 1:], wanted, reduction="sum")
    loss.backward()
    expected = {}
    for name, parameter in bart.reference.named_parameters():
        match = by_key(TABLE.key(name), TABLE.rules)
        assert match is not None, name
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected |= dict(match.to_params(gradient.numpy()))
    graphdef, _ = nnx.split(
        nnx.eval_shape(lambda: MultimodalLM(dataclasses.replace(bart.config, remat=remat), nnx.Rngs(0)))
    )
    tokens = np.array(TARGET, np.int32)[None, None]
    sft = jax.tree.map(jnp.asarray, (bart.ours([row]), Completions(tokens, np.ones_like(tokens, bool))))

    def value(params):
        return negative_log_likelihood(nnx.merge(graphdef, params), *sft, "token")[0]

    ours, gradients = jax.jit(jax.value_and_grad(value))(bart.params)
    assert float(ours) == pytest.approx(loss.item(), rel=1e-5)
    gradients = flatten(gradients)
    assert not np.any(gradients.pop("language_model.final_logits_bias"))
    assert gradients.keys() == expected.keys()
    for path, gradient in gradients.items():
        scale = 1.0 if path.endswith("k_proj.bias") else np.abs(expected[path]).max()  # that one is zero
        assert np.abs(gradient - expected[path]).max() < 1e-4 * scale, path


def test_the_published_files_hold_the_part_without_a_head(bart, tmp_path):
    """As in facebook/bart-base: no prefix, the embeddings three times, no output weights and no bias of the logits."""
    tensors = load_file(bart.directory / "model.safetensors")
    shared = tensors["model.shared.weight"]
    kept = {key.removeprefix("model."): x for key, x in tensors.items() if key.startswith("model.")}
    kept |= {f"{side}.embed_tokens.weight": shared for side in ("encoder", "decoder")}
    save_file(kept, tmp_path / "model.safetensors")
    _, params = load(tmp_path, bart.config)
    params, whole = flatten(params), flatten(bart.params)
    assert not np.any(params.pop("language_model.final_logits_bias"))
    assert params.keys() == whole.keys() - {"language_model.final_logits_bias"}
    assert all((params[path] == whole[path]).all() for path in params)


def test_the_preset_is_the_published_configuration():
    published = dict(
        model_type="bart", activation_dropout=0.1, activation_function="gelu", add_bias_logits=False,
        add_final_layer_norm=False, attention_dropout=0.1, bos_token_id=0, classif_dropout=0.1, classifier_dropout=0.0,
        d_model=768, decoder_attention_heads=12, decoder_ffn_dim=3072, decoder_layerdrop=0.0, decoder_layers=6,
        decoder_start_token_id=2, dropout=0.1, early_stopping=True, encoder_attention_heads=12, encoder_ffn_dim=3072,
        encoder_layerdrop=0.0, encoder_layers=6, eos_token_id=2, forced_bos_token_id=0, forced_eos_token_id=2,
        gradient_checkpointing=False, init_std=0.02, is_encoder_decoder=True, max_position_embeddings=1024,
        no_repeat_ngram_size=3, normalize_before=False, normalize_embedding=True, num_beams=4, num_hidden_layers=6,
        pad_token_id=1, scale_embedding=False, torch_dtype="float32", use_cache=True, vocab_size=50265,
    )  # fmt: skip
    preset = ModelConfig.features_bart_base(FeatureProjectorConfig(("clip",), (8,), 16))
    assert not describe_mismatch(preset, parse_config(published, "published"))
    for field, value in (
        ("scale_embedding", True), ("normalize_before", True), ("encoder_attention_heads", 7), ("decoder_layers", 2000),
        ("decoder_start_token_id", 60_000),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=field):
            parse_config(published | {field: value}, "odd")
