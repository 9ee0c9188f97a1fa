"""The decoder of Qwen2.5 or GPT-2, with the group's shared prompt as a first-class idea.

`prefill` runs a batch of prompts and returns their keys and values; `extend` takes the next tokens of G continuations
of every prompt against them (decoding). `run_groups` runs prompts with G whole completions each (scoring, training).
Both have the prompt once for the whole group, and give the same numbers as G separate sequences; gradients flow through
it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.model_config import DecoderConfig
from mecap_jax.models.attention import KeyValue, attend_group, attend_prompt, attend_seen, plain_group
from mecap_jax.models.layers import (
    Dtypes,
    Embedding,
    GatedMlp,
    LayerNorm,
    Linear,
    Mlp,
    RMSNorm,
    rotate,
    split_heads,
)
from mecap_jax.models.stack import Running, run_layers


class Prefix(NamedTuple):
    """What the completions of a group share.

    Attributes:
      layers: keys and values of the prompt by heads, one entry a layer.
      mask: bool [B, P], which prompt positions are valid.
      next_position: int32 [B], position of the first completion token.
    """

    layers: list[KeyValue]
    mask: Array
    next_position: Array


# Of every position of a batch: cosine and sine of its rotary angles; nothing where positions are learned.
Angles = Sequence[Array]


class Attention(nnx.Module):
    """Projections of grouped-query attention: biases on q, k and v (Qwen2.5) or a norm of q and k (Qwen3); or biases on
    all four and nothing that rotates (GPT-2)."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        query_dim = config.num_attention_heads * config.head_dim
        key_dim = config.num_key_value_heads * config.head_dim
        self.heads, self.kv_heads, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.q_proj = Linear(config.hidden_size, query_dim, ("embed", "heads"), dtypes, rngs, bias=bias)
        self.k_proj = Linear(config.hidden_size, key_dim, ("embed", "kv_heads"), dtypes, rngs, bias=bias)
        self.v_proj = Linear(config.hidden_size, key_dim, ("embed", "kv_heads"), dtypes, rngs, bias=bias)
        self.o_proj = Linear(
            query_dim, config.hidden_size, ("heads", "embed"), dtypes, rngs, bias=config.has_learned_positions
        )
        self.q_norm = RMSNorm(config.head_dim, dtypes, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, dtypes, config.rms_norm_eps) if config.qk_norm else None

    def queries(self, x: Float[Array, "*batch dim"], *angles: Array) -> Float[Array, "*batch N H"]:
        """Rotated queries."""
        q = split_heads(checkpoint_name(self.q_proj(x), "projections"), self.heads)
        return _rotated(q if self.q_norm is None else self.q_norm(q), angles)

    def keys_values(self, x: Float[Array, "*batch dim"], *angles: Array) -> KeyValue:
        """Rotated keys, and values [..., K, H]."""
        k, v = (checkpoint_name(project(x), "projections") for project in (self.k_proj, self.v_proj))
        k, v = split_heads(k, self.kv_heads), split_heads(v, self.kv_heads)
        return KeyValue(_rotated(k if self.k_norm is None else self.k_norm(k), angles), v)

    def output(self, x: Float[Array, "*batch heads head"]) -> Float[Array, "*batch dim"]:
        return self.o_proj(x.reshape(*x.shape[:-2], -1))


