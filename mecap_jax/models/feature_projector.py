"""Precomputed features (HuBERT, CLIP, OpenWillis, ...) into decoder tokens."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from mecap_jax.model_config import FeatureProjectorConfig
from mecap_jax.models.layers import Dtypes, LayerNorm, Linear, gelu


class FeatureProjector(nnx.Module):
    """A two-layer perceptron behind a norm, applied to every feature frame by itself."""

    def __init__(self, config: FeatureProjectorConfig, output_dim: int, dtypes: Dtypes, rngs: nnx.Rngs):
        in_dim = sum(config.dims)
        self.norm = LayerNorm(in_dim, dtypes)
        self.fc1 = Linear(in_dim, config.hidden_size, ("embed", "mlp"), dtypes, rngs, bias=True)
        self.fc2 = Linear(config.hidden_size, output_dim, ("mlp", "embed"), dtypes, rngs, bias=True)

    def __call__(self, features: Float[Array, "B N E"]) -> Float[Array, "B N D"]:
        return self.fc2(gelu(self.fc1(self.norm(features))))
