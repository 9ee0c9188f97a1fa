"""The vision tower: a transformer over video patches with windowed attention (Qwen2.5-VL, Qwen2.5-Omni).

Patches come in a dense layout [temporal patch, window, slot], so that attention inside a window and attention over a
whole frame are both plain batched products: no gather and no [patches x patches] mask.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.model_config import VisionTowerConfig
from mecap_jax.models.layers import Dtypes, GatedMlp, Linear, RMSNorm, attend_within, gelu, rotate, split_heads
from mecap_jax.models.stack import Running, run_layers


class VisionAttention(nnx.Module):
    """Bidirectional attention over the second-last axis, rotary positions from row and column."""

    def __init__(self, config: VisionTowerConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        dim, self.heads = config.hidden_size, config.num_heads
        self.q = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.k = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.v = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.proj = Linear(dim, dim, ("heads", "embed"), dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "*batch L D"], cos, sin, mask: Bool[Array, "*batch L"]):
        q = rotate(split_heads(self.q(x), self.heads), cos, sin)
        k = rotate(split_heads(self.k(x), self.heads), cos, sin)
        return self.proj(attend_within(q, k, split_heads(self.v(x), self.heads), mask).reshape(x.shape))


class VisionBlock(nnx.Module):
    """Pre-norm attention and SwiGLU with biases."""

    def __init__(self, config: VisionTowerConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, dtypes)
        self.norm2 = RMSNorm(config.hidden_size, dtypes)
        self.attn = VisionAttention(config, dtypes, rngs)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "*batch L D"], cos, sin, mask: Bool[Array, "*batch L"]):
        x = x + self.attn(self.norm1(x), cos, sin, mask)
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
    """Patches in, decoder tokens out."""

    def __init__(self, config: VisionTowerConfig, output_dim: int, dtypes: Dtypes, rngs: nnx.Rngs, running: Running):
        self.config, self.running = config, running
        self.patch_embed = Linear(config.patch_dim, config.hidden_size, (None, "embed"), dtypes, rngs, bias=False)
        self.blocks = nnx.List([VisionBlock(config, dtypes, rngs) for _ in range(config.depth)])
        self.merger = PatchMerger(config, output_dim, dtypes, rngs)

    def __call__(
        self,
        patches: Float[Array, "B T W S P"],
        positions: Int[Array, "B T W S 2"],
        mask: Bool[Array, "B T W S"],
    ) -> Float[Array, "B tokens D"]:
        """Encodes T temporal patches of W windows with S slots into T * W * window_tokens tokens a row.

        Slots outside `mask` are never attended to, and the tokens that come of them must not be pointed at.
        """
        batch, frames, windows, slots, _ = patches.shape
        x = self.patch_embed(patches)
        cos, sin = _rotary_angles(positions, self.config.hidden_size // self.config.num_heads)

        def in_windows(block: VisionBlock, x):
            return block(x, cos, sin, mask), None

        def in_frames(block: VisionBlock, x):
            whole = [a.reshape(batch, frames, windows * slots, *a.shape[4:]) for a in (x, cos, sin, mask)]
            return block(*whole).reshape(x.shape), None

        full = self.config.fullatt_block_indexes
        steps = [in_frames if i in full else in_windows for i in range(len(self.blocks))]
        x, _ = run_layers(self.blocks, steps, x, self.running)
        x = x.reshape(batch, frames * windows * slots, -1)
        return self.merger(x, self.config.spatial_merge_size**2)


def _rotary_angles(positions: Int[Array, "*batch 2"], head_dim: int):
    """Half of the frequencies follow the row, half the column; returns cosine and sine [..., head_dim / 2]."""
    quarter = head_dim // 4
    frequency = 10000.0 ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
    angles = positions[..., None].astype(jnp.float32) * frequency
    angles = angles.reshape(*positions.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)