def _rotated(x: Float[Array, "*batch heads head"], angles: Angles) -> Float[Array, "*batch heads head"]:
    return rotate(x, *angles) if angles else x


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU, or GPT-2's MLP."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.input_layernorm = make_norm(config, dtypes)
        self.self_attn = Attention(config, dtypes, rngs)
        self.post_attention_layernorm = make_norm(config, dtypes)
        if config.has_learned_positions:
            self.mlp = Mlp(width, hidden, jax.nn.gelu, dtypes, rngs)  # by tanh
        else:
            self.mlp = GatedMlp(width, hidden, dtypes, rngs, bias=False)

    def prompt(self, x: Float[Array, "B P D"], angles, mesh: Mesh | None) -> tuple[Float[Array, "B P D"], KeyValue]:
        """A prompt by itself, and its keys and values."""
        normed = self.input_layernorm(x)
        own = self.self_attn.keys_values(normed, *angles)
        attended = attend_prompt(self.self_attn.queries(normed, *angles), *own, mesh)
        return self._feed_forward(x + self.self_attn.output(attended)), own

    def prompt_end(
        self, x: Float[Array, "B P D"], angles, last: Int[Array, " B"]
    ) -> tuple[Float[Array, "B 1 D"], KeyValue]:
        """`prompt` where of all positions only the `last` one is wanted."""
        own = self.self_attn.keys_values(self.input_layernorm(x), *angles)
        seen = jnp.arange(x.shape[1]) <= last[:, None]
        x, *angles = (jnp.take_along_axis(a, last[:, None, None], axis=1) for a in (x, *angles))
        attended = attend_seen(self.self_attn.queries(self.input_layernorm(x), *angles), own.by_heads(), seen)
        return self._feed_forward(x + self.self_attn.output(attended)), own

    def completions(self, x: Float[Array, "B G T D"], angles, attend) -> Float[Array, "B G T D"]:
        """Continuations of a prompt; `attend` takes their queries, keys and values."""
        normed = self.input_layernorm(x)
        attended = attend(self.self_attn.queries(normed, *angles), self.self_attn.keys_values(normed, *angles))
        return self._feed_forward(x + self.self_attn.output(attended))

    def _feed_forward(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """The stack of layers with token embeddings, final norm and output weights."""

    def __init__(
        self,
        config: DecoderConfig,
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        running: Running,
    ):
        self.config, self.running = config, running
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtypes, rngs)
        learned = config.max_position_embeddings
        self.embed_positions = Embedding(learned, config.hidden_size, dtypes, rngs) if learned else None
        self.layers = nnx.List([DecoderLayer(config, dtypes, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = make_norm(config, dtypes)
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
        last: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B Q D"], Prefix]:
        """Runs the prompts; returns normalised hidden states and the prefix for `extend`.

        With `last`, of this position of each prompt only, [B, 1, D]: the last layer does without the others.
        """
        if self.config.mrope_section is None:
            positions, next_position = _counted(positions), jnp.sum(mask, axis=1)
        x, angles = self._placed(x, positions)

        def below(layer: DecoderLayer, x):
            x, own = layer.prompt(x, angles, self.running.mesh)
            return x, own.by_heads()

        def top(layer: DecoderLayer, x):
            x, own = layer.prompt_end(x, angles, last)
            return x, own.by_heads()

        x, layers = self._run(below, below if last is None else top, x)
        return self.norm(x), Prefix(layers, mask, next_position)

    def run_groups(
        self,
        prompts: Float[Array, "B P D"],
        completions: Float[Array, "B G T D"],
        positions: Int[Array, "B 3 P"],
        length: Int[Array, " B"],
        next_position: Int[Array, " B"],
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B G T D"]]:
        """Runs prompts and G whole completions of each.

        Returns normalised hidden states of each prompt's last position, and of the completions.

        Raises:
          ValueError: more positions than were learned, as in `extend`.
        """
        if self.config.mrope_section is None:
            positions, next_position = _counted(positions), length
        check_room(self.config, prompts.shape[1] + completions.shape[2])
        prompts, angles = self._placed(prompts, positions)
        after = next_position[:, None, None] + jnp.arange(completions.shape[2])  # the same for all of a group
        completions, completion_angles = self._text_placed(completions, after)
        mask = jnp.arange(prompts.shape[1]) < length[:, None]

        def both(run_prompt, layer: DecoderLayer, x):
            prompts, completions = x
            prompts, shared = run_prompt(layer, prompts, angles)
            attend = functools.partial(attend_group, shared, mask, mesh=self.running.mesh)
            return (prompts, layer.completions(completions, completion_angles, attend)), None

        below = functools.partial(both, functools.partial(DecoderLayer.prompt, mesh=self.running.mesh))
        top = functools.partial(both, functools.partial(DecoderLayer.prompt_end, last=length - 1))
        (prompts, completions), _ = self._run(below, top, (prompts, completions))
        return self.norm(prompts), self.norm(completions)

    def extend(
        self,
        x: Float[Array, "B G T D"],
        prefix: Prefix,
        cache: list[KeyValue],
        step: Int[Array, ""] | int = 0,
        skipped: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "B G T D"], list[KeyValue]]:
        """Runs the tokens at `step` .. `step + T - 1` of G continuations of every prompt.

        Their keys and values are written into the cache, and attention sees the cache up to them. Layers are compiled
        one by one here: a loop over them would copy every layer's weights and prefix at every token.

        `skipped` says how many places at the beginning of each continuation hold nothing: they take no position, and
        nothing sees them.

        Returns normalised hidden states and the updated cache.

        Raises:
          ValueError: prompts and cache have more positions than were learned.
        """
        index = step + jnp.arange(x.shape[2])
        position = prefix.next_position[:, None, None] + index
        keys = jnp.arange(cache[0].keys.shape[3])
        check_room(self.config, prefix.mask.shape[1] + len(keys))
        visible = keys[None, :] <= index[:, None]
        if skipped is not None:
            position = position - skipped[..., None]
            visible = visible & (keys >= skipped[..., None])[:, :, None]
        x, angles = self._text_placed(x, position)
        updated = []
        for layer, prompt, old in zip(self.layers, prefix.layers, cache):

            def attend(q, new: KeyValue, prompt=prompt, old=old):
                updated.append(write_cache(old, new, step))
                return plain_group(prompt, prefix.mask, q, updated[-1], visible)

            x = layer.completions(x, angles, attend)
        return self.norm(x), updated

    def _run(self, below, top, x):
        steps = [below] * (len(self.layers) - 1) + [top]
        return run_layers(self.layers, steps, x, self.running)

    def _placed(self, x: Float[Array, "B P D"], positions: Int[Array, "B 3 P"]) -> tuple[Float[Array, "B P D"], Angles]:
        """Token embeddings with what their positions add to them, and the angles of their rotation."""
        if self.embed_positions is None:
            return x, rotary_angles(positions, self.config)
        check_room(self.config, x.shape[1])
        return x + self.embed_positions(positions[:, 0]), ()

    def _text_placed(
        self, x: Float[Array, "B G T D"], position: Int[Array, "B _ T"]
    ) -> tuple[Float[Array, "B G T D"], Angles]:
        """The same for continuations: text has one number on all three axes."""
        if self.embed_positions is not None:
            return x + self.embed_positions(position), ()
        flat = position.reshape(-1, 1, position.shape[2])
        angles = rotary_angles(jnp.broadcast_to(flat, (len(flat), 3, flat.shape[2])), self.config)
        return x, [a.reshape(*position.shape, a.shape[-1]) for a in angles]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Output logits, accumulated and kept in float32."""
        return self.embed_tokens.attend(hidden) if self.lm_head is None else self.lm_head(hidden)


def make_norm(config: DecoderConfig, dtypes: Dtypes) -> RMSNorm | LayerNorm:
    """The norm of the decoder's layers."""
    norm = LayerNorm if config.has_learned_positions else RMSNorm
    return norm(config.hidden_size, dtypes, config.rms_norm_eps)


def check_room(config: DecoderConfig, length: int) -> None:
    """Raises ValueError where there are more positions than were learned: looking one up would give NaN."""
    if length > (config.max_position_embeddings or length):
        raise ValueError(
            f"{length} positions, padding included, and the decoder has learned {config.max_position_embeddings} "
            "(model.decoder.max_position_embeddings)"
        )


def _counted(positions: Int[Array, "B 3 P"]) -> Int[Array, "B 3 P"]:
    """Positions of tokens one behind the other: with no axes for pictures, these lie in a line as text does."""
    return jnp.broadcast_to(jnp.arange(positions.shape[2]), positions.shape)


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


def write_cache(cache: KeyValue, new: KeyValue, step: Int[Array, ""] | int) -> KeyValue:
    """The cache [B, K, G, S, H] with the keys and values of completions [B, G, T, K, H] written from `step` on."""

    def write(buffer, x):
        return jax.lax.dynamic_update_slice_in_dim(buffer, x.astype(buffer.dtype), step, axis=3)

    return KeyValue(*map(write, cache, new.by_heads()))
