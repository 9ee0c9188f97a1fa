"""Drawing one token from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample_token(
    keys: Key[Array, " B"], logits: Float[Array, "B G V"], temperature: float, top_p: float
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """Draws one token for every completion; temperature 0 takes the most likely one.

    Every row has its own key, so that a row's draws do not depend on which other rows share its batch.

    Returns the tokens and their log-probabilities under softmax(logits / temperature), before nucleus filtering
    (top_p, arXiv 1904.09751): the same quantity that training scores.
    """
    if temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, _log_probability(logits, tokens)
    logits = logits / temperature
    candidates = logits if top_p >= 1 else jnp.where(_nucleus(logits, top_p), logits, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    tokens = jnp.argmax(candidates + noise, axis=-1).astype(jnp.int32)
    return tokens, _log_probability(logits, tokens)


def _log_probability(logits: Float[Array, "B G V"], tokens: Int[Array, "B G"]) -> Float[Array, "B G"]:
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _nucleus(logits: Float[Array, "B G V"], top_p: float):
    """True for the smallest set of most likely tokens whose probabilities reach `top_p`."""
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    return logits >= jnp.take_along_axis(descending, last, axis=-1)
