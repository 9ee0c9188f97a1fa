"""HumanOmni (arXiv 2501.15111): video, sound and an instruction in, text out. `load_human_omni` opens a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.batch import PromptBatch
from mecap_jax.models.bert import Bert, load_bert
from mecap_jax.models.checkpoints.hub import load_table
from mecap_jax.models.checkpoints.human_omni import TABLE, TEXT_DIRECTORY, VISION_LAYER, HumanOmniConfig
from mecap_jax.models.checkpoints.safetensors_files import SINGLE, TensorFiles
from mecap_jax.models.decoder import Decoder
from mecap_jax.models.encoders import pictures, whisper
from mecap_jax.models.human_omni_projector import AudioProjector, InstructionGate, VisionProjector
from mecap_jax.models.layers import Dtypes
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.models.stack import Running

# The frozen parts, which stay in float32.
TOWERS = ("vision_tower", "audio_tower", "bert_model")


class HumanOmni(MultimodalLM):
    """The whole network, parts named as published; only media are encoded in another way than in `MultimodalLM`."""

    def __init__(self, config: HumanOmniConfig, rngs: nnx.Rngs):
        dtypes, width = Dtypes(jnp.dtype(config.dtype), jnp.dtype(config.dtype)), config.decoder.hidden_size
        self.config, self.running = config, Running(dtypes.compute)
        self.vision_tower = pictures.PictureEncoder(config.vision, rngs=rngs)
        self.audio_tower = whisper.WhisperEncoder(config.audio, rngs=rngs)
        self.bert_model = Bert(config.text, rngs=rngs)
        self.bert_gate = InstructionGate(config.text.hidden_size, dtypes, rngs)
        self.mm_projector = VisionProjector(config.vision.block.width, width, dtypes, rngs)
        self.audio_projector = AudioProjector(config.audio.block.width, width, dtypes, rngs)
        self.language_model = Decoder(config.decoder, dtypes, rngs, self.running)

    def encode_media(self, prompt: PromptBatch) -> Float[Array, "B M D"]:
        """Encodes sound, then pictures, into one table a row.

        `audio` are windows of 30 s, silence at their end included, with a token for every 60 ms; `patches` are float32
        [B, frames, patches, 1, values] as SigLIP takes them, in raster order, with a token for every 2 x 2.
        """
        tables = []
        if prompt.audio.shape[1]:
            batch, windows, length, bands = prompt.audio.shape
            states = self.audio_tower(prompt.audio.reshape(-1, length, bands), prompt.audio_frames.reshape(-1))[-1]
            tables.append(self.audio_projector(states).reshape(batch, -1, self.config.decoder.hidden_size))
        if prompt.patches.shape[1]:
            weights = self.branch_weights(prompt.instruction, prompt.instruction_length)
            batch, frames, patches, _, values = prompt.patches.shape
            states = self.vision_tower.encode(prompt.patches.reshape(-1, patches, values))[0][VISION_LAYER]
            tables.append(self.mm_projector(states.reshape(batch, frames, patches, -1), weights))
        if not tables:
            return jnp.zeros((len(prompt.tokens), 0, self.config.decoder.hidden_size), self.config.dtype)
        return jnp.concatenate(tables, axis=1)

    def branch_weights(self, instruction: Int[Array, "B L"], length: Int[Array, " B"]) -> Float[Array, "B 3"]:
        """What an instruction, "[CLS]" first, makes of the projector's branches; see `InstructionGate`."""
        place = jnp.arange(instruction.shape[1])
        segments = (place < length[:, None]).astype(jnp.int32)
        positions = jnp.minimum(place, length[:, None] - 1)  # what is filled up may reach beyond the last position
        return self.bert_gate(self.bert_model(instruction, positions, segments)[:, 0])


def load_human_omni(directory: Path, config: HumanOmniConfig) -> tuple[nnx.GraphDef, Any]:
    """The network that `read_human_omni` found in a directory: its definition, and a nested dict of parameters.

    Raises:
      CheckpointError: unknown or missing tensors, wrong shapes or dtypes, truncated files: of each of the four models,
        one error lists them all.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: HumanOmni(config, nnx.Rngs(0))))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
    own = {name: shape for name, shape in shapes.items() if name not in TOWERS}
    params = load_table(directory, TABLE, config.decoder.tie_word_embeddings, own)
    vision, audio = directory / config.vision_directory, directory / config.audio_directory
    towers = (
        pictures.load(vision, TensorFiles(vision), config.vision),
        whisper.load(audio, TensorFiles(audio), config.audio),
        load_bert(directory / TEXT_DIRECTORY / SINGLE, config.text),
    )
    frozen = {name: nnx.to_pure_dict(nnx.state(tower)) for name, tower in zip(TOWERS, towers)}
    return graphdef, params | jax.device_put(frozen)
