"""A learned mix of layers begins as their mean, can become any one of them, and is learned."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mecap_jax.model_config import FeatureProjectorConfig
from mecap_jax.models.feature_projector import FeatureProjector
from mecap_jax.models.layers import Dtypes

CONFIG = FeatureProjectorConfig(("voice", "face", "words"), (12, 2, 6), 8, layers=(3, 1, 2))
PLAIN = FeatureProjectorConfig(("voice", "face", "words"), (4, 2, 3), 8)
FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 20)), jnp.float32)


def projector(config):
    return FeatureProjector(config, 6, Dtypes(jnp.dtype("float32"), jnp.dtype("float32")), nnx.Rngs(0))


def mixed(voice, words):
    """The features of `PLAIN` with these shares of the layers."""
    layers = FEATURES[..., :12].reshape(2, 5, 3, 4), FEATURES[..., 14:].reshape(2, 5, 2, 3)
    voice, words = (jnp.tensordot(x, jnp.array(share), (2, 0)) for x, share in zip(layers, (voice, words)))
    return jnp.concatenate([voice, FEATURES[..., 12:14], words], axis=-1)


def test_the_mix_begins_as_the_mean_and_can_be_one_layer():
    model, plain = projector(CONFIG), projector(PLAIN)  # the same seed, and the mix draws nothing
    np.testing.assert_allclose(model(FEATURES), plain(mixed([1 / 3] * 3, [1 / 2] * 2)), atol=1e-6)
    model.mix[...] = jnp.array([0.0, 99.0, 0.0, 0.0, 99.0])
    np.testing.assert_allclose(model(FEATURES), plain(mixed([0.0, 1.0, 0.0], [0.0, 1.0])), atol=1e-6)
    assert plain.mix is None and projector(FeatureProjectorConfig(("x",), (6,), 8, layers=(1,))).mix is None


def test_the_gradient_reaches_the_mix():
    model, step = projector(CONFIG), 1e-2

    def loss(model):
        return jnp.sin(3 * model(FEATURES)).sum()

    def loss_at(mix):
        model.mix[...] = mix
        return loss(model)

    gradient = nnx.grad(loss)(model)["mix"][...]
    differences = [(loss_at(step * unit) - loss_at(-step * unit)) / (2 * step) for unit in jnp.eye(5)]
    assert np.abs(gradient).min() > 1e-3
    np.testing.assert_allclose(gradient, differences, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    "names, dims, layers, words",
    [
        (("a",), (4, 2), (), "1 names and 2 dims"),
        (("a", "b"), (4, 2), (2,), "2 dims and 1 layers"),
        (("a", "b"), (4, 3), (2, 2), "a width of 3 does not divide into 2 layers"),
        (("a", "b"), (4, 3), (2, 3), ""),
        (("a",), (4,), (), ""),
    ],
)
def test_what_does_not_fit_together_is_named(names, dims, layers, words):
    assert FeatureProjectorConfig(names, dims, 8, layers).misfit() == words
