"""Group advantages against plain NumPy, and what missing and constant rewards do."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from mecap_jax.rl.advantages import group_advantages, whitened

REWARDS = np.array([[0.1, 0.9, 0.4, 0.4], [1.0, 0.0, 0.0, 0.0], [-2.0, 3.0, 0.5, 0.1]], np.float32)


def _expected(rewards, method):
    rows = []
    for row in np.asarray(rewards, np.float64):
        centred = row - row.mean()
        if method == "group":
            rows.append(centred / (row.std(ddof=1) + 1e-4))
        elif method == "mean":
            rows.append(centred)
        else:
            rows.append([r - np.delete(row, i).mean() for i, r in enumerate(row)])
    return np.array(rows)


@pytest.mark.parametrize("method", ["group", "mean", "leave_one_out"])
def test_equals_numpy(method):
    advantages, flat = group_advantages(jnp.asarray(REWARDS), method)
    chex.assert_trees_all_close(np.asarray(advantages), _expected(REWARDS, method).astype(np.float32), atol=1e-5)
    assert not flat.any()


def test_per_reward_normalises_before_the_sum():
    """Two terms of very different scale count by their weights alone."""
    terms = np.stack([REWARDS, 1000 * REWARDS[:, ::-1]])
    weights = np.array([1.0, 0.5], np.float32)
    total = (weights[:, None, None] * terms).sum(0)
    advantages, _ = group_advantages(
        jnp.asarray(total), "per_reward", terms=jnp.asarray(terms), weights=jnp.asarray(weights)
    )
    expected = _expected(terms[0], "group") + 0.5 * _expected(terms[1], "group")
    chex.assert_trees_all_close(np.asarray(advantages), expected.astype(np.float32), atol=1e-3)


def test_gdpo_tells_apart_what_earns_as_much_in_all():
    """Three terms whose sum is 1 for each of four completions: GRPO sees nothing, GDPO what is rare."""
    terms = np.array([[[1, 0, 0, 0]], [[0, 0.5, 0.5, 0]], [[0, 0.5, 0.5, 1]]], np.float32)
    ones = jnp.ones(3)
    advantages, flat = group_advantages(jnp.asarray(terms.sum(0)), "per_reward", terms=jnp.asarray(terms), weights=ones)
    expected = sum(_expected(term, "group") for term in terms)
    assert not flat.any() and np.ptp(expected) > 0.5
    chex.assert_trees_all_close(np.asarray(advantages), expected.astype(np.float32), atol=1e-3)
    assert group_advantages(jnp.asarray(terms.sum(0)), "group")[1].all()


@pytest.mark.parametrize("method", ["group", "mean", "leave_one_out", "per_reward"])
def test_a_group_without_variance_has_no_advantage_and_is_counted(method):
    rewards = jnp.array([[0.3, 0.3, 0.3], [0.1, 0.2, 0.3]])
    advantages, flat = group_advantages(rewards, method, terms=rewards[None], weights=jnp.ones(1))
    assert (advantages[0] == 0).all() and (advantages[1] != 0).any()
    assert flat.tolist() == [True, False]


@pytest.mark.parametrize("method", ["group", "mean", "leave_one_out", "per_reward"])
def test_missing_rewards_are_left_out_of_the_statistics(method):
    """A group with a missing reward has the advantages of the group without it, and 0 there."""
    present = jnp.array([[0.1, 0.7, 0.4]])
    missing = jnp.array([[0.1, jnp.nan, 0.7, 0.4]])
    one = dict(weights=jnp.ones(1))
    expected, _ = group_advantages(present, method, terms=present[None], **one)
    actual, _ = group_advantages(missing, method, terms=missing[None], **one)
    chex.assert_trees_all_close(actual[0, jnp.array([0, 2, 3])], expected[0], atol=1e-6)
    assert actual[0, 1] == 0


@pytest.mark.parametrize("method", ["group", "per_reward"])
def test_a_group_without_any_reward_is_finite(method):
    rewards = jnp.full((1, 4), jnp.nan)
    advantages, flat = group_advantages(rewards, method, terms=rewards[None], weights=jnp.ones(1))
    assert (advantages == 0).all() and flat.all()


def test_group_advantages_ignore_shift_and_scale():
    a, _ = group_advantages(jnp.asarray(REWARDS), "group")
    b, _ = group_advantages(jnp.asarray(100 * REWARDS + 7), "group")
    chex.assert_trees_all_close(a, b, atol=2e-3)


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="median"):
        group_advantages(jnp.asarray(REWARDS), "median")


def test_gdpo_takes_mean_and_deviation_of_the_batch_out():
    advantages = np.array([[1.0, -1.0], [3.0, 0.0]], np.float32)
    counted = np.array([[True, True], [True, False]])
    values = advantages[counted]
    expected = np.where(counted, (advantages - values.mean()) / (values.std(ddof=1) + 1e-4), 0)
    actual = whitened(advantages, counted, float(values.mean()), float(values.std(ddof=1)))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert actual[counted].mean() == pytest.approx(0, abs=1e-6) and actual[1, 1] == 0
