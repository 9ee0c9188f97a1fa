"""wav2vec 2.0 (Baevski et al., arXiv 2006.11477) and HuBERT (Hsu et al., arXiv 2106.07447): samples to a state every
20 ms.

A row that is padded gives what it would give alone: norms over time, convolutions and attention see valid samples only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.models.checkpoints.table import MOST_LAYERS, TensorRule
from mecap_jax.models.encoders.blocks import (
    Block,
    BlockConfig,
    block_rules,
    every_state,
    layer_norm,
    linear_rules,
    norm_rules,
    read_block,
    read_fields,
    valid_positions,
)
from mecap_jax.models.layers import gelu

# Heads and what serves pre-training only.
IGNORED = (
    r"(.*\.)?masked_spec_embed", r"lm_head\..*", r"quantizer\..*", r"project_(q|hid)\..*", r"projector\..*",
    r"classifier\..*", r"layer_weights",
)  # fmt: skip
_NORM_EPSILON = 1e-5  # of the norms between convolutions
STRIDE = 320  # samples between two states of every published encoder of the kind
_MOST_SAMPLES = 16_000  # that a state may look at; published ones look at 400


@dataclasses.dataclass(frozen=True)
class WaveformConfig:
    """Shape of the encoder.

    Attributes:
      widths, kernels, strides: of the convolutions over samples.
      conv_bias: whether these have biases.
      norm_all: a layer norm behind each of them; else one norm over time behind the first.
      position_kernel, position_groups: of the convolution that tells positions.
      project_norm: whether a norm stands before the projection to the transformer's width.
      layers, block: the transformer.
    """

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    conv_bias: bool
    norm_all: bool
    position_kernel: int
    position_groups: int
    project_norm: bool
    layers: int
    block: BlockConfig

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> WaveformConfig:
        """Reads the content of a `config.json`.

        Raises:
          ValueError: names what is missing, ill-formed or not implemented.
        """
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        positions = {"num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
        implemented = {"feat_extract_activation": "gelu", "conv_pos_batch_norm": False}
        implemented |= {"add_adapter": False, "adapter_attn_dim": None}
        found = read_fields(config, dict.fromkeys(names) | positions, implemented)
        width, layers, heads, hidden, kernel, groups = found.values()
        if width % groups:
            raise ValueError(f"hidden_size {width} is no multiple of num_conv_pos_embedding_groups {groups}")
        lists = [config.get(name) for name in ("conv_dim", "conv_kernel", "conv_stride")]
        if not all(isinstance(x, list) and x and all(type(n) is int and 0 < n < 2**16 for n in x) for x in lists):
            raise ValueError(f"conv_dim, conv_kernel and conv_stride must be lists of positive integers, got {lists}")
        if len(lists[0]) > MOST_LAYERS:
            raise ValueError(f"conv_dim has {len(lists[0])} convolutions, which is out of range")
        if len({len(x) for x in lists}) > 1:
            raise ValueError(f"conv_dim, conv_kernel and conv_stride must be of one length, got {lists}")
        if math.prod(lists[2]) != STRIDE:
            raise ValueError(f"conv_stride {lists[2]} is not implemented, only a state every {STRIDE} samples is")
        norm = config.get("feat_extract_norm", "group")
        if norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm {norm!r:.40} is neither 'group' nor 'layer'")
        switches = {"conv_bias": False, "do_stable_layer_norm": False, "feat_proj_layer_norm": True}
        switches = {name: config.get(name, default) for name, default in switches.items()}
        if wrong := [name for name, value in switches.items() if type(value) is not bool]:
            raise ValueError(f"{wrong[0]} must be true or false, got {config[wrong[0]]!r:.40}")
        first, eps = switches["do_stable_layer_norm"], config.get("layer_norm_eps", 1e-5)
        block = read_block(config, width, heads, hidden, config.get("hidden_act", "gelu"), eps, norm_first=first)
        widths, kernels, strides = map(tuple, lists)
        projected = switches["feat_proj_layer_norm"]
        bias = switches["conv_bias"]
        read = cls(widths, kernels, strides, bias, norm == "layer", kernel, groups, projected, layers, block)
        if read.shortest > _MOST_SAMPLES:
            raise ValueError(f"conv_kernel {lists[1]} needs {read.shortest} samples for a state, which is out of range")
        return read

    def state_count(self, samples: Any) -> Any:
        """How many states so many samples make."""
        for kernel, stride in zip(self.kernels, self.strides):
            samples = (samples - kernel) // stride + 1
        return samples

    @property
    def shortest(self) -> int:
        """Samples that make one state."""
        needed = 1
        for kernel, stride in zip(self.kernels[::-1], self.strides[::-1]):
            needed = (needed - 1) * stride + kernel
        return needed


class WaveformEncoder(nnx.Module):
    """Samples at 16 kHz in, hidden states out."""

    def __init__(self, config: WaveformConfig, *, rngs: nnx.Rngs):
        widths, width = (1, *config.widths), config.block.width
        self.config = config
        self.convolutions = nnx.List(
            nnx.Conv(*pair, (kernel,), strides=stride, padding="VALID", use_bias=config.conv_bias, rngs=rngs)
            for *pair, kernel, stride in zip(widths, widths[1:], config.kernels, config.strides)
        )
        normed = config.widths if config.norm_all else config.widths[:1]
        self.norms = nnx.List(layer_norm(size, _NORM_EPSILON, rngs) for size in normed)
        last = config.widths[-1]
        self.project_norm = layer_norm(last, config.block.epsilon, rngs) if config.project_norm else None
        self.project = nnx.Linear(last, width, rngs=rngs)
        self.positions = PositionConvolution(config)
        self.norm = layer_norm(width, config.block.epsilon, rngs)
        self.blocks = nnx.List(Block(config.block, rngs=rngs) for _ in range(config.layers))

    def __call__(self, samples: Float[Array, "B S"], lengths: Int[Array, " B"]) -> list[Float[Array, "B T D"]]:
        """Returns the input of each layer and the output of the last one.

        Args:
          samples: padded at the end.
          lengths: valid samples of each row, at least `WaveformConfig.shortest`.
        """
        config, x, count = self.config, samples[..., None], lengths
        for i, convolution in enumerate(self.convolutions):
            x = convolution(x)
            count = (count - config.kernels[i]) // config.strides[i] + 1
            if config.norm_all:
                x = self.norms[i](x)
            elif i == 0:
                x = _norm_over_time(x, valid_positions(count, x.shape[1]), self.norms[0])
            x = gelu(x)
        x = self.project(x if self.project_norm is None else self.project_norm(x))
        mask = valid_positions(count, x.shape[1])
        x = jnp.where(mask[..., None], x, 0)
        x = x + self.positions(x)
        if config.block.norm_first:
            return every_state(self.blocks, x, mask, self.norm)
        return every_state(self.blocks, self.norm(x), mask, lambda last: last)


class PositionConvolution(nnx.Module):
    """A grouped convolution whose kernel is a direction times a length for each of its taps (arXiv 1602.07868)."""

    def __init__(self, config: WaveformConfig):
        width, self.groups = config.block.width, config.position_groups
        self.gain = nnx.Param(jnp.zeros((1, 1, config.position_kernel)))
        self.direction = nnx.Param(jnp.zeros((width, width // self.groups, config.position_kernel)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        direction = self.direction[...]
        kernel = self.gain[...] * direction / jnp.sqrt(jnp.square(direction).sum(axis=(0, 1), keepdims=True))
        reach = kernel.shape[-1] // 2
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(reach, kernel.shape[-1] - 1 - reach)],
            dimension_numbers=("NWC", "OIW", "NWC"),
            feature_group_count=self.groups,
        )
        return gelu(y + self.bias[...])


def _norm_over_time(x: Float[Array, "B T D"], mask: Bool[Array, "B T"], norm: nnx.LayerNorm) -> Float[Array, "B T D"]:
    """Normalises each channel over a row's valid positions, with the scale and bias of `norm`."""
    weights = (mask / mask.sum(axis=1, keepdims=True))[..., None]
    centred = x - (weights * x).sum(axis=1, keepdims=True)
    variance = (weights * jnp.square(centred)).sum(axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + _NORM_EPSILON) * norm.scale[...] + norm.bias[...]


