"""Equal layers in a loop compute what they compute one by one, and name their parameters as before."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mecap_jax.batch import Completions
from mecap_jax.config import MeshConfig
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs, score_completions
from mecap_jax.models import stack
from mecap_jax.models.layers import Dtypes, GatedMlp
from mecap_jax.models.lora import Draw, use_dropout
from mecap_jax.models.parameters import merge_params, split_params
from mecap_jax.rl.rollout import make_encode
from mecap_jax.sharding import make_mesh, put_batch
from mecap_jax.train_state import abstract_model, make_gradient
from tests import miniature

DEEP = dataclasses.replace(
    miniature.LORA,
    decoder=dataclasses.replace(miniature.CONFIG.decoder, num_hidden_layers=4),
    audio=dataclasses.replace(miniature.CONFIG.audio, encoder_layers=3),
    vision=dataclasses.replace(miniature.CONFIG.vision, depth=4, fullatt_block_indexes=(2,)),
)
DROPPING = dataclasses.replace(DEEP, lora=dataclasses.replace(DEEP.lora, dropout=0.3))
BY_TWOS, UNROLLED = 2, 100


def gradient(monkeypatch, looped_from, config=DEEP, trainable=(".*",)):
    """(the gradient as a jitted function, its arguments): of scores of completions by the parameters that train."""
    monkeypatch.setitem(stack.LOOPED_FROM, "cpu", looped_from)
    graphdef, params = miniature.model(0, config)
    params, frozen = split_params(miniature.trained_adapters(params), trainable)
    tokens = jax.random.randint(jax.random.key(1), (3, 2, 5), 4, config.decoder.vocab_size)

    def loss(params):
        model = nnx.merge(graphdef, merge_params(params, frozen))
        use_dropout(model, Draw(jnp.uint32(0), jnp.uint32(1), jnp.arange(3)))
        scores = score_completions(model, miniature.prompts(), tokens)
        return jnp.mean(scores.logprobs) + jnp.mean(scores.entropy**2), scores.logprobs

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), params


def test_a_loop_is_the_layers_one_by_one(monkeypatch):
    """Of all three stacks; gradients of every parameter of every layer included."""
    config, tolerance = dataclasses.replace(DROPPING, remat=True, remat_keeps=("mlp",)), 1e-5
    f, params = gradient(monkeypatch, UNROLLED, config)
    (value, logprobs), expected = f(params)
    f, params = gradient(monkeypatch, BY_TWOS, config)
    assert f.lower(params).as_text().count("stablehlo.while") > 4
    (looped_value, looped_logprobs), actual = f(params)
    np.testing.assert_allclose(looped_value, value, rtol=tolerance)
    np.testing.assert_allclose(looped_logprobs, logprobs, rtol=tolerance)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * largest, err_msg=jax.tree_util.keystr(path))


def test_a_loop_in_bfloat16_is_as_exact_as_the_layers_one_by_one(monkeypatch):
    """Measured from the gradient in float32: between the two lies rounding, about as much as either has."""

    def values(config, looped_from):
        f, params = gradient(monkeypatch, looped_from, config)
        return np.concatenate([np.float32(x).ravel() for x in jax.tree.leaves(f(params)[1])])

    half, exact = dataclasses.replace(DEEP, dtype="bfloat16"), values(DEEP, UNROLLED)
    one_by_one, looped = (np.linalg.norm(values(half, n) - exact) for n in (UNROLLED, BY_TWOS))
    assert looped < 1.25 * one_by_one < 0.3 * np.linalg.norm(exact)


def test_below_the_first_layer_that_trains_there_is_no_backward_pass(monkeypatch):
    """A loop over the frozen layers goes forward only; over layers that train, back as well."""

    def loops(trainable, **changes):
        f, params = gradient(monkeypatch, BY_TWOS, dataclasses.replace(DEEP, lora=None, **changes), (trainable,))
        return str(jax.make_jaxpr(f)(params)).count("scan[")

    towers = 2
    assert loops(r"language_model\.layers\.[23]\.mlp.*") == towers + 1
    assert loops(r"language_model\.layers\..*\.mlp.*") == towers + 2
    assert loops(".*", unroll=True) == 0


def test_without_a_gradient_no_weights_are_copied_into_a_loop(monkeypatch):
    """Sampling, scoring and encoding run layers one by one; the only loop is that of the tokens."""
    monkeypatch.setitem(stack.LOOPED_FROM, "cpu", BY_TWOS)
    graphdef, params = miniature.model(0, dataclasses.replace(DEEP, lora=None))
    prompt, rows = miniature.prompts(), jnp.arange(3)
    completions = Completions(jnp.ones((3, 2, 5), jnp.int32), jnp.ones((3, 2, 5), bool))
    sampling = dict(group_size=2, max_new_tokens=5, temperature=1.0, end_ids=(miniature.END,))
    traced = [
        generate.trace(graphdef, params, prompt, jnp.zeros(2, jnp.uint32), rows, **sampling),
        completion_logprobs.trace(graphdef, params, prompt, completions, temperature=1.0),
        make_encode(graphdef, make_mesh(MeshConfig(), jax.devices()[:1])).trace(params, prompt),
    ]
    loops = [(str(program.jaxpr).count("scan["), str(program.jaxpr).count("while[")) for program in traced]
    assert loops == [(0, 1), (0, 0), (0, 0)]


def products(config, trainable):
    """How many products the gradient computes, forward and backward."""
    graphdef, params = miniature.model(0, config)
    params, frozen = split_params(params, trainable)
    tokens = jnp.ones((3, 2, 5), jnp.int32)

    def loss(params):
        model = nnx.merge(graphdef, merge_params(params, frozen))
        return jnp.sum(score_completions(model, miniature.prompts(), tokens).logprobs)

    return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")


def test_what_rematerialisation_keeps_is_not_computed_again():
    """In towers that train as in the decoder; frozen towers have nothing to keep."""
    kept, everything, some = (
        dataclasses.replace(miniature.CONFIG, remat=remat, remat_keeps=keeps)
        for remat, keeps in ((False, ()), (True, ()), (True, ("projections", "mlp")))
    )
    for trainable in (("language_model.*",), ("visual.*",), ("audio_tower.*",)):
        counts = [products(config, trainable) for config in (kept, some, everything)]
        assert counts[0] < counts[1] < counts[2], trainable


def test_an_mlp_keeps_two_hidden_layers_for_its_gradient():
    float32 = jnp.dtype("float32")
    mlp = GatedMlp(8, 24, Dtypes(float32, float32), nnx.Rngs(0), bias=False)
    _, pull = jax.vjp(mlp, jnp.ones((2, 5, 8)))
    assert [x.shape for x in jax.tree.leaves(pull)].count((2, 5, 24)) == 2


def test_rematerialisation_saves_memory_on_a_cpu():
    """Temporaries of a gradient: without a loop they would be the same."""

    def temporaries(**changes):
        decoder = dataclasses.replace(miniature.CONFIG.decoder, num_hidden_layers=8)
        config = dataclasses.replace(miniature.CONFIG, audio=None, vision=None, decoder=decoder, **changes)
        graphdef, params = miniature.model(0, config)
        prompt = miniature.pad_right(miniature.prompts(), 1000)._replace(audio=jnp.zeros((3, 0, 1, 1)))
        prompt = prompt._replace(patches=jnp.zeros((3, 0, 1, 1, 1)))

        def loss(params):
            scores = score_completions(nnx.merge(graphdef, params), prompt, jnp.ones((3, 2, 5), jnp.int32))
            return jnp.sum(scores.logprobs)

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(remat=True) < temporaries() / 2


def test_a_mesh_gathers_weights_in_a_loop_and_not_rows(monkeypatch):
    """What a loop gathers has the shape of what unrolled layers gather: of one layer, and of a device's own rows."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    config = dataclasses.replace(DEEP, lora=None)
    prompt, tokens, rows = put_batch((miniature.prompts(4), np.ones((4, 2, 5), np.int32), np.arange(4)), mesh)

    def gathered(looped_from):
        monkeypatch.setitem(stack.LOOPED_FROM, "cpu", looped_from)
        graphdef, params = abstract_model(config, mesh)
        loss = make_gradient(graphdef, params, lambda m, b, _: (jnp.sum(score_completions(m, *b).logprobs), None))
        lowered = loss.lower(params, None, {}, (prompt, tokens), None, Draw(np.uint32(0), np.int32(0), rows))
        return set(re.findall(r"= (\w+\[[\d,]*\])[^=]* all-gather\(", lowered.compile().as_text()))

    assert gathered(BY_TWOS) <= gathered(UNROLLED) != set()
