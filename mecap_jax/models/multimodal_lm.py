"""The whole network: towers turn media into tokens of the decoder's width, the decoder turns tokens into text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.batch import RAW_MEDIA, PromptBatch
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.audio_tower import AudioTower
from mecap_jax.models.decoder import Decoder, Prefix
from mecap_jax.models.encoder_decoder import EncoderDecoder
from mecap_jax.models.feature_projector import FeatureProjector
from mecap_jax.models.layers import Dtypes
from mecap_jax.models.lora import add_adapters
from mecap_jax.models.stack import Running
from mecap_jax.models.vision_tower import VisionTower

# Which of the network's parts encodes a modality.
TOWERS = {"audio": "audio_tower", "video": "visual"}


class MultimodalLM(nnx.Module):
    """Qwen2.5-Omni's thinker, or the part of it that the configuration names; or another text model in its decoder's
    place."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, row_sharding: jax.sharding.NamedSharding | None = None):
        """`row_sharding` divides the rows of activations over a mesh; None on the default device.

        Raises:
          ConfigError: a target of `config.lora` matches no projection.
        """
        dtypes = Dtypes(jnp.dtype(config.param_dtype), jnp.dtype(config.dtype))
        width = config.decoder.hidden_size
        remat = config.remat_keeps if config.remat else None
        self.config, self.running = config, Running(dtypes.compute, remat, config.unroll, row_sharding)
        parts = width, dtypes, rngs, self.running
        self.audio_tower = AudioTower(config.audio, *parts) if config.audio else None
        self.visual = VisionTower(config.vision, *parts) if config.vision else None
        self.feature_projector = FeatureProjector(config.features, width, dtypes, rngs) if config.features else None
        text = EncoderDecoder if config.decoder.encoder else Decoder
        self.language_model = text(config.decoder, dtypes, rngs, self.running)
        if config.lora:
            add_adapters(self, config.lora, rngs)

    def forward_only(self) -> MultimodalLM:
        """Itself, for a program that takes no gradient: its layers run one by one.

        A loop would first copy the weights of all of them, and compiles a forward pass hardly faster.
        """
        for part in (self, *(getattr(self, name, None) for name in (*TOWERS.values(), "language_model"))):
            if running := getattr(part, "running", None):  # a family's own towers may have no loops
                part.running = dataclasses.replace(running, unroll=True)
        return self

    def encode_media(self, prompt: PromptBatch) -> Float[Array, "B M D"]:
        """Encodes all media of a batch into one table a row (see `PromptBatch`); parts of size zero cost nothing."""
        tables = []
        if prompt.audio.shape[1]:
            tables.append(self.audio_tower(prompt.audio, prompt.audio_frames))
        if prompt.patches.shape[1]:
            tables.append(self.visual(prompt.patches, prompt.cell_positions, prompt.windows))
        if prompt.media_tokens.shape[1]:
            tables.append(from_raw(prompt.media_tokens))
        if prompt.features.shape[1]:
            tables.append(self.feature_projector(prompt.features))
        if not tables:
            return jnp.zeros((prompt.tokens.shape[0], 0, self.config.decoder.hidden_size), self.config.dtype)
        return jnp.concatenate(tables, axis=1)

    def with_encoded_media(self, prompt: PromptBatch) -> PromptBatch:
        """The prompts with `media_tokens` in place of sound and video, for programs that are to read them again."""
        media = self.encode_media(prompt._replace(features=prompt.features[:, :0]))
        return prompt.without(RAW_MEDIA)._replace(media_tokens=to_raw(media))

    def embed_tokens(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Token embeddings; from here on it is rows that are divided over a mesh, and weights are gathered."""
        return self.running.by_rows(self.language_model.embed_tokens(tokens))

    def embed_prompt(self, prompt: PromptBatch) -> Float[Array, "B P D"]:
        """Token embeddings with every placeholder replaced by its media token."""
        text = self.embed_tokens(prompt.tokens)
        media = self.prompt_media(prompt)
        return jnp.where(prompt.media_index[..., None] >= 0, media.astype(text.dtype), text)

    def prompt_media(self, prompt: PromptBatch) -> Float[Array, "B P D"]:
        """The media token of every prompt position; without meaning where the position is text."""
        media = self.encode_media(prompt)
        if not media.shape[1]:
            return jnp.zeros((*prompt.tokens.shape, media.shape[-1]), media.dtype)
        return jnp.take_along_axis(media, jnp.maximum(prompt.media_index, 0)[..., None], axis=1)

    def prefill(self, prompt: PromptBatch) -> tuple[Float[Array, "B D"], Prefix]:
        """Runs the prompts once; returns the hidden state that predicts the first completion token, and the prefix."""
        mask = jnp.arange(prompt.tokens.shape[1]) < prompt.length[:, None]
        last, prefix = self.language_model.prefill(
            self.embed_prompt(prompt), prompt.positions, mask, prompt.next_position, prompt.length - 1
        )
        return last[:, 0], prefix

    def completion_states(self, prompt: PromptBatch, tokens: Int[Array, "B G T"]) -> Float[Array, "B G T D"]:
        """Hidden states that predict each token of G completions a prompt, which is run once for all of them.

        State t predicts token t: state 0 is the prompt's last, state t > 0 that of token t - 1.
        """
        batch, group, length = tokens.shape
        if length == 1:
            last, _ = self.prefill(prompt)
            return jnp.broadcast_to(last[:, None, None, :], (batch, group, 1, last.shape[-1]))
        before = self.embed_tokens(tokens[..., :-1])
        last, completions = self.language_model.run_groups(
            self.embed_prompt(prompt), before, prompt.positions, prompt.length, prompt.next_position
        )
        first = jnp.broadcast_to(last[:, None], (batch, group, 1, last.shape[-1]))
        return jnp.concatenate([first, completions], axis=2)


def to_raw(tokens: Float[Array, "*batch D"]) -> Array:
    """Media tokens as the host keeps them: bfloat16 as the same bits in uint16, float32 as it is."""
    return jax.lax.bitcast_convert_type(tokens, jnp.uint16) if tokens.dtype == jnp.bfloat16 else tokens


def from_raw(tokens: Array) -> Float[Array, "*batch D"]:
    """What `to_raw` was given."""
    return jax.lax.bitcast_convert_type(tokens, jnp.bfloat16) if tokens.dtype == jnp.uint16 else tokens
