"""Attention that holds one block of logits gives the numbers, and the gradients, of the plain form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mecap_jax.models import attention, fused_attention
from mecap_jax.models.attention import KeyValue
from mecap_jax.sharding import BATCH_AXES

BATCH, HEADS, KEY_HEADS, HEAD = 2, 4, 2, 8
BLOCK = 128
streamed_prompt = functools.partial(attention.streamed_prompt, block=BLOCK)


def arrays(length, group=0, completion=0, dtype=jnp.float32):
    """Queries of a prompt or of completions, keys and values of the prompt, and those of completions."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def draw(*shape):
        return jax.random.normal(next(keys), (*shape, HEAD), dtype)

    k, v = (draw(BATCH, length, KEY_HEADS) for _ in range(2))
    if not group:
        return draw(BATCH, length, HEADS), k, v
    own = KeyValue(*(draw(BATCH, group, completion, KEY_HEADS) for _ in range(2)))
    return draw(BATCH, group, completion, HEADS), KeyValue(k, v), own


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(attend, *inputs):
    """The output and, of a random weighting of it, the gradient of every input."""
    output, pull = jax.vjp(attend, *inputs)
    return output, pull(jax.random.normal(jax.random.key(9), output.shape, output.dtype))


def assert_same(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("length", [20, 300])  # one block of keys; more, of which the last is not full
def test_a_streamed_prompt_is_the_plain_one(length, dtype, tolerance):
    inputs = arrays(length, dtype=dtype)
    expected = with_gradients(attention.plain_prompt, *inputs)
    assert_same(with_gradients(streamed_prompt, *inputs), expected, tolerance)


@pytest.mark.parametrize("group, completion", [(6, 40), (2, 150)])  # several completions to a block; one above its size
def test_a_streamed_group_is_the_plain_one(group, completion):
    """Prompts of different lengths, one of which is empty."""
    inputs = arrays(300, group, completion)
    mask = jnp.arange(300) < jnp.array([[270], [0]])
    causal = jnp.tril(jnp.ones((completion, completion), bool))

    def plain(q, prompt, own):
        return attention.plain_group(prompt.by_heads(), mask, q, own.by_heads(), causal)

    def streamed(q, prompt, own):
        return attention.streamed_group(prompt, mask, q, own, BLOCK)

    assert_same(with_gradients(streamed, *inputs), with_gradients(plain, *inputs))


def test_the_gradient_is_not_that_of_parts_merged_by_sums_without_gradient():
    """Kernels that drop the gradient of their log-sum-exp give right outputs and wrong gradients when they are merged:
    the comparison must tell."""
    q, k, v = arrays(300)

    def naive(q, k, v):
        logits = jnp.einsum("btkrh,bskh->bkrts", q.reshape(*q.shape[:2], KEY_HEADS, -1, HEAD), k) * HEAD**-0.5
        logits = jnp.where(jnp.tril(jnp.ones((300, 300), bool)), logits, -1e30)
        parts, sums = [], []
        for part in (slice(0, 150), slice(150, 300)):
            weights = jax.nn.softmax(logits[..., part], axis=-1)
            parts.append(jnp.einsum("bkrts,bskh->btkrh", weights, v[:, part]))
            sums.append(jax.lax.stop_gradient(jax.nn.logsumexp(logits[..., part], axis=-1)))
        shares = jax.nn.softmax(jnp.stack(sums), axis=0).transpose(0, 1, 4, 2, 3)[..., None]
        return sum(share * part for share, part in zip(shares, parts)).reshape(q.shape)

    (output, wrong), (expected, right) = (with_gradients(f, q, k, v) for f in (naive, attention.plain_prompt))
    assert_same(output, expected)
    with pytest.raises(AssertionError):
        assert_same(wrong, right, tolerance=1e-2)


def test_a_long_prompt_takes_no_memory_for_its_logits():
    q, prompt, own = arrays(1024, group=8, completion=32)
    mask = jnp.ones((BATCH, 1024), bool)

    def temporaries(loss, *inputs):
        gradient = jax.jit(jax.grad(loss, range(len(inputs))))
        return gradient.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    of_prompt = temporaries(lambda *x: jnp.sum(attention.attend_prompt(*x)), *arrays(1024))
    assert of_prompt < BATCH * HEADS * 1024**2 * 4 / 8
    of_group = temporaries(lambda q, *x: jnp.sum(attention.attend_group(prompt, mask, q, own)), q)
    assert of_group < BATCH * HEADS * 8 * 32 * 1024 * 4


def test_blocks_are_not_gathered_on_a_mesh():
    """Rows and heads stay divided through blocks and loops, forward and backward."""
    mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    by_heads = NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, "tensor"))
    group_by_heads = NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, None, "tensor"))
    inputs = jax.device_put((*arrays(300), *arrays(300, 6, 20)[::2]), (*[by_heads] * 3, *[group_by_heads] * 2))
    mask = jnp.arange(300) < jnp.array([[270], [100]])

    def loss(q, k, v, completions, own):
        group = attention.streamed_group(KeyValue(k, v), mask, completions, own, BLOCK)
        return jnp.sum(streamed_prompt(q, k, v) ** 2) + jnp.sum(group**2)

    compiled = jax.jit(jax.grad(loss, range(5))).lower(*inputs).compile().as_text()
    assert not re.findall(r"(all-gather|all-to-all|collective-permute)\(", compiled)


