"""Log-probabilities of given completions: the group behind one shared prompt, logits in chunks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.batch import Completions, PromptBatch
from mecap_jax.models.multimodal_lm import MultimodalLM

# Tokens times vocabulary whose logits a device holds at once; more are computed chunk by chunk and again in the
# backward pass. 2^26 float32 values are 256 MiB: a small vocabulary stays in one piece, one of 152k goes by 440 tokens.
_LOGITS_AT_ONCE = 2**26


class Scores(NamedTuple):
    """float32 [B, G, T] each; only meaningful under the completions' mask."""

    logprobs: Array
    entropy: Array


def score_completions(
    model: MultimodalLM,
    prompt: PromptBatch,
    tokens: Int[Array, "B G T"],
    temperature: float | Float[np.ndarray, " G"] = 1.0,
) -> Scores:
    """Log-probability of every completion token under softmax(logits / temperature), and the entropy there.

    The temperature is one for all, or one for each completion of a group.

    Equal, gradients included, to scoring G separate sequences [prompt, completion].
    """
    hidden = model.completion_states(prompt, tokens)
    # What a device holds at once is what counts: every chunk reads all output weights, and twice more backwards.
    divided = model.running.rows
    rows = len(tokens) if divided is None else divided.shard_shape(tokens.shape)[0]
    logprobs, entropy = _token_scores(model.language_model, hidden, tokens, temperature, rows)
    return Scores(logprobs, entropy)


def _token_scores(decoder, hidden: Float[Array, "B G T D"], tokens: Int[Array, "B G T"], temperature, rows: int):
    temperature = np.reshape(np.asarray(temperature, np.float32), (-1, 1, 1))

    def scores(hidden, tokens):
        logits = decoder.logits(hidden) / temperature
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        entropy = normaliser - jnp.sum(jnp.exp(logits - normaliser[..., None]) * logits, axis=-1)
        return chosen - normaliser, entropy

    batch, group, length = tokens.shape
    positions_at_once = max(1, _LOGITS_AT_ONCE // (decoder.config.vocab_size * rows * group))
    if positions_at_once >= length:
        return scores(hidden, tokens)
    # Chunks run over time, so that the batch axes stay sharded as they are.
    chunks = -(-length // positions_at_once)
    padding = chunks * positions_at_once - length

    def to_chunks(x):
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(batch, group, chunks, positions_at_once, *x.shape[3:]), 2, 0)

    outputs = jax.lax.map(lambda chunk: jax.checkpoint(scores)(*chunk), (to_chunks(hidden), to_chunks(tokens)))
    return tuple(jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length] for x in outputs)


@functools.partial(jax.jit, static_argnames=("graphdef", "temperature"))
def completion_logprobs(
    graphdef: nnx.GraphDef[MultimodalLM], params, prompt: PromptBatch, completions: Completions, *, temperature: float
) -> Float[Array, "B G T"]:
    """Log-probabilities without gradient (the reference policy's), 0 outside the mask."""
    model = nnx.merge(graphdef, params).forward_only()
    scores = score_completions(model, prompt, completions.tokens, temperature)
    return jnp.where(completions.mask, scores.logprobs, 0.0)
