"""A group behind a shared prompt scores, and differentiates, exactly as separate sequences."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mecap_jax.generation import scoring
from mecap_jax.generation.scoring import score_completions
from mecap_jax.models import attention
from mecap_jax.sharding import put_batch
from mecap_jax.train_state import abstract_model
from tests import miniature
from tests.training.harness import mesh

GROUP, LENGTH = 3, 6


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (3, GROUP, LENGTH), 4, miniature.CONFIG.decoder.vocab_size)


def _separate_logprobs(params, prompt, tokens, temperature, config, lengths):
    """Every completion as its own sequence: prompt and completion in one causal pass, no prefix, no group."""
    model = nnx.merge(miniature.model(0, config)[0], params)
    rows = []
    for b, n in enumerate(lengths):
        one = miniature.row(prompt, b)
        embedded = jnp.repeat(model.embed_prompt(one)[:, :n], GROUP, axis=0)
        x = jnp.concatenate([embedded, model.language_model.embed_tokens(tokens[b])], axis=1)
        after = jnp.broadcast_to(one.next_position[0] + jnp.arange(LENGTH), (1, 3, LENGTH))
        positions = jnp.repeat(jnp.concatenate([one.positions[:, :, :n], after], axis=2), GROUP, axis=0)
        starts = jnp.repeat(one.next_position, GROUP)
        hidden, _ = model.language_model.prefill(x, positions, jnp.ones(x.shape[:2], bool), starts)
        logits = model.language_model.logits(hidden[:, n - 1 : -1]) / temperature
        rows.append(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[b][..., None], axis=-1)[..., 0])
    return jnp.stack(rows)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _group_logprobs(params, prompt, tokens, temperature, config=miniature.CONFIG):
    model = nnx.merge(miniature.model(0, config)[0], params)
    return score_completions(model, prompt, tokens, temperature).logprobs


@pytest.mark.parametrize("config", [miniature.CONFIG, miniature.GPT2], ids=["qwen", "gpt2"])
def test_logprobs_and_gradients_equal_separate_sequences(tokens, config):
    """Padded prompts, missing modalities and a temperature included."""
    params = miniature.model(0, config)[1]
    prompt = miniature.pad_right(miniature.prompts(), 5)
    weights = jax.random.normal(jax.random.key(2), tokens.shape) / tokens.size

    def objective(logprobs):
        return lambda p: (jnp.sum(weights * (lp := logprobs(p, prompt, tokens, 0.7, config))), lp)

    def gradient(logprobs):
        return jax.jit(jax.value_and_grad(objective(logprobs), has_aux=True))(params)

    lengths = tuple(map(int, prompt.length))
    (_, actual), actual_gradient = gradient(_group_logprobs)
    (_, expected), expected_gradient = gradient(functools.partial(_separate_logprobs, lengths=lengths))
    chex.assert_trees_all_close(actual, expected, atol=1e-5)
    chex.assert_trees_all_close(actual_gradient, expected_gradient, atol=1e-6)
    assert max(jnp.abs(g).max() for g in jax.tree.leaves(actual_gradient)) > 0.01


def test_an_encoder_decoder_scores_a_group_as_each_completion_alone(tokens):
    """What the encoder makes of a prompt is computed once for all of them; gradients of all parameters included."""
    graphdef, params = miniature.model(0, miniature.BART)
    prompt, weights = miniature.prompts(), jax.random.normal(jax.random.key(2), tokens.shape) / tokens.size

    def objective(groups):
        def loss(p):
            model = nnx.merge(graphdef, p)
            scored = [score_completions(model, prompt, group, 0.7).logprobs for group in groups]
            return jnp.sum(weights * jnp.concatenate(scored, axis=1))

        return jax.jit(jax.value_and_grad(loss))(params)

    together, apart = objective([tokens]), objective(jnp.split(tokens, GROUP, axis=1))
    chex.assert_trees_all_close(together, apart, atol=1e-6)
    for name in ("encoder", "layers", "embed_positions"):
        assert max(jnp.abs(x).max() for x in jax.tree.leaves(together[1]["language_model"][name])) > 1e-3, name


def test_a_model_whose_attention_goes_by_blocks_is_the_plain_one(tokens, monkeypatch):
    """Padded prompts of different lengths, of which the shortest ends within a block; gradients of all parameters."""
    graphdef, params = miniature.model()
    prompt = miniature.pad_right(miniature.prompts(), 5)

    def gradient():
        scored = lambda p: jnp.sum(score_completions(nnx.merge(graphdef, p), prompt, tokens).logprobs)  # noqa: E731
        return jax.jit(jax.value_and_grad(scored))(params)

    plain = gradient()
    monkeypatch.setattr(attention, "SHORT", 0)
    monkeypatch.setitem(attention.BLOCK, "cpu", 8)
    assert "while" in str(jax.make_jaxpr(lambda p: score_completions(nnx.merge(graphdef, p), prompt, tokens))(params))
    chex.assert_trees_all_close(gradient(), plain, rtol=1e-5, atol=1e-5)


def test_the_last_layer_runs_at_the_end_of_a_prompt_only(tokens):
    """A longer prompt costs it keys and values, and nothing else."""
    one_layer = dataclasses.replace(miniature.CONFIG.decoder, num_hidden_layers=1)
    graphdef, params = miniature.model(0, dataclasses.replace(miniature.CONFIG, decoder=one_layer))

    def flops(extra):
        prompt = miniature.pad_right(miniature.prompts(), extra)
        lowered = jax.jit(lambda p: score_completions(nnx.merge(graphdef, p), prompt, tokens)).lower(params)
        return lowered.cost_analysis()["flops"]

    layer = sum(x.size for x in jax.tree.leaves(params["language_model"]["layers"][0]))
    assert (flops(200) - flops(100)) / (3 * 100) < layer  # a whole layer multiplies twice as many, and has attention


def test_padding_is_invisible(tokens):
    params = miniature.model()[1]
    short = _group_logprobs(params, miniature.prompts(), tokens, 1.0)
    long = _group_logprobs(params, miniature.pad_right(miniature.prompts(), 9), tokens, 1.0)
    chex.assert_trees_all_close(short, long, atol=1e-6)


def test_chunked_logits_change_nothing(tokens, monkeypatch):
    params = miniature.model()[1]
    prompt = miniature.prompts()

    def loss(p):
        scores = score_completions(nnx.merge(miniature.model()[0], p), prompt, tokens, 0.9)
        return jnp.mean(scores.logprobs**2) + jnp.mean(scores.entropy)

    whole = jax.jit(jax.value_and_grad(loss))(params)
    vocabulary = miniature.CONFIG.decoder.vocab_size
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 4 * vocabulary * tokens.shape[0] * GROUP)  # 6 tokens: 4 + 2
    chunked = jax.jit(jax.value_and_grad(lambda p: loss(p)))(params)  # another function: the cache must not answer
    chex.assert_trees_all_close(whole, chunked, atol=1e-5)


def test_chunks_are_counted_on_a_device():
    """64 prompts x 8 over eight devices go in as many chunks as eight prompts on one: a device holds as many."""

    def chunks(on, rows):
        decoder = dataclasses.replace(miniature.CONFIG.decoder, vocab_size=151936)
        graphdef, params = abstract_model(dataclasses.replace(miniature.CONFIG, decoder=decoder), on)
        prompt = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), miniature.prompts(1))
        tokens = jax.ShapeDtypeStruct((rows, 8, 96), jnp.int32)
        program = jax.make_jaxpr(lambda p, b, t: score_completions(nnx.merge(graphdef, p), b, t))(
            params, prompt, tokens
        )
        (length,) = (eqn.params["length"] for eqn in program.eqns if eqn.primitive.name == "scan")
        return length

    assert chunks(mesh(fsdp=8), 64) == chunks(mesh(), 8) == 16
    assert chunks(mesh(data=2, tensor=4), 16) == 16
    assert chunks(mesh(), 64) == 96


def test_chunks_on_many_devices_change_nothing(monkeypatch):
    """Loss and gradient are those of one device without chunks."""
    rows = 8
    prompt = miniature.prompts(rows)
    tokens = jax.random.randint(jax.random.key(3), (rows, GROUP, LENGTH), 4, miniature.CONFIG.decoder.vocab_size)

    def result(on):
        graphdef, abstract = abstract_model(miniature.CONFIG, on)
        params = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), miniature.model()[1], abstract)

        def loss(p, prompt, tokens):
            scores = score_completions(nnx.merge(graphdef, p), prompt, tokens, 0.9)
            return jnp.mean(scores.logprobs**2) + jnp.mean(scores.entropy)

        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, *put_batch((prompt, tokens), on)))

    whole = result(mesh())
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 4 * miniature.CONFIG.decoder.vocab_size * GROUP)  # a row a device
    chex.assert_trees_all_close(result(mesh(data=2, fsdp=4)), whole, atol=1e-5)


def test_entropy_is_that_of_the_distribution(tokens):
    graphdef, params = miniature.model()
    prompt = miniature.prompts()

    @jax.jit
    def both(params):
        model = nnx.merge(graphdef, params)
        return score_completions(model, prompt, tokens, 0.5), model.language_model.logits(
            model.completion_states(prompt, tokens)
        )

    scores, logits = both(params)
    logits = np.asarray(logits, np.float64) / 0.5
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(scores.entropy, -(p * np.log(p)).sum(-1), rtol=1e-4)