def test_the_fused_kernels_are_the_plain_form():
    """Splash attention in Pallas' interpreter; prompts of different lengths behind which completions stand."""
    inputs = arrays(300)
    expected = with_gradients(attention.plain_prompt, *inputs)
    assert_same(with_gradients(lambda *x: fused_attention.splash_prompt(*x, None, interpret=True), *inputs), expected)

    mask, causal = jnp.arange(300) < jnp.array([[270], [100]]), jnp.tril(jnp.ones((40, 40), bool))
    q, prompt, own = arrays(300, 6, 40)

    def plain(q, prompt, own):
        return attention.plain_group(prompt.by_heads(), mask, q, own.by_heads(), causal)

    def splash(q, prompt, own):
        return fused_attention.splash_group(prompt, mask, q, own, None, interpret=True)

    assert_same(with_gradients(splash, q, prompt, own), with_gradients(plain, q, prompt, own))


@pytest.mark.parametrize(
    "platform, prompt_calls, group_calls",
    [
        ("cuda", ("custom_call @__cudnn", 2), ("stablehlo.while", 4)),
        ("tpu", ("tpu_custom_call", 3), ("tpu_custom_call", 3)),
    ],
)
def test_accelerators_have_their_kernels(monkeypatch, platform, prompt_calls, group_calls):
    """What the gradient of long prompts and their completions is lowered to, forward and backward; nothing is run."""
    monkeypatch.setattr(attention, "platform", lambda mesh: "gpu" if platform == "cuda" else platform)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, prompt, own = arrays(300, 6, 40, jnp.bfloat16)
    mask = jnp.ones((BATCH, 300), bool)

    def lowered(attend, *inputs):
        gradient = jax.grad(lambda *x: jnp.sum(attend(*x).astype(jnp.float32)), range(len(inputs)))
        return jax.jit(gradient).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()

    of_prompt = lowered(attention.attend_prompt, *arrays(300, dtype=jnp.bfloat16))
    of_group = lowered(lambda q, prompt, own: attention.attend_group(prompt, mask, q, own), q, prompt, own)
    for text, (name, count) in ((of_prompt, prompt_calls), (of_group, group_calls)):
        assert text.count(name) == count


def test_a_short_prompt_is_not_streamed():
    inputs = arrays(104)
    chosen, plain = (str(jax.make_jaxpr(f)(*inputs)) for f in (attention.attend_prompt, attention.plain_prompt))
    assert chosen == plain
