"""One step is one step: on one device, on eight, in micro-batches, sharded, in two processes."""

import chex
import jax
import numpy as np
import pytest

from tests.training import harness


def _after(made, steps=2):
    _, state, step = made
    metrics = []
    for number in range(steps):
        state, values, _ = step(state, number)
        metrics.append({k: v for k, v in values.items() if not k.startswith("timing_s")})
    return jax.device_get(state.params), metrics


@pytest.fixture(scope="module", params=["sft", "grpo"])
def expected(request):
    make = {"sft": harness.sft_step, "grpo": harness.grpo_step}[request.param]
    return make, *_after(make(harness.mesh(), optimizer=harness.DESCENT))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 8, 1)], ids=lambda s: "data{}-fsdp{}-tensor{}".format(*s))
def test_eight_devices_equal_one(expected, shape):
    make, params, metrics = expected
    actual, actual_metrics = _after(make(harness.mesh(*shape), optimizer=harness.DESCENT))
    chex.assert_trees_all_close(actual, params, atol=1e-5)
    chex.assert_trees_all_close(actual_metrics, metrics, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("micro", [2, 4])
def test_micro_batches_equal_one_batch(expected, micro):
    make, params, metrics = expected
    actual, actual_metrics = _after(make(harness.mesh(), micro=micro, optimizer=harness.DESCENT))
    chex.assert_trees_all_close(actual, params, atol=1e-5)
    chex.assert_trees_all_close(actual_metrics, metrics, atol=1e-4, rtol=1e-4)


def test_a_step_moves_every_parameter(expected):
    """Otherwise the comparisons above would prove nothing."""
    _, params, _ = expected
    before = jax.device_get(harness.initial_state(harness.mesh(), harness.DESCENT)[1].params)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, before)
    stuck = [jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert stuck == []
