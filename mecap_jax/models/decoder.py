"""The Qwen2.5 decoder, with the group's shared prompt as a first-class idea.

`prefill` runs a batch of prompts and returns their keys and values. `extend` runs G continuations of every prompt
against those keys and values, which are stored once for the whole group. Without a cache `extend` takes whole
completions (scoring, training); with a cache it takes the next tokens of each (decoding). Both give the same numbers
as G separate sequences, and gradients flow through the shared prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.model_config import DecoderConfig
from mecap_jax.models.layers import MASKED, Dtypes, Embedding, GatedMlp, Linear, RMSNorm, rotate, split_heads, weigh


class KeyValue(NamedTuple):
    """Keys and values of one layer: prompt [B, P, K, H] or completions [B, G, T, K, H]."""

    keys: Array
    values: Array


class Prefix(NamedTuple):
    """What the completions of a group share.

    Attributes:
      layers: keys and values of the prompt, one entry a layer.
      mask: bool [B, P], which prompt positions are valid.
      next_position: int32 [B], position of the first completion token.
    """

    layers: list[KeyValue]
    mask: Array
    next_position: Array


class Attention(nnx.Module):
    """Projections of grouped-query attention: biases on q, k and v (Qwen2.5) or a norm of q and k (Qwen3)."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        query_dim = config.num_attention_heads * config.head_dim
        key_dim = config.num_key_value_heads * config.head_dim
        self.heads, self.kv_heads, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.q_proj = Linear(config.hidden_size, query_dim, ("embed", "heads"), dtypes, rngs, bias=bias)
        self.k_proj = Linear(config.hidden_size, key_dim, ("embed", "kv_heads"), dtypes, rngs, bias=bias)
        self.v_proj = Linear(config.hidden_size, key_dim, ("embed", "kv_heads"), dtypes, rngs, bias=bias)
        self.o_proj = Linear(query_dim, config.hidden_size, ("heads", "embed"), dtypes, rngs, bias=False)
        self.q_norm = RMSNorm(config.head_dim, dtypes, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, dtypes, config.rms_norm_eps) if config.qk_norm else None

    def project(self, x: Float[Array, "*batch dim"], cos, sin):
        """Returns rotated queries [..., N, H], rotated keys and values [..., K, H]."""
        q, k = split_heads(self.q_proj(x), self.heads), split_heads(self.k_proj(x), self.kv_heads)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, cos, sin), rotate(k, cos, sin), split_heads(self.v_proj(x), self.kv_heads)

    def output(self, x: Float[Array, "*batch heads head"]) -> Float[Array, "*batch dim"]:
        return self.o_proj(x.reshape(*x.shape[:-2], -1))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, dtypes, config.rms_norm_eps)
        self.self_attn = Attention(config, dtypes, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, dtypes, config.rms_norm_eps)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, dtypes, rngs, bias=False)

    def feed_forward(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """The stack of layers with token embeddings, final norm and output weights."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs, *, remat: bool = False):
        """`remat`: the backward pass computes a layer's inside again instead of keeping it."""
        self.config, self.remat = config, remat
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtypes, rngs)
        self.layers = nnx.List([DecoderLayer(config, dtypes, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, dtypes, config.rms_norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear(config.hidden_size, config.vocab_size, ("embed", "vocab"), dtypes, rngs, bias=False, wide=True)
        )

    def prefill(
        self,
        x: Float[Array, "B P D"],
        positions: Int[Array, "B 3 P"],
        mask: Bool[Array, "B P"],
        next_position: Int[Array, " B"],
    ) -> tuple[Float[Array, "B P D"], Prefix]:
        """Runs the prompts; returns normalised hidden states and the prefix for `extend`."""
        cos, sin = rotary_angles(positions, self.config)
        length = x.shape[1]
        visible = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, :]
        cached = []
        for layer in self.layers:

            def run(x, layer=layer):
                q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
                x = layer.feed_forward(x + layer.self_attn.output(_attend_causal(q, k, v, visible)))
                return x, KeyValue(k, v)

            x, own = jax.checkpoint(run)(x) if self.remat else run(x)
            cached.append(own)
        return self.norm(x), Prefix(cached, mask, next_position)

    def extend(
        self,
        x: Float[Array, "B G T D"],
        prefix: Prefix,
        cache: list[KeyValue] | None = None,
        step: Int[Array, ""] | int = 0,
        skipped: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "B G T D"], list[KeyValue] | None]:
        """Runs G continuations of every prompt.

        Without `cache`, x holds whole completions. With it, x holds the tokens at `step` .. `step + T - 1`, whose keys
        and values are written there, and attention sees the cache up to them.

        `skipped` says how many places at the beginning of each continuation hold nothing: they take no position, and
        nothing sees them.

        Returns normalised hidden states and the updated cache (None where none was given).
        """
        batch, _, length, _ = x.shape
        index = step + jnp.arange(length)
        position = prefix.next_position[:, None] + index[None, :]  # text: one number on all three axes
        keys_length = length if cache is None else cache[0].keys.shape[2]
        visible = jnp.arange(keys_length)[None, :] <= index[:, None]
        if skipped is None:
            cos, sin = self._text_angles(position)
            cos, sin = cos[:, None], sin[:, None]  # the same for every completion of the group
        else:
            position = position[:, None] - skipped[..., None]
            cos, sin = self._text_angles(position.reshape(-1, length))
            cos, sin = (x.reshape(batch, -1, length, x.shape[-1]) for x in (cos, sin))
            visible = visible & (jnp.arange(keys_length) >= skipped[..., None])[:, :, None]
        updated = []
        for i, layer in enumerate(self.layers):

            def run(x, prompt, i=i, layer=layer):
                q, k, v = layer.self_attn.project(layer.input_layernorm(x), cos, sin)
                own = KeyValue(k, v)
                if cache is not None:
                    own = KeyValue(*(_write(old, new, step) for old, new in zip(cache[i], own)))
                attended = _attend_group(q, prompt, prefix.mask, own, visible)
                return layer.feed_forward(x + layer.self_attn.output(attended)), own

            # Decoding has no backward pass.
            x, own = (jax.checkpoint(run) if self.remat and cache is None else run)(x, prefix.layers[i])
            updated.append(own)
        return self.norm(x), updated if cache is not None else None

    def _text_angles(self, position: Int[Array, "B T"]) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
        return rotary_angles(jnp.broadcast_to(position[:, None], (len(position), 3, position.shape[1])), self.config)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Output logits, accumulated and kept in float32."""
        return self.embed_tokens.attend(hidden) if self.lm_head is None else self.lm_head(hidden)


def rotary_angles(
    positions: Int[Array, "B 3 P"], config: DecoderConfig
) -> tuple[Float[Array, "B P half"], Float[Array, "B P half"]]:
    """Cosine and sine of the rotary angles.

    Multimodal rotary positions (Qwen2-VL, arXiv 2409.12191): the first `mrope_section[0]` frequencies follow the
    temporal position, the next the height, the last the width. Text has the same position on all three axes.
    """
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    section = config.mrope_section or (half, 0, 0)
    axis = jnp.repeat(jnp.arange(3), jnp.array(section), total_repeat_length=half)
    position = jnp.take(positions, axis, axis=1).astype(jnp.float32)  # [B, half, P]
    angles = position.swapaxes(1, 2) * frequency
    return jnp.cos(angles), jnp.sin(angles)


def _write(buffer: Float[Array, "B G S K H"], new: Float[Array, "B G T K H"], step) -> Float[Array, "B G S K H"]:
    return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), step, axis=2)


# Attention runs on [batch, key head, query rows, head]: queries that share a key head are rows of one product, and the
# softmax is divided out after the product with the values. On CPU that is twice as fast as einsums over [B, T, N, H].


def _fold_queries(q: Float[Array, "B T N H"], key_heads: int) -> Float[Array, "B K RT H"]:
    batch, length, heads, head = q.shape
    q = q.reshape(batch, length, key_heads, heads // key_heads, head) * head**-0.5
    return q.transpose(0, 2, 3, 1, 4).reshape(batch, key_heads, -1, head)


def _attend_causal(q, k, v, visible: Bool[Array, "B P P"]):
    """q [B, P, N, H] over k, v [B, P, K, H] with grouped queries."""
    batch, length, heads, head = q.shape
    key_heads = k.shape[2]
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    bias = jnp.tile(jnp.where(visible, 0.0, MASKED), (1, heads // key_heads, 1))[:, None]
    logits = _products(_fold_queries(q, key_heads), k) + bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    values = weigh(weights, v) / weights.sum(axis=-1, keepdims=True)
    return values.astype(v.dtype).reshape(batch, key_heads, -1, length, head).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _attend_group(q, prompt: KeyValue, prompt_mask: Bool[Array, "B P"], own: KeyValue, visible: Bool[Array, "*BG T S"]):
    """q [B, G, T, N, H] over the group's prompt [B, P, K, H] and its own completion [B, G, S, K, H].

    What is `visible` is the same for all completions, or of each by itself. One softmax over both parts; the prompt's
    keys are read once for all completions of the group.
    """
    batch, group, length, heads, head = q.shape
    key_heads = own.keys.shape[3]
    shared, folded = heads // key_heads, (batch, key_heads, group, -1)
    q = q.reshape(batch, group, length, key_heads, shared, head) * head**-0.5
    q = q.transpose(0, 3, 1, 4, 2, 5)  # B K G R T H
    prompt_keys, prompt_values = (x.swapaxes(1, 2) for x in prompt)
    own_keys, own_values = (x.transpose(0, 3, 1, 2, 4) for x in own)

    to_prompt = _products(q.reshape(batch, key_heads, -1, head), prompt_keys)
    to_prompt += jnp.where(prompt_mask, 0.0, MASKED)[:, None, None, :]
    bias = jnp.tile(jnp.where(visible, 0.0, MASKED), (shared, 1))  # [*BG, RT, S]
    to_own = _products(q.reshape(*folded, head), own_keys) + (bias if bias.ndim == 2 else bias[:, None])
    to_own = to_own.reshape(batch, key_heads, -1, to_own.shape[-1])

    highest = jnp.maximum(to_prompt.max(axis=-1, keepdims=True), to_own.max(axis=-1, keepdims=True))
    highest = jax.lax.stop_gradient(highest)
    on_prompt, on_own = jnp.exp(to_prompt - highest), jnp.exp(to_own - highest)
    total = on_prompt.sum(axis=-1, keepdims=True) + on_own.sum(axis=-1, keepdims=True)
    values = weigh(on_prompt, prompt_values)
    values += weigh(on_own.reshape(*folded, on_own.shape[-1]), own_values).reshape(values.shape)
    values = (values / total).astype(own_values.dtype)
    return (
        values.reshape(batch, key_heads, group, shared, length, head)
        .transpose(0, 2, 4, 1, 3, 5)
        .reshape(batch, group, length, heads, head)
    )


def _products(q: Float[Array, "*batch Q H"], k: Float[Array, "*batch S H"]) -> Float[Array, "*batch Q S"]:
    return jnp.einsum("...qh,...sh->...qs", q, k, preferred_element_type=jnp.float32)
