"""The audio tower: a Whisper-like encoder over independent chunks of log-mel frames (Qwen2.5-Omni).

A chunk of 2 * n_window frames passes two convolutions (the second halves time), a transformer whose attention stays
inside the chunk, a pooling that halves time again, and a projection to the decoder's width: 25 tokens a second.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mecap_jax.model_config import AudioTowerConfig
from mecap_jax.models.layers import Dtypes, LayerNorm, Linear, attend_within, gelu, split_heads
from mecap_jax.models.stack import Running, run_layers


class Convolution(nnx.Module):
    """A one-dimensional convolution of width 3; kernel stored as [width, in, out]."""

    def __init__(self, in_dim: int, out_dim: int, stride: int, dtypes: Dtypes, rngs: nnx.Rngs):
        init = jax.nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
        self.kernel = nnx.Param(
            init(rngs.params(), (3, in_dim, out_dim), dtypes.param), logical_axes=(None, None, "embed")
        )
        self.bias = nnx.Param(jnp.zeros((out_dim,), dtypes.param), logical_axes=("embed",))
        self.stride, self.dtype = stride, dtypes.compute

    def __call__(self, x: Float[Array, "N frames in"]) -> Float[Array, "N halved out"]:
        kernel = self.kernel[...].astype(self.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (self.stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + self.bias[...].astype(self.dtype)


class AudioAttention(nnx.Module):
    """Bidirectional attention inside a chunk; no bias on keys, as in Whisper."""

    def __init__(self, config: AudioTowerConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        dim, self.heads = config.d_model, config.encoder_attention_heads
        self.q_proj = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.k_proj = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=False)
        self.v_proj = Linear(dim, dim, ("embed", "heads"), dtypes, rngs, bias=True)
        self.out_proj = Linear(dim, dim, ("heads", "embed"), dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "N T D"], mask: Bool[Array, "N T"]) -> Float[Array, "N T D"]:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend_within(q, k, v, mask).reshape(x.shape))


class AudioLayer(nnx.Module):
    """Pre-norm attention and a GELU MLP."""

    def __init__(self, config: AudioTowerConfig, dtypes: Dtypes, rngs: nnx.Rngs):
        self.self_attn_layer_norm = LayerNorm(config.d_model, dtypes)
        self.self_attn = AudioAttention(config, dtypes, rngs)
        self.final_layer_norm = LayerNorm(config.d_model, dtypes)
        self.fc1 = Linear(config.d_model, config.encoder_ffn_dim, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.fc2 = Linear(config.encoder_ffn_dim, config.d_model, ("mlp", "embed"), dtypes, rngs, bias=True)

    def __call__(self, x: Float[Array, "N T D"], mask: Bool[Array, "N T"]) -> Float[Array, "N T D"]:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))


class AudioTower(nnx.Module):
    """Log-mel chunks in, decoder tokens out."""

    def __init__(self, config: AudioTowerConfig, output_dim: int, dtypes: Dtypes, rngs: nnx.Rngs, running: Running):
        self.config, self.running = config, running
        self.conv1 = Convolution(config.num_mel_bins, config.d_model, 1, dtypes, rngs)
        self.conv2 = Convolution(config.d_model, config.d_model, 2, dtypes, rngs)
        self.layers = nnx.List([AudioLayer(config, dtypes, rngs) for _ in range(config.encoder_layers)])
        self.ln_post = LayerNorm(config.d_model, dtypes)
        self.proj = Linear(config.d_model, output_dim, ("embed", "mlp"), dtypes, rngs, bias=True)

    def __call__(self, audio: Float[Array, "B C F M"], frames: Int[Array, "B C"]) -> Float[Array, "B CT D"]:
        """Encodes C chunks of F frames a row into C * chunk_tokens tokens.

        Of a chunk with n valid frames the first ((n - 1) // 2 + 1) // 2 tokens are meaningful; what stands behind them
        must not be pointed at.
        """
        batch, chunks, length, bins = audio.shape
        x = audio.reshape(batch * chunks, length, bins)
        frames = frames.reshape(-1, 1)
        valid = jnp.arange(length) < frames
        # Frames behind the end are zeroed twice: the convolutions must see silence there, not their neighbour's bias.
        x = gelu(self.conv1(jnp.where(valid[..., None], x, 0))) * valid[..., None]
        x = gelu(self.conv2(x))
        positions = sinusoids(self.config.n_window, self.config.d_model)
        x = x + jnp.asarray(positions, x.dtype)
        mask = jnp.arange(x.shape[1]) < (frames + 1) // 2
        steps = [lambda layer, x: (layer(x, mask), None)] * len(self.layers)
        x, _ = run_layers(self.layers, steps, x, self.running)
        x = x.reshape(batch * chunks, self.config.chunk_tokens, 2, -1).mean(axis=2)
        x = self.proj(self.ln_post(x))
        return x.reshape(batch, chunks * self.config.chunk_tokens, -1)


def sinusoids(length: int, channels: int) -> np.ndarray:
    """Whisper's sinusoidal positions, float32 [length, channels]: sines in the first half, cosines in the second."""
    timescales = np.exp(-np.log(10000.0) / (channels // 2 - 1) * np.arange(channels // 2, dtype=np.float32))
    angles = np.arange(length, dtype=np.float32)[:, None] * timescales.astype(np.float32)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
