"""BART (arXiv 1910.13461): an encoder reads the prompt, and a decoder writes the completions beside what it says.

`EncoderDecoder` answers as `decoder.Decoder` does. What the completions of a group share are keys and values of the
encoder's states, and of the tokens that the decoder begins with: both are computed once for the group.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.model_config import DecoderConfig
from mecap_jax.models.attention import KeyValue, attend_group, attend_prompt, attend_seen, plain_group
from mecap_jax.models.decoder import Attention, Prefix, check_room, make_norm, write_cache
from mecap_jax.models.layers import Dtypes, Embedding, Mlp, gelu
from mecap_jax.models.stack import Running, run_layers

OFFSET = 2  # rows at the beginning of the published tables of positions that nothing looks up


class SharedLayer(NamedTuple):
    """What the completions of a group share in a layer of the decoder.

    Attributes:
      keys, values: of the tokens that the decoder begins with, by heads [B, K, S, H].
      prompt: of the encoder's states, by heads [B, K, P, H].
    """

    keys: Array
    values: Array
    prompt: KeyValue


class EncoderLayer(nnx.Module):
    """Attention of all positions to all, and an MLP, each with a norm behind its residual."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        self.self_attn = Attention(config, dtypes, rngs)
        self.self_attn_layer_norm = make_norm(config, dtypes)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, gelu, dtypes, rngs)
        self.final_layer_norm = make_norm(config, dtypes)

    def __call__(self, x: Float[Array, "B P D"], seen: Bool[Array, "B P"]) -> Float[Array, "B P D"]:
        attended = attend_seen(self.self_attn.queries(x), self.self_attn.keys_values(x).by_heads(), seen)
        x = self.self_attn_layer_norm(x + self.self_attn.output(attended))
        return self.final_layer_norm(x + self.mlp(x))


class Encoder(nnx.Module):
    """The stack that reads prompts."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        shape = config.encoder
        layer = dataclasses.replace(
            config,
            intermediate_size=shape.intermediate_size,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_attention_heads,
            head_dim=config.hidden_size // shape.num_attention_heads,
        )
        self.embed_positions = Embedding(config.max_position_embeddings + OFFSET, config.hidden_size, dtypes, rngs)
        self.layernorm_embedding = make_norm(config, dtypes)
        self.layers = nnx.List([EncoderLayer(layer, dtypes, rngs) for _ in range(shape.num_hidden_layers)])

    def __call__(self, x: Float[Array, "B P D"], seen: Bool[Array, "B P"], running: Running) -> Float[Array, "B P D"]:
        """States of the prompts' embeddings; positions that are not `seen` hold nothing."""

        def step(layer: EncoderLayer, x):
            return layer(x, seen), None

        return run_layers(self.layers, [step] * len(self.layers), _placed(self, x, 0), running)[0]


class CrossLayer(nnx.Module):
    """A decoder's layer: attention to its own past, to the encoder's states, and an MLP, norms behind residuals."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        self.self_attn = Attention(config, dtypes, rngs)
        self.self_attn_layer_norm = make_norm(config, dtypes)
        self.encoder_attn = Attention(config, dtypes, rngs)
        self.encoder_attn_layer_norm = make_norm(config, dtypes)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size, gelu, dtypes, rngs)
        self.final_layer_norm = make_norm(config, dtypes)

    def read(self, states: Float[Array, "B P D"]) -> KeyValue:
        """Keys and values of the encoder's states, by heads."""
        return self.encoder_attn.keys_values(states).by_heads()

    def start(
        self, x: Float[Array, "B S D"], prompt: KeyValue, seen: Bool[Array, "B P"], mesh: Mesh | None
    ) -> tuple[Float[Array, "B S D"], KeyValue]:
        """The tokens that the decoder begins with, and their keys and values."""
        own = self.self_attn.keys_values(x)
        return self._behind(x, attend_prompt(self.self_attn.queries(x), *own, mesh), prompt, seen), own

    def completions(
        self, x: Float[Array, "B G T D"], prompt: KeyValue, seen: Bool[Array, "B P"], attend
    ) -> Float[Array, "B G T D"]:
        """What follows them; `attend` takes queries, keys and values of the decoder's own attention."""
        attended = attend(self.self_attn.queries(x), self.self_attn.keys_values(x))
        return self._behind(x, attended, prompt, seen)

    def _behind(self, x, attended, prompt: KeyValue, seen: Bool[Array, "B P"]):
        x = self.self_attn_layer_norm(x + self.self_attn.output(attended))
        q = self.encoder_attn.queries(x)
        attended = attend_seen(q.reshape(len(q), -1, *q.shape[-2:]), prompt, seen).reshape(q.shape)
        x = self.encoder_attn_layer_norm(x + self.encoder_attn.output(attended))
        return self.final_layer_norm(x + self.mlp(x))


