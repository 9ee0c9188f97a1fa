"""HumanOmni (arXiv 2501.15111): video, sound and an instruction in, text out. `load_human_omni` opens a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.models.bert import Bert, load_bert
from mecap_jax.models.checkpoints.hub import load_table
from mecap_jax.models.checkpoints.human_omni import TABLE, TEXT_DIRECTORY, VISION_LAYER, HumanOmniConfig
from mecap_jax.models.checkpoints.safetensors_files import SINGLE, TensorFiles
from mecap_jax.models.decoder import Decoder
from mecap_jax.models.encoders import pictures, whisper
from mecap_jax.models.human_omni_projector import AudioProjector, InstructionGate, VisionProjector
from mecap_jax.models.layers import Dtypes

# The frozen parts, which stay in float32.
TOWERS = ("vision_tower", "audio_tower", "bert_model")


class HumanOmni(nnx.Module):
    """The whole network; its parts have the names of the published one."""

    def __init__(self, config: HumanOmniConfig, rngs: nnx.Rngs, dtype: str = "float32"):
        """`dtype` is that of matrix products outside of the towers."""
        dtypes, width = Dtypes(jnp.dtype(config.param_dtype), jnp.dtype(dtype)), config.decoder.hidden_size
        self.config = config
        self.vision_tower = pictures.PictureEncoder(config.vision, rngs=rngs)
        self.audio_tower = whisper.WhisperEncoder(config.audio, rngs=rngs)
        self.bert_model = Bert(config.text, rngs=rngs)
        self.bert_gate = InstructionGate(config.text.hidden_size, dtypes, rngs)
        self.mm_projector = VisionProjector(config.vision.block.width, width, dtypes, rngs)
        self.audio_projector = AudioProjector(config.audio.block.width, width, dtypes, rngs)
        self.language_model = Decoder(config.decoder, dtypes, rngs)

    def encode_video(
        self,
        frames: Float[Array, "B T H W 3"],
        instruction: Int[Array, "B L"],
        instruction_length: Int[Array, " B"],
    ) -> Float[Array, "B tokens D"]:
        """Returns a token for every 2 x 2 patches, frame by frame.

        Args:
          frames: normalised as SigLIP's preprocessor says.
          instruction: BERT's tokens of what is asked about the video, "[CLS]" first, padded at the end.
          instruction_length: how many of them count.
        """
        flat = frames.reshape(-1, *frames.shape[2:])
        states = self.vision_tower(flat)[0][VISION_LAYER]
        states = states.reshape(*frames.shape[:2], *states.shape[1:])
        length = instruction.shape[1]
        valid = jnp.arange(length) < instruction_length[:, None]
        positions = jnp.broadcast_to(jnp.arange(length), instruction.shape)
        first = self.bert_model(instruction, positions, valid.astype(jnp.int32))[:, 0]
        return self.mm_projector(states, self.bert_gate(first))

    def encode_audio(self, mel: Float[Array, "B F M"]) -> Float[Array, "B tokens D"]:
        """Returns a token for every 60 ms of a window of 30 s of log-mel frames, silence at its end included."""
        lengths = jnp.full(len(mel), mel.shape[1])
        return self.audio_projector(self.audio_tower(mel, lengths)[-1])

    def logits(
        self,
        tokens: Int[Array, "B P"],
        length: Int[Array, " B"],
        media_index: Int[Array, "B P"],
        media: Float[Array, "B M D"],
    ) -> Float[Array, "B P V"]:
        """Returns the logits at every position.

        Args:
          tokens, length, media_index: as in `PromptBatch`.
          media: table of tokens a row, what `encode_video` and `encode_audio` gave in any order.
        """
        text = self.language_model.embed_tokens(tokens)
        seen = jnp.take_along_axis(media, jnp.maximum(media_index, 0)[..., None], axis=1)
        x = jnp.where(media_index[..., None] >= 0, seen.astype(text.dtype), text)
        place = jnp.arange(tokens.shape[1])
        positions = jnp.broadcast_to(place, (len(tokens), 3, len(place)))
        return self.language_model.logits(self.language_model.prefill(x, positions, place < length[:, None], length)[0])


def load_human_omni(directory: Path, config: HumanOmniConfig, dtype: str = "float32") -> tuple[nnx.GraphDef, Any]:
    """The network that `read_human_omni` found in a directory: its definition, and a nested dict of parameters.

    Raises:
      CheckpointError: unknown or missing tensors, wrong shapes or dtypes, truncated files: of each of the four models,
        one error lists them all.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: HumanOmni(config, nnx.Rngs(0), dtype)))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
    own = {name: shape for name, shape in shapes.items() if name not in TOWERS}
    params = load_table(directory, TABLE, config.decoder.tie_word_embeddings, own)
    vision, audio = directory / config.vision_directory, directory / config.audio_directory
    towers = (
        pictures.load(vision, TensorFiles(vision), config.vision),
        whisper.load(audio, TensorFiles(audio), config.audio),
        load_bert(directory / TEXT_DIRECTORY / SINGLE, config.text),
    )
    return graphdef, params | {name: nnx.to_pure_dict(nnx.state(tower)) for name, tower in zip(TOWERS, towers)}
