"""Advantages within a group of completions of one prompt.

NaN marks a completion without a reward (a reward that failed or timed out): it is left out of its group's statistics
and gets advantage 0. A group whose rewards do not vary has nothing to say and gets advantage 0 as well; under GDPO one
in which no term varies.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_EPSILON = 1e-4  # of TRL and R1-Omni; rewards are of order 1


def group_advantages(
    rewards: Float[Array, "B G"],
    method: str = "group",
    *,
    terms: Float[Array, "R B G"] | None = None,
    weights: Float[Array, " R"] | None = None,
) -> tuple[Float[Array, "B G"], Bool[Array, " B"]]:
    """Group-relative advantages.

    Args:
      rewards: weighted sums of the reward terms, NaN where there is none.
      method: "group" divides the centred rewards by the group's standard deviation (GRPO, arXiv 2402.03300, eq. 3
        ff.); "mean" only centres them (Dr.GRPO, arXiv 2503.20783); "leave_one_out" centres by the mean of the
        others (RLOO, arXiv 2402.14740); "per_reward" normalises every term in its group before the weighted sum
        (GDPO, arXiv 2601.05242; `whitened` is its last step, over the whole batch); "none" is 0 for all.
      terms, weights: the terms by themselves, for "per_reward".

    Returns:
      Advantages, and which groups have no variance in them, or in their rewards.
    """
    if method == "per_reward":
        if terms is None or weights is None:
            raise ValueError("per_reward advantages need the reward terms and their weights")
        normalised = jnp.where(jnp.isnan(terms), 0.0, _standardise(terms))
        advantages = jnp.sum(weights[:, None, None] * normalised, axis=0)
        # Not of the rewards: completions that earn as much in all, one by one term and one by another, do differ here.
        degenerate = _spread(jnp.where(jnp.isnan(rewards), jnp.nan, advantages)) <= _EPSILON
        return jnp.where(jnp.isnan(rewards) | degenerate[:, None], 0.0, advantages), degenerate
    degenerate = _spread(rewards) <= _EPSILON
    centred = rewards - jnp.nanmean(rewards, axis=-1, keepdims=True)
    if method == "group":
        advantages = _standardise(rewards)
    elif method == "none":
        advantages = jnp.zeros_like(rewards)
    elif method == "mean":
        advantages = centred
    elif method == "leave_one_out":
        # r_i - mean of the others = (r_i - mean) * n / (n - 1)
        count = jnp.sum(~jnp.isnan(rewards), axis=-1, keepdims=True)
        advantages = centred * count / jnp.maximum(count - 1, 1)
    else:
        raise ValueError(f"unknown advantage method {method!r}")
    return jnp.where(jnp.isnan(rewards) | degenerate[:, None], 0.0, advantages), degenerate


def whitened(
    advantages: Float[np.ndarray, "B G"], counted: Bool[np.ndarray, "B G"], mean: float, deviation: float
) -> Float[np.ndarray, "B G"]:
    """Advantages with the mean and the deviation of their whole batch taken out, 0 where they do not count.

    GDPO (arXiv 2601.05242): the more terms are added up, the wider their sum would be.
    """
    return np.where(counted, (advantages - mean) / (deviation + _EPSILON), 0.0).astype(np.float32)


def _standardise(x: Float[Array, "*batch G"]) -> Float[Array, "*batch G"]:
    """(x - mean) / (std + eps) over a group, unbiased standard deviation as in TRL."""
    mean = jnp.nanmean(x, axis=-1, keepdims=True)
    count = jnp.sum(~jnp.isnan(x), axis=-1, keepdims=True)
    variance = jnp.nansum((x - mean) ** 2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    return (x - mean) / (jnp.sqrt(variance) + _EPSILON)


def _spread(x: Float[Array, "B G"]) -> Float[Array, " B"]:
    """Largest minus smallest reward; 0 for a group without any."""
    high = jnp.max(jnp.where(jnp.isnan(x), -jnp.inf, x), axis=-1)
    low = jnp.min(jnp.where(jnp.isnan(x), jnp.inf, x), axis=-1)
    return jnp.where(jnp.isfinite(high), high - low, 0.0)
