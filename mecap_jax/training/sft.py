"""Supervised fine-tuning: maximum likelihood of reference captions (MECap-R1, stage 1; arXiv 2509.18729)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mecap_jax.batch import Array, Completions, PromptBatch
from mecap_jax.config import SftConfig
from mecap_jax.generation.scoring import score_completions
from mecap_jax.throughput import Counts, ModelFlops, add_up, count, work_metrics
from mecap_jax.train_state import TrainState, Updater


class SftBatch(NamedTuple):
    """B prompts, R tokenised references each, and their numbers within the step, int32 [B]; on the mesh."""

    prompt: PromptBatch
    targets: Completions
    rows: Array


def normaliser(targets: Completions, normalization: str) -> Array:
    """What the summed loss of a batch is divided by: tokens, references or clips that count."""
    mask = targets.mask
    if normalization == "token":
        return jnp.sum(mask).astype(jnp.float32)
    if normalization == "sequence":
        return jnp.sum(jnp.any(mask, axis=-1)).astype(jnp.float32)
    return jnp.sum(jnp.any(mask, axis=(-1, -2))).astype(jnp.float32)


def negative_log_likelihood(
    model, prompt: PromptBatch, targets: Completions, normalization: str
) -> tuple[Array, Array]:
    """This batch's sum of the loss before it is divided by `normaliser`, and the plain sum over tokens.

    L_SFT = - sum_i sum_t log P(y_it | y_i<t, M_i); "sequence" takes the mean over each reference's tokens first. The
    prompt is masked: only caption tokens are predicted.
    """
    mask = targets.mask
    logprobs = score_completions(model, prompt, targets.tokens).logprobs
    per_token = -jnp.where(mask, logprobs, 0.0)
    total = jnp.sum(per_token)
    if normalization == "sequence":
        return jnp.sum(jnp.sum(per_token, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)), total
    return total, total


def sft_loss(model, batch: SftBatch, divisor: Array, normalization: str) -> tuple[Array, tuple[Array, Array]]:
    """A micro-batch's share of the loss; with it, again the loss, and the plain sum over tokens."""
    loss, total = negative_log_likelihood(model, batch.prompt, batch.targets, normalization)
    loss = loss / jnp.maximum(divisor, 1.0)
    return loss, (loss, total)


@functools.partial(jax.jit, static_argnames="graphdef")
def token_nll(graphdef: nnx.GraphDef, params: Any, prompt: PromptBatch, targets: Completions) -> tuple[Array, Array]:
    """Summed negative log-likelihood of the targets and how many tokens they have; for validation."""
    _, total = negative_log_likelihood(nnx.merge(graphdef, params).forward_only(), prompt, targets, "token")
    return total, jnp.sum(targets.mask)


class SftLearner:
    """Runs steps; holds no state that a checkpoint would miss."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: TrainState,
        frozen: Any,
        optimizer: optax.GradientTransformation,
        config: SftConfig,
        seed: int,
    ):
        """`state` shows shapes and shardings; it is not consumed. `frozen` holds the parameters that do not train."""
        self._normalization = config.normalization
        self._flops = ModelFlops(graphdef, state.params, frozen)
        loss = functools.partial(sft_loss, normalization=config.normalization)
        self._update = Updater(graphdef, state, frozen, optimizer, loss, seed)

    def step(self, state: TrainState, micro_batches: list[SftBatch]) -> tuple[TrainState, dict[str, float]]:
        """One optimiser step over all micro-batches; the given state is consumed."""
        divisor = sum(normaliser(batch.targets, self._normalization) for batch in micro_batches)
        batches = [(batch, batch.rows) for batch in micro_batches]
        state, seen, norm = self._update(state, batches, divisor, len(batches) > 1)
        losses, totals = zip(*seen)
        counts = [_count(batch) for batch in micro_batches]
        losses, totals, counts, norm = jax.device_get((losses, totals, counts, norm))
        work = add_up(counts)
        tokens = float(work.completion_tokens)
        return state, {
            "loss": float(sum(losses)),
            "token_nll": float(sum(totals)) / max(tokens, 1.0),
            "grad_norm": float(norm),
            "num_tokens": tokens,
            **work_metrics(work, self._flops.gradient(work)),
        }


def _count(batch: SftBatch) -> Counts:
    mask = batch.targets.mask
    return count(batch.prompt, jnp.any(mask, axis=(1, 2)), (mask,))
