"""Attention of the decoder: over a prompt, and of a group's completions over their shared prompt and themselves.

`attend_prompt` and `attend_group` choose how it is computed, by platform and shape (`choose`). The plain form takes one
softmax over all logits. The streamed form never holds more than one block of them: it goes through the keys block by
block, carries the softmax's maximum and sum along (arXiv 1805.02867, 2205.14135), leaves out the blocks that nothing
sees, and computes the weights again in the backward pass. Fused kernels do the same on accelerators
(`fused_attention`). All give the same numbers up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from mecap_jax.models import fused_attention
from mecap_jax.models.layers import MASKED, weigh
from mecap_jax.sharding import platform

# Queries of one head, and keys, in a block of the streamed form, at most. Small blocks stay in a CPU's cache; a GPU,
# where it has not been measured, wants few large ones. Prompts of up to `SHORT` are as fast in the plain form (CPU).
BLOCK, SHORT = {"cpu": 128, "gpu": 1024}, 256


class KeyValue(NamedTuple):
    """Keys and values of one layer: prompt [B, P, K, H] or completions [B, G, T, K, H], or either by heads."""

    keys: Array
    values: Array

    def by_heads(self) -> KeyValue:
        """As they are multiplied, and so kept for decoding: prompt [B, K, P, H] or completions [B, K, G, T, H]."""
        return KeyValue(*(jnp.moveaxis(x, -2, 1) for x in self))


def attend_prompt(
    q: Float[Array, "B P N H"], k: Float[Array, "B P K H"], v: Float[Array, "B P K H"], mesh: Mesh | None = None
) -> Float[Array, "B P N H"]:
    """Causal attention with grouped queries, on a mesh or on the default device.

    Padding stands behind the prompt, where causality hides it from all that counts.
    """
    match choose(q.shape[1], q.dtype, q.shape[3], mesh):
        case "plain":
            return plain_prompt(q, k, v)
        case "cudnn":
            return fused_attention.cudnn_prompt(q, k, v)
        case "splash":
            return fused_attention.splash_prompt(q, k, v, mesh)
    return streamed_prompt(q, k, v, BLOCK[platform(mesh)])


def attend_group(
    prompt: KeyValue,
    prompt_mask: Bool[Array, "B P"],
    q: Float[Array, "B G T N H"],
    own: KeyValue,
    mesh: Mesh | None = None,
) -> Float[Array, "B G T N H"]:
    """Attention of whole completions over the valid part of the group's prompt and, causally, over themselves."""
    match choose(prompt_mask.shape[1], q.dtype, q.shape[4], mesh):
        case "plain":
            return plain_group(prompt.by_heads(), prompt_mask, q, own.by_heads(), _causal(q.shape[2]))
        case "splash":
            return fused_attention.splash_group(prompt, prompt_mask, q, own, mesh)
    return streamed_group(prompt, prompt_mask, q, own, BLOCK[platform(mesh)])


def choose(prompt: int, dtype: jnp.dtype, head: int, mesh: Mesh | None) -> str:
    """How attention over a prompt of so many positions is computed: "plain", "streamed", "cudnn" or "splash".

    cuDNN's kernel takes 16-bit numbers and heads of up to 128, by 8. A group does without it (streamed): its mask is
    none that the kernel knows, and parts cannot be merged behind it, because its backward pass drops the gradient of
    the log-sum-exp (JAX 0.10.2).
    """
    if prompt <= SHORT:
        return "plain"
    if platform(mesh) == "tpu":
        return "splash"
    if platform(mesh) == "gpu" and jnp.dtype(dtype).itemsize == 2 and head <= 128 and head % 8 == 0:
        return "cudnn"
    return "streamed"


def _causal(length: int) -> Bool[Array, "T T"]:
    return jnp.tril(jnp.ones((length, length), bool))


# Both forms run on [batch, key head, query rows, head]: queries that share a key head are rows of one product, and the
# softmax is divided out after the product with the values. On CPU that is twice as fast as einsums over [B, T, N, H].


