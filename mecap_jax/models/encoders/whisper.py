"""Whisper's encoder (Radford et al., arXiv 2212.04356): windows of 30 s of log-mel frames to a state every 20 ms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.models.bert import fill_network
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.checkpoints.table import TensorRule
from mecap_jax.models.encoders.blocks import (
    Block,
    BlockConfig,
    block_rules,
    every_state,
    layer_norm,
    norm_rules,
    read_block,
    read_fields,
)
from mecap_jax.models.layers import gelu

POSITIONS = 1500  # states of a window of 30 s
IGNORED = (r"(model\.)?decoder\..*", r"proj_out\.weight")


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Shape of the encoder: mel bands, states a window, layers."""

    bands: int
    positions: int
    layers: int
    block: BlockConfig

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> WhisperConfig:
        """Reads the content of a `config.json`.

        Raises:
          ValueError: names what is missing, ill-formed or not implemented.
        """
        names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
        sizes = dict.fromkeys(names) | {"max_source_positions": 1500}
        found = read_fields(config, sizes, {"activation_function": "gelu", "scale_embedding": False})
        width, layers, heads, hidden, bands, positions = found.values()
        if positions != POSITIONS:
            raise ValueError(f"max_source_positions {positions} is not implemented, only {POSITIONS} is")
        return cls(bands, positions, layers, read_block(config, width, heads, hidden, "gelu", 1e-5, key_bias=False))


class WhisperEncoder(nnx.Module):
    """Log-mel windows in, hidden states out."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        width = config.block.width
        self.conv1 = nnx.Conv(config.bands, width, (3,), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3,), strides=2, padding=1, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((config.positions, width)))
        self.blocks = nnx.List(Block(config.block, rngs=rngs) for _ in range(config.layers))
        self.norm = layer_norm(width, config.block.epsilon, rngs)

    def __call__(self, mel: Float[Array, "B F M"], lengths: Int[Array, " B"]) -> list[Float[Array, "B T D"]]:
        """Returns the input of each layer and the normalised output of the last one, of every window.

        As trained, attention sees the silence that fills a window up: `lengths` changes nothing here.
        """
        x = gelu(self.conv2(gelu(self.conv1(mel))))
        x = x + self.positions[...]
        return every_state(self.blocks, x, jnp.ones(x.shape[:2], bool), self.norm)


def load(directory: Path, tensors: TensorFiles, config: WhisperConfig) -> WhisperEncoder:
    """Fills an encoder with the tensors of a directory. Raises `CheckpointError` where they do not fit."""
    prefix = next((p for p in ("model.encoder.", "encoder.") if f"{p}conv1.weight" in tensors), "")
    return fill_network(lambda: WhisperEncoder(config, rngs=nnx.Rngs(0)), tensors, rules(prefix), IGNORED, directory)


def rules(prefix: str) -> list[TensorRule]:
    """The table of an encoder whose published names begin with `prefix`."""
    return [
        *(TensorRule(f"{prefix}conv{n}.weight", f"conv{n}.kernel", "convolution") for n in (1, 2)),
        *(TensorRule(f"{prefix}conv{n}.bias", f"conv{n}.bias") for n in (1, 2)),
        TensorRule(f"{prefix}embed_positions.weight", "positions"),
        *block_rules(prefix, "self_attn", ("self_attn_layer_norm", "final_layer_norm"), ("fc1", "fc2"), key_bias=False),
        *norm_rules(f"{prefix}layer_norm", "norm"),
    ]


def state_count(frames: jax.Array | int) -> jax.Array | int:
    """How many states so many mel frames make."""
    return (frames + 1) // 2