def rules(config: WaveformConfig, prefix: str) -> list[TensorRule]:
    """The table of an encoder whose published names begin with `prefix`."""
    convolution, position = f"{prefix}feature_extractor.conv_layers.{{i}}.", f"{prefix}encoder.pos_conv_embed.conv."
    project = f"{prefix}feature_projection."
    return [
        TensorRule(f"{convolution}conv.weight", "convolutions.{i}.kernel", "convolution"),
        *([TensorRule(f"{convolution}conv.bias", "convolutions.{i}.bias")] if config.conv_bias else []),
        *norm_rules(f"{convolution}layer_norm", "norms.{i}"),
        *(norm_rules(f"{project}layer_norm", "project_norm") if config.project_norm else []),
        *linear_rules(f"{project}projection", "project"),
        TensorRule(f"{position}bias", "positions.bias"),
        TensorRule(f"{position}weight_g", "positions.gain"),
        TensorRule(f"{position}weight_v", "positions.direction"),
        *norm_rules(f"{prefix}encoder.layer_norm", "norm"),
        *block_rules(
            f"{prefix}encoder.",
            "attention",
            ("layer_norm", "final_layer_norm"),
            ("feed_forward.intermediate_dense", "feed_forward.output_dense"),
            key_bias=True,
        ),
    ]


def published_name(key: str) -> str:
    """The older name of a tensor that newer versions of PyTorch publish under another one."""
    return key.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )
