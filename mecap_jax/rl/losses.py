"""The policy objective as pure functions of log-probabilities, advantages and masks.

Every term is a sum with the denominator it wants to be divided by; the learner divides once, by the denominator of
the whole batch, so that neither micro-batches nor devices change the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mecap_jax.config import LossConfig

# |log ratio| beyond this carries no more information and would overflow the exponential.
_LOG_RATIO_LIMIT = 20.0


def importance_log_ratio(
    logprobs: Float[Array, "B G T"], old_logprobs: Float[Array, "B G T"], mask: Bool[Array, "B G T"], level: str
) -> Float[Array, "B G T"]:
    """log of the importance ratio, per token, or per sequence (the mean over its tokens, on every token).

    The sequence level is GSPO's (arXiv 2507.18071, eq. 7); its gradient flows through every token.
    """
    difference = jnp.where(mask, logprobs - old_logprobs, 0.0)
    if level == "sequence":
        lengths = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
        difference = jnp.broadcast_to(jnp.sum(difference, axis=-1, keepdims=True) / lengths, difference.shape)
    return jnp.clip(difference, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)


class PolicyLoss(NamedTuple):
    """float32 [B, G, T] each: the loss of each token and where its ratio was clipped from below or above."""

    per_token: Array
    clipped_low: Array
    clipped_high: Array


def policy_loss(
    logprobs: Float[Array, "B G T"],
    old_logprobs: Float[Array, "B G T"],
    advantages: Float[Array, "B G"],
    mask: Bool[Array, "B G T"],
    config: LossConfig,
) -> PolicyLoss:
    """The clipped surrogate of each token, to be minimised.

    GRPO (arXiv 2402.03300, eq. 3), Dr.GRPO (arXiv 2503.20783) and DAPO (arXiv 2503.14476) share it and differ in how
    tokens are averaged; GSPO (arXiv 2507.18071) takes the ratio per sequence; CISPO (arXiv 2506.13585, eq. 4) clips
    the weight instead of the objective, from above only, so that every token keeps a gradient; SAPO (arXiv 2511.20347)
    has a soft gate in place of the clip, 4 / t sigmoid(t (ratio - 1)) with a temperature t by the advantage's sign.
    `clip_dual` bounds the loss of tokens with negative advantage (arXiv 1912.09729, eq. 5).
    """
    level = "sequence" if config.name == "gspo" else config.importance
    log_ratio = importance_log_ratio(logprobs, old_logprobs, mask, level)
    ratio = jnp.exp(log_ratio)
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    advantages = advantages[..., None]
    outside_low, outside_high = (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0)
    if config.name == "cispo":
        outside_low = jnp.zeros_like(outside_low)
        weight = jax.lax.stop_gradient(jnp.minimum(ratio, high))
        loss = -weight * advantages * jnp.where(mask, logprobs, 0.0)
    elif config.name == "sapo":
        outside_low, outside_high = jnp.zeros_like(outside_low), jnp.zeros_like(outside_high)
        temperature = jnp.where(advantages > 0, config.sapo_positive, config.sapo_negative)
        loss = -4.0 / temperature * jax.nn.sigmoid(temperature * (ratio - 1.0)) * advantages
    else:
        loss = -jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages)
        if config.clip_dual:
            loss = jnp.where(advantages < 0, jnp.minimum(loss, -config.clip_dual * advantages), loss)
    return PolicyLoss(*(jnp.where(mask, x, 0.0) for x in (loss, outside_low, outside_high)))


def kl_divergence(
    logprobs: Float[Array, "B G T"],
    reference_logprobs: Float[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    kind: str,
    old_logprobs: Float[Array, "B G T"] | None = None,
) -> Float[Array, "B G T"]:
    """Estimate of KL(policy || reference) at each sampled token (Schulman, "Approximating KL divergence", 2020).

    "k2" is half the square of d = log(policy / reference), "k3" exp(-d) - 1 + d; neither is ever negative. As a loss,
    "k2" has the expected gradient of KL(policy || reference), "k3" that of KL(reference || policy). "k1", d itself, is
    no loss: its expected gradient is zero. d is clamped to +-20. "k3_corrected" is "k3" times the importance ratio of
    the token, policy / the policy that sampled it (`old_logprobs`): an estimate of KL(policy || reference) also where
    the policy has moved on, and with that divergence's expected gradient (arXiv 2512.02556, section 3.1).
    """
    d = jnp.where(mask, logprobs - reference_logprobs, 0.0)
    d = jnp.clip(d, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3_corrected":
        ratio = jnp.exp(importance_log_ratio(logprobs, old_logprobs, mask, "token"))
        return ratio * kl_divergence(logprobs, reference_logprobs, mask, "k3")
    if kind == "k3":
        # expm1 keeps the tiny values near the reference, where exp(-d) - 1 would cancel to noise below zero.
        return jnp.maximum(jnp.expm1(-d) + d, 0.0)
    raise ValueError(f"unknown KL estimator {kind!r}")


def token_weights(mask: Bool[Array, "B G T"], aggregation: str, max_tokens: int) -> Float[Array, "B G T"]:
    """How much each token counts in the sum of a loss, by the way that the variants average.

    "grpo", "gspo", "sapo": the mean over a completion's own tokens, then over completions (1 / length); "dapo" and
    "cispo": every token of the batch alike (1); "dr_grpo": a constant length instead (1 / max_tokens).
    """
    ones = mask.astype(jnp.float32)
    if aggregation in ("grpo", "gspo", "sapo"):
        return ones / jnp.maximum(jnp.sum(ones, axis=-1, keepdims=True), 1.0)
    if aggregation == "dr_grpo":
        return ones / max_tokens
    if aggregation in ("dapo", "cispo"):
        return ones
    raise ValueError(f"unknown loss {aggregation!r}")


def denominator(
    mask: Bool[Array, "B G T"], aggregation: str, valid: Bool[Array, " B"] | None = None
) -> Float[Array, ""]:
    """What the weighted sum of a batch is divided by: its tokens ("dapo", "cispo") or its completions.

    Completions whose mask is empty (left out of the loss) still count as completions under "dr_grpo"; elsewhere they
    have no mean of their own. Those of rows that are not `valid` never count.
    """
    if aggregation in ("dapo", "cispo"):
        return jnp.sum(mask).astype(jnp.float32)
    if aggregation == "dr_grpo":
        rows = mask.shape[0] if valid is None else jnp.sum(valid)
        return jnp.float32(rows * mask.shape[1])
    return jnp.sum(jnp.any(mask, axis=-1)).astype(jnp.float32)
