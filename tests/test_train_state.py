"""Optimisers: rates over steps, what decays, what Muon takes, and a gradient that is not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mecap_jax.config import OptimizerConfig
from mecap_jax.train_state import (
    TrainState,
    last_learning_rate,
    learning_rate_schedule,
    make_optimizer,
    make_update,
)
from tests.training import harness

PARAMS = {
    "embed_tokens": {"embedding": jnp.ones((6, 4))},
    "layer": {"kernel": jnp.eye(4), "scale": jnp.ones(4)},
    "lm_head": {"kernel": jnp.ones((4, 6))},
    "conv": {"kernel": jnp.ones((3, 4, 4))},
}
STEADY = {"schedule": "constant", "clip_norm": 1e9}


def first_update(gradients, **config):
    optimizer = make_optimizer(OptimizerConfig(**{"learning_rate": 0.1, **STEADY, **config}), steps=10)
    return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)[0]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.8, 0.6, 0.4]),
        ("cosine", [0.5, 1, 1, None, 0.6, None]),
    ],
)
def test_the_rate_warms_up_and_decays(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, schedule=schedule, end_factor=0.2)
    optimizer = make_optimizer(config, steps=6)
    params, gradients = {"x": jnp.ones(1)}, {"x": jnp.ones(1)}
    state = optimizer.init(params)
    for rate in expected:  # Adam's step on a constant gradient is the rate itself
        update, state = optimizer.update(gradients, state, params)
        if rate is not None:
            np.testing.assert_allclose(-update["x"], rate, atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rate_that_is_logged_is_the_one_that_was_taken(name):
    config = OptimizerConfig(name=name, learning_rate=1.0, warmup_steps=2, schedule="linear", end_factor=0.2)
    optimizer, schedule = make_optimizer(config, steps=6), learning_rate_schedule(config, steps=6)
    state = TrainState(PARAMS, optimizer.init(PARAMS), jnp.int32(0), jnp.int32(0))
    update = jax.jit(lambda state: optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state.opt_state, PARAMS))
    rates = []
    for _ in range(6):
        updates, opt_state = update(state)
        state = state._replace(opt_state=opt_state)
        rates.append(last_learning_rate(schedule, state))
        taken = -updates["layer"]["scale"][0]  # a vector has AdamW: its step on a constant gradient is the rate
        np.testing.assert_allclose(rates[-1], taken, rtol=1e-3)
    np.testing.assert_allclose(rates, [0.5, 1, 1, 0.8, 0.6, 0.4], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_decay(name):
    update = first_update(jax.tree.map(jnp.zeros_like, PARAMS), name=name, weight_decay=0.5)
    expected = jax.tree.map(lambda x: -0.05 * x if x.ndim > 1 else jnp.zeros_like(x), PARAMS)
    chex.assert_trees_all_close(update, expected, atol=1e-6)


def test_muon_orthogonalises_the_matrices_of_layers_and_nothing_else():
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), PARAMS)
    muon, adam = first_update(gradients, name="muon"), first_update(gradients, name="adamw")
    singular = jnp.linalg.svd(muon["layer"]["kernel"], compute_uv=False)
    assert singular.max() / singular.min() < 2  # five Newton-Schulz steps get this close to 1
    rms = float(jnp.sqrt(jnp.mean(muon["layer"]["kernel"] ** 2)))
    assert 0.1 * 0.1 < rms < 0.1 * 0.3  # the size of an Adam update at this rate
    for name in ("embed_tokens", "lm_head", "conv"):
        chex.assert_trees_all_close(muon[name], adam[name], rtol=1e-5)
    chex.assert_trees_all_close(muon["layer"]["scale"], adam["layer"]["scale"], rtol=1e-5)


def test_the_norm_is_clipped():
    gradients = jax.tree.map(lambda x: 100.0 * jnp.ones_like(x), PARAMS)
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5, **{"schedule": "constant"}), steps=1)
    _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.05, rtol=1e-4)  # (1 - beta1) x the clipped gradient


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(name):
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=0.1), steps=10)
    _, state = harness.initial_state(harness.mesh(), optimizer)
    before = jax.device_get(state)
    gradients = jax.tree.map(jnp.ones_like, state.params)
    gradients["language_model"]["norm"]["scale"] = gradients["language_model"]["norm"]["scale"].at[0].set(jnp.nan)
    state, norm = make_update(optimizer, state)(state, gradients)
    assert not np.isfinite(norm) and int(state.skipped) == 1 and int(state.step) == 1
    chex.assert_trees_all_equal(jax.device_get(state.params), before.params)
    chex.assert_trees_all_equal(jax.device_get(state.opt_state), before.opt_state)