def _fold_queries(q: Float[Array, "B T N H"], key_heads: int) -> Float[Array, "B K RT H"]:
    batch, length, heads, head = q.shape
    q = q.reshape(batch, length, key_heads, heads // key_heads, head) * head**-0.5
    return q.transpose(0, 2, 3, 1, 4).reshape(batch, key_heads, -1, head)


def plain_prompt(
    q: Float[Array, "B P N H"], k: Float[Array, "B P K H"], v: Float[Array, "B P K H"]
) -> Float[Array, "B P N H"]:
    """`attend_prompt` with all logits at once."""
    return _plain(q, KeyValue(k, v).by_heads(), _bias(_causal(q.shape[1]), q.shape[2] // k.shape[2]))


def attend_seen(q: Float[Array, "B T N H"], prompt: KeyValue, seen: Bool[Array, "B P"]) -> Float[Array, "B T N H"]:
    """Attention of every query to the same positions of a prompt by heads, [B, K, P, H]."""
    return _plain(q, prompt, jnp.where(seen, 0.0, MASKED)[:, None, None, :])


def _plain(q: Float[Array, "B T N H"], prompt: KeyValue, bias: Float[Array, "*#BK #RT S"]) -> Float[Array, "B T N H"]:
    batch, length, _, head = q.shape
    k, v = prompt
    key_heads = k.shape[1]
    logits = _products(_fold_queries(q, key_heads), k) + bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    values = weigh(weights, v) / weights.sum(axis=-1, keepdims=True)
    return values.astype(v.dtype).reshape(batch, key_heads, -1, length, head).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def plain_group(
    prompt: KeyValue,
    prompt_mask: Bool[Array, "B P"],
    q: Float[Array, "B G T N H"],
    own: KeyValue,
    visible: Bool[Array, "*BG T S"],
) -> Float[Array, "B G T N H"]:
    """Attention over the group's prompt [B, K, P, H] and its own completion [B, K, G, S, H], all logits at once.

    What is `visible` of the own completion is the same for all, or of each by itself. One softmax over both parts; the
    prompt's keys are read once for all completions of the group.
    """
    batch, group, length, heads, head = q.shape
    key_heads = own.keys.shape[1]
    shared, folded = heads // key_heads, (batch, key_heads, group, -1)
    q = q.reshape(batch, group, length, key_heads, shared, head) * head**-0.5
    q = q.transpose(0, 3, 1, 4, 2, 5)  # B K G R T H
    to_prompt = _products(q.reshape(batch, key_heads, -1, head), prompt.keys)
    to_prompt += jnp.where(prompt_mask, 0.0, MASKED)[:, None, None, :]
    bias = _bias(visible, shared)  # [*BG, RT, S]
    to_own = _products(q.reshape(*folded, head), own.keys) + (bias if bias.ndim == 2 else bias[:, None])
    to_own = to_own.reshape(batch, key_heads, -1, to_own.shape[-1])

    highest = jnp.maximum(to_prompt.max(axis=-1, keepdims=True), to_own.max(axis=-1, keepdims=True))
    highest = jax.lax.stop_gradient(highest)
    on_prompt, on_own = jnp.exp(to_prompt - highest), jnp.exp(to_own - highest)
    total = on_prompt.sum(axis=-1, keepdims=True) + on_own.sum(axis=-1, keepdims=True)
    values = weigh(on_prompt, prompt.values)
    values += weigh(on_own.reshape(*folded, on_own.shape[-1]), own.values).reshape(values.shape)
    values = (values / total).astype(own.values.dtype)
    return (
        values.reshape(batch, key_heads, group, shared, length, head)
        .transpose(0, 2, 4, 1, 3, 5)
        .reshape(batch, group, length, heads, head)
    )


def _bias(visible: Bool[Array, "*BG T S"], shared: int) -> Float[Array, "*BG RT S"]:
    return jnp.tile(jnp.where(visible, 0.0, MASKED), (shared, 1))


def _products(q: Float[Array, "*batch Q H"], k: Float[Array, "*batch S H"]) -> Float[Array, "*batch Q S"]:
    return jnp.einsum("...qh,...sh->...qs", q, k, preferred_element_type=jnp.float32)


# --- streamed: a block of queries sees some of the earlier blocks of keys, and a block of keys of its own ------------


def streamed_prompt(q: Float[Array, "B P N H"], k: Float[Array, "B P K H"], v: Float[Array, "B P K H"], block: int):
    """`attend_prompt` block by block: a block sees all blocks before it, and itself causally."""
    batch, length, heads, head = q.shape
    key_heads, block = k.shape[2], _even(length, block)
    padded = [jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0))) for x in (q, k, v)]
    own = KeyValue(*(_to_blocks(x, key_heads, block) for x in padded[1:]))
    q = _to_blocks(padded[0] * head**-0.5, key_heads, block)
    count = len(q)
    visible = jnp.ones((count, batch, block), bool)
    values = _stream(q, own, visible, jnp.arange(count), own, _bias(_causal(block), heads // key_heads))
    return _from_blocks(values, heads)[:, :length]


def streamed_group(
    prompt: KeyValue, prompt_mask: Bool[Array, "B P"], q: Float[Array, "B G T N H"], own: KeyValue, block: int
) -> Float[Array, "B G T N H"]:
    """`attend_group` block by block: a block of completions sees the prompt, and each of them itself causally."""
    batch, group, length, heads, head = q.shape
    key_heads, size = own.keys.shape[3], prompt_mask.shape[1]
    block = _even(size, block)
    after = -size % block
    prompt = KeyValue(*(_to_blocks(jnp.pad(x, ((0, 0), (0, after), (0, 0), (0, 0))), key_heads, block) for x in prompt))
    visible = jnp.pad(prompt_mask, ((0, 0), (0, after))).reshape(batch, -1, block).swapaxes(0, 1)
    together = max(n for n in range(1, group + 1) if group % n == 0 and (n == 1 or n * length <= block))

    def blocks(x):  # completions one behind the other, some to a block
        return _to_blocks(x.reshape(batch, group * length, *x.shape[3:]), key_heads, together * length)

    completion = jnp.arange(together * length) // length
    same = (completion[:, None] == completion) & _causal(together * length)
    values = _stream(
        blocks(q * head**-0.5),
        prompt,
        visible,
        jnp.full(group // together, len(visible)),
        KeyValue(*map(blocks, own)),
        _bias(same, heads // key_heads),
    )
    return _from_blocks(values, heads).reshape(q.shape)


def _even(length: int, most: int) -> int:
    """The size of the fewest blocks of equal size, a multiple of 8."""
    blocks = -(-length // most)
    return -(-length // (8 * blocks)) * 8


def _to_blocks(x: Float[Array, "B T N H"], key_heads: int, size: int) -> Float[Array, "blocks B K RS H"]:
    batch, _, heads, head = x.shape
    x = x.reshape(batch, -1, size, key_heads, heads // key_heads, head)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(-1, batch, key_heads, heads // key_heads * size, head)


def _from_blocks(x: Float[Array, "blocks B K RS H"], heads: int) -> Float[Array, "B T N H"]:
    count, batch, key_heads, _, head = x.shape
    x = x.reshape(count, batch, key_heads, heads // key_heads, -1, head)
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, head)


@jax.custom_vjp
def _stream(q, earlier: KeyValue, visible, ends, own: KeyValue, bias):
    """Attention of blocks of (scaled) queries.

    Its gradient is its own: weights follow from the merged maximum and sum of all parts. Differentiating part by part
    would need the gradient of each part's sum, which fused kernels do not give.

    Args:
      q: [n, B, K, Q, H], n blocks.
      earlier: [m, B, K, S, H]; block i sees the first `ends[i]` of them.
      visible: bool [m, B, S], which earlier keys exist.
      ends: int [n].
      own: [n, B, K, T, H]; block i sees its own under `bias` [Q, T].
    """
    return _stream_forward(q, earlier, visible, ends, own, bias)[0]


def _stream_forward(q, earlier, visible, ends, own, bias):
    def attend(block):
        q, end, own = block
        logits = _products(q, own.keys) + bias
        highest = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - highest)

        def add(j, carry):
            highest, total, values = carry
            keys, their_values = earlier.keys[j], earlier.values[j]
            logits = _earlier_logits(q, keys, visible[j])
            higher = jnp.maximum(highest, logits.max(axis=-1, keepdims=True))
            weights, fade = jnp.exp(logits - higher), jnp.exp(highest - higher)
            total = total * fade + weights.sum(axis=-1, keepdims=True)
            return higher, total, values * fade + weigh(weights, their_values)

        start = highest, weights.sum(axis=-1, keepdims=True), weigh(weights, own.values)
        highest, total, values = jax.lax.fori_loop(0, end, add, start)
        return (values / total).astype(q.dtype), highest + jnp.log(total)

    values, normaliser = (checkpoint_name(x, "attention") for x in jax.lax.map(attend, (q, ends, own)))
    return values, (q, earlier, visible, ends, own, bias, values, normaliser)


def _stream_backward(residuals, cotangent):
    q, earlier, visible, ends, own, bias, values, normaliser = residuals
    inner = jnp.sum(cotangent.astype(jnp.float32) * values, axis=-1, keepdims=True)

    def differentiate(sums, block):
        q, end, own, normaliser, cotangent, inner = block

        def gradients(logits, keys, values):
            """Of the queries, and of a block of keys and its values."""
            weights = jnp.exp(logits - normaliser)
            to_logits = (weights * (_products(cotangent, values) - inner)).astype(q.dtype)
            to_values = _transposed_products(weights.astype(cotangent.dtype), cotangent)
            return weigh(to_logits, keys), KeyValue(_transposed_products(to_logits, q), to_values)

        to_q, to_own = gradients(_products(q, own.keys) + bias, *own)

        def add(j, carry):
            to_q, sums = carry
            keys, values = earlier.keys[j], earlier.values[j]
            more, to_earlier = gradients(_earlier_logits(q, keys, visible[j]), keys, values)
            return to_q + more, jax.tree.map(lambda total, x: total.at[j].add(x), sums, to_earlier)

        to_q, sums = jax.lax.fori_loop(0, end, add, (to_q, sums))
        return sums, (to_q, to_own)

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), earlier)
    blocks = q, ends, own, normaliser, cotangent, inner
    to_earlier, (to_q, to_own) = jax.lax.scan(differentiate, zeros, blocks)

    def rounded(gradients):
        return KeyValue(*(x.astype(old.dtype) for x, old in zip(gradients, earlier)))

    return to_q.astype(q.dtype), rounded(to_earlier), None, None, rounded(to_own), None


_stream.defvjp(_stream_forward, _stream_backward)


def _earlier_logits(q: Float[Array, "B K Q H"], keys: Float[Array, "B K S H"], visible: Bool[Array, "B S"]):
    return _products(q, keys) + jnp.where(visible, 0.0, MASKED)[:, None, None, :]


def _transposed_products(x: Float[Array, "*batch Q S"], y: Float[Array, "*batch Q H"]) -> Float[Array, "*batch S H"]:
    return jnp.einsum("...qs,...qh->...sh", x, y, preferred_element_type=jnp.float32)
