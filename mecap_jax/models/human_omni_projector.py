"""HumanOmni's way from tower states to decoder tokens (arXiv 2501.15111): three branches of sight, one of sound.

The states of a video's frames pass two convolutional branches ("video", which is for interaction, and "body") and an
MLP ("face"), each of which gives a token for every 2 x 2 patches; the instruction decides how the three are weighted.
The states of sound are averaged by threes and pass an MLP. Sizes are those of HumanOmni-0.5B, the base of R1-Omni
(arXiv 2503.05379) and ERV (arXiv 2510.23506), as R1-Omni's code runs it: `mm_projector_type` "all_in_one_small", and
all tokens of every frame.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mecap_jax.models.layers import Dtypes, LayerNorm, Linear, gelu

STAGE_DEPTH = 2
GATE_WIDTH = 3584
# In the order of the gate's weights.
BRANCHES = ("video", "body", "face")
AUDIO_POOL = 3


class Mlp(nnx.Module):
    """Two linear layers around a GELU."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.fc1 = Linear(in_dim, hidden, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.fc2 = Linear(hidden, out_dim, ("mlp", "embed"), dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return self.fc2(gelu(self.fc1(x)))


class Convolution(nnx.Module):
    """A convolution over space, or time and space; the kernel is stored as [*width, in / groups, out]."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtypes: Dtypes,
        rngs: nnx.Rngs,
        *,
        strides: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        groups: int = 1,
        bias: bool = False,
    ):
        init = jax.nn.initializers.lecun_normal(in_axis=tuple(range(len(shape) - 1)), out_axis=-1)
        axes = (*(None,) * (len(shape) - 1), "embed")
        self.kernel = nnx.Param(init(rngs.params(), shape, dtypes.param), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape[-1:], dtypes.param), logical_axes=axes[-1:]) if bias else None
        self.strides, self.padding, self.groups, self.dtype = strides, padding, groups, dtypes.compute

    def __call__(self, x: Float[Array, "N *in C"]) -> Float[Array, "N *out D"]:
        space = "DHW"[-len(self.strides) :]
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            self.strides,
            self.padding,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
            feature_group_count=self.groups,
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Bottleneck(nnx.Module):
    """RegNetY's block (arXiv 2003.13678) with groups of one channel, LayerNorm over channels and SiLU.

    The squeeze has a quarter of the channels that come in, and a shortcut that changes their number is projected.
    """

    def __init__(self, in_dim: int, dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        squeeze = round(in_dim / 4)
        self.conv1 = Linear(in_dim, dim, ("embed", "mlp"), dtypes, rngs, bias=False)
        self.norm1 = LayerNorm(dim, dtypes)
        around = ((1, 1), (1, 1))
        self.conv2 = Convolution((3, 3, 1, dim), dtypes, rngs, strides=(1, 1), padding=around, groups=dim)
        self.norm2 = LayerNorm(dim, dtypes)
        self.squeeze = Linear(dim, squeeze, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.excite = Linear(squeeze, dim, ("mlp", "embed"), dtypes, rngs, bias=True)
        self.conv3 = Linear(dim, dim, ("mlp", "embed"), dtypes, rngs, bias=False)
        self.norm3 = LayerNorm(dim, dtypes)
        changes = in_dim != dim
        self.shortcut = Linear(in_dim, dim, ("embed", "mlp"), dtypes, rngs, bias=False) if changes else None
        self.shortcut_norm = LayerNorm(dim, dtypes) if changes else None

    def __call__(self, x: Float[Array, "N H W E"]) -> Float[Array, "N H W D"]:
        y = jax.nn.silu(self.norm1(self.conv1(x)))
        y = jax.nn.silu(self.norm2(self.conv2(y)))
        share = self.excite(jax.nn.silu(self.squeeze(y.mean(axis=(1, 2), keepdims=True))))
        y = self.norm3(self.conv3(y * jax.nn.sigmoid(share)))
        return jax.nn.silu(y + (x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))))


class Stage(nnx.Module):
    """Blocks over each frame by itself."""

    def __init__(self, in_dim: int, dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.blocks = nnx.List([Bottleneck(dim if i else in_dim, dim, dtypes, rngs) for i in range(STAGE_DEPTH)])

    def __call__(self, x: Float[Array, "B T H W E"]) -> Float[Array, "B T H W D"]:
        frames = x.reshape(-1, *x.shape[2:])
        for block in self.blocks:
            frames = block(frames)
        return frames.reshape(*x.shape[:-1], -1)


class ConvolutionalBranch(nnx.Module):
    """A stage, a convolution that halves rows and columns and sees the frame before, a stage, an MLP."""

    def __init__(self, in_dim: int, dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.s1 = Stage(in_dim, dim, dtypes, rngs)
        # The published one pads a frame at both ends and drops the last result: what stands behind is never seen.
        before = ((1, 0), (0, 0), (0, 0))
        self.sampler = Convolution((2, 2, 2, dim, dim), dtypes, rngs, strides=(1, 2, 2), padding=before, bias=True)
        self.s2 = Stage(dim, dim, dtypes, rngs)
        self.readout = Mlp(dim, dim, dim, dtypes, rngs)

    def __call__(self, x: Float[Array, "B T H W E"]) -> Float[Array, "B T h w D"]:
        """An odd last row or column is left out."""
        return self.readout(self.s2(jax.nn.silu(self.sampler(self.s1(x)))))


class VisionProjector(nnx.Module):
    """Patch states in, decoder tokens out: three branches, weighted."""

    def __init__(self, in_dim: int, dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.video = ConvolutionalBranch(in_dim, dim, dtypes, rngs)
        self.body = ConvolutionalBranch(in_dim, dim, dtypes, rngs)
        self.face = Mlp(in_dim, dim, dim, dtypes, rngs)

    def __call__(self, states: Float[Array, "B T P E"], weights: Float[Array, "B 3"]) -> Float[Array, "B tokens D"]:
        """Returns T * P / 4 tokens, frame by frame in raster order.

        Args:
          states: of the P patches, a square of even side, of each of T frames.
          weights: of the branches, see `InstructionGate`.
        """
        side = math.isqrt(states.shape[2])
        x = states.reshape(*states.shape[:2], side, side, -1)
        share = [weights[:, n, None, None, None, None].astype(self.face.fc2.dtype) for n in range(len(BRANCHES))]
        y = share[0] * self.video(x) + share[1] * self.body(x) + share[2] * halved(self.face(x))
        return y.reshape(len(y), -1, y.shape[-1])


def halved(x: Float[Array, "B T H W D"]) -> Float[Array, "B T h w D"]:
    """Bilinear interpolation to half the (even) number of rows and columns: the mean of 2 x 2."""
    batch, time, rows, columns, dim = x.shape
    return x.reshape(batch, time, rows // 2, 2, columns // 2, 2, dim).mean(axis=(3, 5))


class InstructionGate(nnx.Module):
    """BERT's first state of an instruction to the weights of the branches, which sum to one."""

    def __init__(self, in_dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.mlp = Mlp(in_dim, GATE_WIDTH, len(BRANCHES), dtypes, rngs)

    def __call__(self, first: Float[Array, "B E"]) -> Float[Array, "B 3"]:
        return jax.nn.softmax(self.mlp(first).astype(jnp.float32), axis=-1)


class AudioProjector(nnx.Module):
    """States of sound in, a decoder token for every three of them out."""

    def __init__(self, in_dim: int, dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.mlp = Mlp(in_dim, dim, dim, dtypes, rngs)

    def __call__(self, states: Float[Array, "B T E"]) -> Float[Array, "B tokens D"]:
        """States that are left over at the end are not read."""
        batch, length, width = states.shape
        tokens = length // AUDIO_POOL
        return self.mlp(states[:, : tokens * AUDIO_POOL].reshape(batch, tokens, AUDIO_POOL, width).mean(axis=2))
