"""On an NVIDIA GPU: fused attention and whole programs give what float32 on a CPU gives. Skipped where there is none.

JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_on_gpu.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.throughput.models import DECODER
from benchmarks.throughput.ours import from_ids
from mecap_jax.batch import Completions
from mecap_jax.config import MeshConfig
from mecap_jax.generation.sampler import generate
from mecap_jax.generation.scoring import completion_logprobs, score_completions
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.attention import KeyValue, attend_group, attend_prompt, choose, plain_group, plain_prompt
from mecap_jax.sharding import make_mesh
from mecap_jax.train_state import init_params

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")


def _error(found, right):
    found, right = (np.asarray(x, np.float32) for x in (found, right))
    return np.linalg.norm(found - right) / np.linalg.norm(right)


def _with_gradients(attend, *inputs):
    out, pull = jax.vjp(attend, *inputs)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))


@pytest.mark.parametrize("length", [320, 333, 1024])
@pytest.mark.parametrize("heads, key_heads, head", [(14, 2, 64), (16, 2, 128)])
def test_fused_attention_over_a_prompt_is_the_plain_one(length, heads, key_heads, head):
    keys = jax.random.split(jax.random.key(length), 3)
    inputs = [jax.random.normal(k, (2, length, n, head), jnp.bfloat16) for k, n in zip(keys, (heads, *[key_heads] * 2))]
    assert choose(length, jnp.bfloat16, head, None) == "cudnn"
    right = _with_gradients(plain_prompt, *(x.astype(jnp.float32) for x in inputs))
    plain, fused = (jax.jit(lambda *x, f=f: _with_gradients(f, *x))(*inputs) for f in (plain_prompt, attend_prompt))
    for wanted, rounded, found in zip(right, plain, fused):
        print(_error(rounded, wanted), _error(found, wanted))
        assert _error(found, wanted) < max(1.5 * _error(rounded, wanted), 4e-3)


@pytest.mark.parametrize("length", [333, 2048])
def test_attention_of_a_group_is_the_plain_one(length):
    batch, group, new, heads, key_heads, head = 2, 4, 24, 16, 2, 64
    keys = jax.random.split(jax.random.key(length), 5)
    shapes = [(batch, length, key_heads, head)] * 2 + [(batch, group, new, n, head) for n in (heads, *[key_heads] * 2)]
    inputs = [jax.random.normal(k, shape, jnp.bfloat16) for k, shape in zip(keys, shapes)]
    mask = jnp.arange(length) < jnp.array([[length], [length - 50]])

    def chosen(k, v, q, *own):
        return attend_group(KeyValue(k, v), mask, q, KeyValue(*own))

    def plain(k, v, q, *own):
        causal = jnp.tril(jnp.ones((new, new), bool))
        return plain_group(KeyValue(k, v).by_heads(), mask, q, KeyValue(*own).by_heads(), causal)

    right = _with_gradients(plain, *(x.astype(jnp.float32) for x in inputs))
    for wanted, found in zip(right, jax.jit(lambda *x: _with_gradients(chosen, *x))(*inputs)):
        assert _error(found, wanted) < 1e-2


def test_a_decoder_scores_learns_and_samples_as_in_float32_on_a_cpu():
    rng, small = np.random.default_rng(0), dataclasses.replace(DECODER, hidden_size=256, intermediate_size=512)
    small = dataclasses.replace(small, num_hidden_layers=8, num_attention_heads=4, vocab_size=2048)
    prompts = rng.integers(16, 2048, (2, 320)).tolist()
    tokens = np.int32(rng.integers(16, 2048, (2, 4, 24)))
    found = {}
    for device, dtype in (("cpu", "float32"), ("gpu", "float32"), ("gpu", "bfloat16")):
        model = ModelConfig(name="small", family="qwen2", decoder=small, dtype=dtype)
        with jax.default_device(jax.devices(device)[0]), jax.default_matmul_precision("highest"):
            graphdef, params = init_params(model, 0, make_mesh(MeshConfig(), jax.devices(device)[:1]))
            prompt = jax.tree.map(jnp.asarray, from_ids(prompts, None, model))

            def loss(params, graphdef=graphdef, prompt=prompt):
                return score_completions(nnx.merge(graphdef, params), prompt, jnp.asarray(tokens)).logprobs.mean()

            value, gradient = jax.jit(jax.value_and_grad(loss))(params)
            gradient = jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])
            drawn = generate(
                graphdef, params, prompt, jnp.uint32(jnp.array([0, 1])), jnp.arange(2), group_size=4,
                max_new_tokens=24, temperature=1.0, end_ids=(-1,),
            )  # fmt: skip
            scored = completion_logprobs(
                graphdef, params, prompt, Completions(drawn.tokens, drawn.mask()), temperature=1.0
            )
            gap = float(np.abs(np.asarray(scored) - np.asarray(drawn.logprobs)).max())
            found[device, dtype] = float(value), np.asarray(gradient), gap
    right = found["cpu", "float32"]
    for which, (value, gradient, gap) in found.items():
        print(which, value, _error(gradient, right[1]), gap)
    assert abs(found["gpu", "float32"][0] - right[0]) < 1e-4 and _error(found["gpu", "float32"][1], right[1]) < 1e-3
    assert abs(found["gpu", "bfloat16"][0] - right[0]) < 2e-2 and _error(found["gpu", "bfloat16"][1], right[1]) < 5e-2
    assert found["gpu", "float32"][2] < 1e-3 and found["gpu", "bfloat16"][2] < 0.1
