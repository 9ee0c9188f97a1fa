"""The GRPO objective of one micro-batch and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mecap_jax.batch import Array, Completions, PromptBatch
from mecap_jax.config import GrpoConfig, LossConfig
from mecap_jax.generation.scoring import score_completions
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.rl.losses import denominator, kl_divergence, policy_loss, token_weights


class TrainExample(NamedTuple):
    """Everything that the update of one micro-batch needs; rollout, reference, rewards and advantages meet here.

    Attributes:
      prompt: B prompts.
      valid: bool [B], False for a row that fills the batch up and for a clip that could not be decoded.
      completions: G completions each; an empty mask leaves a completion out of the loss.
      old_logprobs: float32 [B, G, T], of the policy that sampled.
      reference_logprobs: float32 [B, G, T], of the reference policy, or None without one.
      advantages: float32 [B, G].
      references: R captions a prompt whose likelihood is part of the objective, or None.
    """

    prompt: PromptBatch
    valid: Array
    completions: Completions
    old_logprobs: Array
    reference_logprobs: Array | None
    advantages: Array
    references: Completions | None


class Denominators(NamedTuple):
    """What the sums of a whole batch are divided by; the same for all its micro-batches."""

    policy: Array
    tokens: Array
    reference_tokens: Array


def denominators(example: TrainExample, loss: LossConfig) -> Denominators:
    """This micro-batch's share of the denominators; the learner adds them up."""
    references = 0 if example.references is None else jnp.sum(example.references.mask)
    mask = example.completions.mask
    return Denominators(
        denominator(mask, loss.name, example.valid),
        jnp.sum(mask).astype(jnp.float32),
        jnp.asarray(references, jnp.float32),
    )


class Sums(NamedTuple):
    """Sums over the tokens of a micro-batch, for the log; `Denominators.tokens` turns them into means."""

    policy_loss: Array
    kl: Array
    entropy: Array
    clipped_low: Array
    clipped_high: Array
    logprob_difference: Array
    reference_nll: Array


def objective(
    model: MultimodalLM,
    example: TrainExample,
    totals: Denominators,
    beta: Array,
    loss: LossConfig,
    temperature: float,
    max_tokens: int,
) -> tuple[Array, Sums]:
    """This micro-batch's share of the loss: shares of all micro-batches add up to the loss of the batch.

    policy + beta * KL - entropy bonus, averaged as the variant says, plus the token-normalised negative
    log-likelihood of references of the same prompts (scored in the same pass, behind the same prefix, at temperature 1
    as in supervised training).
    """
    tokens, mask = example.completions
    group = tokens.shape[1]
    temperatures = np.full(group, temperature)
    if example.references is not None:
        tokens = jnp.concatenate([tokens, example.references.tokens], axis=1)
        temperatures = np.append(temperatures, np.ones(example.references.tokens.shape[1]))
    scores = score_completions(model, example.prompt, tokens, temperatures)
    logprobs, entropy = scores.logprobs[:, :group], scores.entropy[:, :group]

    policy = policy_loss(logprobs, example.old_logprobs, example.advantages, mask, loss)
    per_token = policy.per_token
    kl = jnp.zeros_like(logprobs)
    if example.reference_logprobs is not None:
        kl = kl_divergence(logprobs, example.reference_logprobs, mask, loss.kl, example.old_logprobs)
        per_token = per_token + beta * kl
    if loss.entropy:
        per_token = per_token - loss.entropy * entropy
    weights = token_weights(mask, loss.name, max_tokens)
    total = jnp.sum(per_token * weights) / jnp.maximum(totals.policy, 1.0)

    reference_nll = jnp.float32(0)
    if example.references is not None:
        reference_nll = -jnp.sum(jnp.where(example.references.mask, scores.logprobs[:, group:], 0.0))
        total += loss.reference_likelihood * reference_nll / jnp.maximum(totals.reference_tokens, 1.0)

    def summed(values):
        return jax.lax.stop_gradient(jnp.sum(jnp.where(mask, values, 0.0)))

    return total, Sums(
        policy_loss=jax.lax.stop_gradient(jnp.sum(policy.per_token * weights)),
        kl=summed(kl),
        entropy=summed(entropy),
        clipped_low=summed(policy.clipped_low),
        clipped_high=summed(policy.clipped_high),
        logprob_difference=summed(jnp.abs(logprobs - example.old_logprobs)),
        reference_nll=jax.lax.stop_gradient(reference_nll),
    )


def grpo_loss(
    model: MultimodalLM, example: TrainExample, shared: tuple[Denominators, Array], config: GrpoConfig
) -> tuple[Array, Sums]:
    """`objective` as a configuration has it; `shared` are the denominators and the weight of the KL divergence."""
    return objective(model, example, *shared, config.loss, config.temperature, config.max_new_tokens)
