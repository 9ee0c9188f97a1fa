"""The vision tower: a transformer over video patches with windowed attention (Qwen2.5-VL, Qwen2.5-Omni).

Patches come as pixels, by merge cell in raster order, and stay so: what does not depend on neighbours is computed for
patches alone. Windows, which are filled up, are laid out for attention within them, so that this and attention over a
whole frame are plain batched products without a [patches x patches] mask.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped, UInt8

from mecap_jax.model_config import PIXEL_MEAN, PIXEL_STD, VisionTowerConfig
from mecap_jax.models.layers import Dtypes, GatedMlp, Linear, RMSNorm, attend_within, gelu, rotate, split_heads
from mecap_jax.models.stack import Running, run_layers

# (queries, keys, values) [B, T, N, heads, head] of all patches of a frame -> what each patch takes of the values.
Attend = Callable[[Array, Array, Array], Array]


class VisionAttention(nnx.Module):
    """Bidirectional attention with rotary positions from row and column; `attend` says which patches see each other."""

    def __init__(self, config: VisionTowerConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        dim, self.heads = config.hidden_size, config.num_heads
        self.q = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.k = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.v = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.proj = Linear(dim, dim, ("heads", "embed"), dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "B T N D"], cos, sin, attend: Attend):
        q = rotate(split_heads(self.q(x), self.heads), cos, sin)
        k = rotate(split_heads(self.k(x), self.heads), cos, sin)
        return self.proj(attend(q, k, split_heads(self.v(x), self.heads)).reshape(x.shape))


class VisionBlock(nnx.Module):
    """Pre-norm attention and SwiGLU with biases."""

    def __init__(self, config: VisionTowerConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, dtypes)
        self.norm2 = RMSNorm(config.hidden_size, dtypes)
        self.attn = VisionAttention(config, dtypes, rngs)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "B T N D"], cos, sin, attend: Attend):
        x = x + self.attn(self.norm1(x), cos, sin, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Joins the patches of a merge cell into one decoder token."""

    def __init__(self, config: VisionTowerConfig, output_dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        joined = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, dtypes)
        self.fc1 = Linear(joined, joined, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.fc2 = Linear(joined, output_dim, ("mlp", "embed"), dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "B L D"], cell: int) -> Float[Array, "B tokens O"]:
        x = self.ln_q(x).reshape(x.shape[0], x.shape[1] // cell, -1)
        return self.fc2(gelu(self.fc1(x)))


class VisionTower(nnx.Module):
    """Pixels in, decoder tokens out."""

    def __init__(self, config: VisionTowerConfig, output_dim: int, dtypes: Dtypes, rngs: nnx.Rngs, running: Running):
        self.config, self.running = config, running
        self.patch_embed = Linear(config.patch_dim, config.hidden_size, (None, "embed"), dtypes, rngs, bias=False)
        self.blocks = nnx.List([VisionBlock(config, dtypes, rngs) for _ in range(config.depth)])
        self.merger = PatchMerger(config, output_dim, dtypes, rngs)

    def __call__(
        self,
        patches: UInt8[Array, "B T K M P"],
        positions: Int[Array, "B T K 2"],
        windows: Int[Array, "B T W C"],
    ) -> Float[Array, "B tokens D"]:
        """Encodes T temporal patches of K merge cells of M patches into T * K tokens a row (see `PromptBatch`).

        Cells without a position are never attended to, and the tokens that come of them must not be pointed at.
        """
        batch, frames, cells, size, _ = patches.shape
        x = self.patch_embed(normalised(patches)).reshape(batch, frames, cells * size, -1)
        there = positions[..., 0] >= 0
        inner = jnp.stack(jnp.divmod(jnp.arange(size), self.config.spatial_merge_size), axis=-1)
        places = (self.config.spatial_merge_size * positions[..., None, :] + inner).reshape(*x.shape[:3], 2)
        cos, sin = _rotary_angles(places, self.config.hidden_size // self.config.num_heads)

        def in_frames(q, k, v):
            return attend_within(q, k, v, jnp.repeat(there, size, axis=2))

        slots = windows.reshape(batch, frames, -1)
        # Slots in the order of the cells that they hold, empty ones last.
        slot_of = jnp.argsort(jnp.where(slots < 0, cells, slots), axis=2)[..., :cells]
        slot_of = jnp.where(there, slot_of, -1)

        def in_windows(*heads):
            by_cell = (batch, frames, cells, size, *heads[0].shape[3:])
            by_window = (*windows.shape[:3], -1, *heads[0].shape[3:])
            q, k, v = (_rearranged(x.reshape(by_cell), slots, slot_of).reshape(by_window) for x in heads)
            values = attend_within(q, k, v, jnp.repeat(windows >= 0, size, axis=3))
            by_slot = (batch, frames, -1, *by_cell[3:])
            return _rearranged(values.reshape(by_slot), slot_of, slots).reshape(heads[0].shape)

        def step(attend: Attend):
            return lambda block, x: (block(x, cos, sin, attend), None)

        whole = step(in_frames)
        # A single window is its frame.
        parts = step(in_windows) if windows.shape[2] > 1 else whole
        full = self.config.fullatt_block_indexes
        steps = [whole if i in full else parts for i in range(len(self.blocks))]
        x, _ = run_layers(self.blocks, steps, x, self.running)
        return self.merger(x.reshape(batch, frames * cells * size, -1), size)


def normalised(patches: UInt8[Array, "*batch P"]) -> Float[Array, "*batch P"]:
    """Pixels, channel by channel, as the family's processors normalise them: (value / 255 - mean) / std, float32."""
    mean, std = (jnp.repeat(255 * jnp.array(x, jnp.float32), patches.shape[-1] // 3) for x in (PIXEL_MEAN, PIXEL_STD))
    return (patches.astype(jnp.float32) - mean) / std


@jax.custom_vjp
def _rearranged(
    x: Shaped[Array, "B T I *item"], order: Int[Array, "B T J"], inverse: Int[Array, "B T I"]
) -> Shaped[Array, "B T J *item"]:
    """Items in another order: place j gets item `order[j]`, or 0 where that is -1, and item i goes to `inverse[i]`.

    It is linear, and its transpose is the way back, by another gather; that of a gather would be a scatter.
    """
    index = order.reshape(*order.shape, *[1] * (x.ndim - 3))
    return jnp.where(index >= 0, jnp.take_along_axis(x, jnp.maximum(index, 0), axis=2), 0)


_rearranged.defvjp(
    lambda x, order, inverse: (_rearranged(x, order, inverse), (order, inverse)),
    lambda orders, gradient: (_rearranged(gradient, orders[1], orders[0]), None, None),
)


def _rotary_angles(positions: Int[Array, "*batch 2"], head_dim: int):
    """Half of the frequencies follow the row, half the column; returns cosine and sine [..., head_dim / 2]."""
    quarter = head_dim // 4
    frequency = 10000.0 ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = positions[..., None].astype(jnp.float32) * frequency
    angles = angles.reshape(*positions.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)
