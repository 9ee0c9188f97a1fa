"""Logits are sums in float32, whatever dtype the model computes in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mecap_jax.models.decoder import Decoder
from mecap_jax.models.layers import Dtypes, wide_product
from mecap_jax.models.stack import Running
from tests import miniature

HALF = Dtypes(jnp.dtype("float32"), jnp.dtype("bfloat16"))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_bfloat16_model_are_not_rounded(tied):
    config = dataclasses.replace(miniature.CONFIG.decoder, tie_word_embeddings=tied)
    decoder = Decoder(config, HALF, nnx.Rngs(0), Running(HALF.compute))
    hidden = jax.random.normal(jax.random.key(1), (5, config.hidden_size), jnp.bfloat16)
    weights = decoder.embed_tokens.embedding[...].T if tied else decoder.lm_head.kernel[...]
    exact = np.float64(hidden) @ np.float64(weights.astype(jnp.bfloat16))
    logits = decoder.logits(hidden)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=1e-5)
    assert np.abs(np.float64(logits.astype(jnp.bfloat16)) - exact).max() > 1e-3  # what rounding would cost


def test_the_gradient_stays_in_the_dtype_of_the_products():
    x, kernel = (jax.random.normal(jax.random.key(i), (8, 8), jnp.bfloat16) for i in range(2))
    cotangent = jax.random.normal(jax.random.key(2), (8, 8))
    _, pull = jax.vjp(wide_product, x, kernel)
    expected = (cotangent.astype(jnp.bfloat16) @ kernel.T, x.T @ cotangent.astype(jnp.bfloat16))
    for actual, wanted in zip(pull(cotangent), expected):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(actual), np.float32(wanted), rtol=0.02, atol=0.02)
