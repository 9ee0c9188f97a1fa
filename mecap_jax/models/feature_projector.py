"""Precomputed features (HuBERT, CLIP, OpenWillis, ...) into decoder tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mecap_jax.model_config import FeatureProjectorConfig
from mecap_jax.models.layers import Dtypes, LayerNorm, Linear, gelu


class FeatureProjector(nnx.Module):
    """A two-layer perceptron behind a norm, applied to every feature frame by itself.

    Where features hold all layers of an encoder, their mean comes first, with weights that are learned: the softmax of
    `mix`, which begins with equal ones (SUPERB, arXiv 2105.01051).
    """

    def __init__(self, config: FeatureProjectorConfig, output_dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        self.dims, self.layers = config.dims, config.layers or (1,) * len(config.dims)
        in_dim = sum(dim // count for dim, count in zip(self.dims, self.layers))
        mixed = sum(count for count in self.layers if count > 1)
        self.mix = nnx.Param(jnp.zeros((mixed,), dtypes.param), logical_axes=(None,)) if mixed else None
        self.norm = LayerNorm(in_dim, dtypes)
        self.fc1 = Linear(in_dim, config.hidden_size, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.fc2 = Linear(config.hidden_size, output_dim, ("mlp", "embed"), dtypes, rngs, bias=True)

    def __call__(self, features: Float[Array, "B N E"]) -> Float[Array, "B N D"]:
        return self.fc2(gelu(self.fc1(self.norm(features if self.mix is None else self._mixed(features)))))

    def _mixed(self, features: Float[Array, "B N E"]) -> Float[Array, "B N F"]:
        parts, first, used = [], 0, 0
        for dim, count in zip(self.dims, self.layers):
            part = features[..., first : first + dim]
            if count > 1:
                weights = jax.nn.softmax(self.mix[used : used + count].astype(jnp.float32))
                part = jnp.einsum("...ld,l->...d", part.reshape(*part.shape[:-1], count, -1), weights)
                used += count
            parts.append(part)
            first += dim
        return jnp.concatenate(parts, axis=-1)