class EncoderDecoder(nnx.Module):
    """Both stacks with their common token embeddings, which are the output weights, too."""

    def __init__(self, config: DecoderConfig, dtypes: Dtypes, rngs: nnx.Rngs, running: Running):
        self.config, self.running = config, running
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtypes, rngs)
        self.encoder = Encoder(config, dtypes, rngs)
        self.embed_positions = Embedding(config.max_position_embeddings + OFFSET, config.hidden_size, dtypes, rngs)
        self.layernorm_embedding = make_norm(config, dtypes)
        self.layers = nnx.List([CrossLayer(config, dtypes, rngs) for _ in range(config.num_hidden_layers)])
        self.final_logits_bias = nnx.Param(jnp.zeros((config.vocab_size,), dtypes.param), logical_axes=("vocab",))

    def prefill(
        self,
        x: Float[Array, "B P D"],
        positions: Int[Array, "B 3 P"],
        mask: Bool[Array, "B P"],
        next_position: Int[Array, " B"],
        last: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B 1 D"], Prefix]:
        """Encodes the prompts; returns the states behind the tokens that the decoder begins with, and the prefix.

        Positions count tokens, and of a prompt nothing but the prefix is given: `positions`, `next_position` and `last`
        are what `Decoder.prefill` is told.
        """
        states = self._encode(x, mask)

        def step(layer: CrossLayer, x):
            prompt = layer.read(states)
            x, own = layer.start(x, prompt, mask, self.running.mesh)
            return x, SharedLayer(*own.by_heads(), prompt)

        x, layers = run_layers(self.layers, [step] * len(self.layers), self._start(len(x)), self.running)
        return x[:, -1:], Prefix(layers, mask, jnp.full(len(x), x.shape[1]))

    def run_groups(
        self,
        prompts: Float[Array, "B P D"],
        completions: Float[Array, "B G T D"],
        positions: Int[Array, "B 3 P"],
        length: Int[Array, " B"],
        next_position: Int[Array, " B"],
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B G T D"]]:
        """As `Decoder.run_groups`: states before the first token of the completions, and of the completions."""
        mask = jnp.arange(prompts.shape[1]) < length[:, None]
        states, start = self._encode(prompts, mask), self._start(len(prompts))
        check_room(self.config, start.shape[1] + completions.shape[2])
        begun = jnp.ones(start.shape[:2], bool)

        def step(layer: CrossLayer, x):
            start, completions = x
            prompt = layer.read(states)
            start, own = layer.start(start, prompt, mask, self.running.mesh)
            attend = functools.partial(attend_group, own, begun, mesh=self.running.mesh)
            return (start, layer.completions(completions, prompt, mask, attend)), None

        x = start, _placed(self, completions, start.shape[1])
        (start, completions), _ = run_layers(self.layers, [step] * len(self.layers), x, self.running)
        return start[:, -1:], completions

    def extend(
        self,
        x: Float[Array, "B G T D"],
        prefix: Prefix,
        cache: list[KeyValue],
        step: Int[Array, ""] | int = 0,
        skipped: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "B G T D"], list[KeyValue]]:
        """As `Decoder.extend`.

        Raises:
          ValueError: more positions than were learned, or the ends of prompts, which the encoder would have to read.
        """
        if skipped is not None:
            raise ValueError("an encoder reads whole prompts: their ends cannot differ within a group")
        index, keys = step + jnp.arange(x.shape[2]), jnp.arange(cache[0].keys.shape[3])
        start = prefix.layers[0].keys.shape[2]
        check_room(self.config, start + len(keys))
        begun, visible = jnp.ones((len(x), start), bool), keys[None, :] <= index[:, None]
        x = _placed(self, x, start + step)
        updated = []
        for layer, shared, old in zip(self.layers, prefix.layers, cache):

            def attend(q, new: KeyValue, shared=shared, old=old):
                updated.append(write_cache(old, new, step))
                return plain_group(KeyValue(shared.keys, shared.values), begun, q, updated[-1], visible)

            x = layer.completions(x, shared.prompt, prefix.mask, attend)
        return x, updated

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Output logits, accumulated and kept in float32; their bias came with the files, and nothing trains it."""
        bias = self.final_logits_bias[...].astype(jnp.float32)
        return self.embed_tokens.attend(hidden) + jax.lax.stop_gradient(bias)

    def _encode(self, x: Float[Array, "B P D"], mask: Bool[Array, "B P"]) -> Float[Array, "B P D"]:
        check_room(self.config, x.shape[1])
        return self.encoder(x, mask, self.running)

    def _start(self, batch: int) -> Float[Array, "B S D"]:
        ids = jnp.array(self.config.encoder.start_ids)
        return self.running.by_rows(_placed(self, self.embed_tokens(jnp.broadcast_to(ids, (batch, len(ids)))), 0))


def _placed(
    part: Encoder | EncoderDecoder, x: Float[Array, "*batch T D"], first: Int[Array, ""] | int
) -> Float[Array, "*batch T D"]:
    """Embeddings with their positions, counted from `first`."""
    return part.layernorm_embedding(x + part.embed_positions(OFFSET + first + jnp.arange(x.shape[-2])))
