"""Drawing one token from logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

# A nucleus is looked for among so many of the likeliest tokens before the whole vocabulary is sorted.
_LIKELIEST = 128


class Filters(NamedTuple):
    """Which tokens may be drawn, after the temperature, in this order.

    Attributes:
      top_k: the k most likely ones; 0: all.
      top_p: of those the smallest set of most likely ones whose probabilities, which sum to 1 over the k, reach `top_p`
        (nucleus sampling, arXiv 1904.09751); 1: all.
      min_p: those at least `min_p` times as likely as the likeliest (arXiv 2407.01082); 0: all.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


EVERY_TOKEN = Filters()


def sample_token(
    keys: Key[Array, " B"], logits: Float[Array, "B G V"], temperature: float, filters: Filters = EVERY_TOKEN
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """Draws one token for every completion; temperature 0 takes the most likely one.

    Every row has its own key, so that a row's draws do not depend on which other rows share its batch.

    Returns the tokens and their log-probabilities under softmax(logits / temperature), before any filter: the same
    quantity that training scores.
    """
    if temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, _log_probability(logits, tokens)
    logits = logits / temperature
    among, tokens_of = _behind(logits, filters)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, among.shape[1:]))(keys)
    tokens = jnp.argmax(among + noise, axis=-1).astype(jnp.int32)
    if tokens_of is not None:
        tokens = jnp.take_along_axis(tokens_of, tokens[..., None], axis=-1)[..., 0]
    return tokens, _log_probability(logits, tokens)


def _log_probability(logits: Float[Array, "B G V"], tokens: Int[Array, "B G"]) -> Float[Array, "B G"]:
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _behind(
    logits: Float[Array, "B G V"], filters: Filters
) -> tuple[Float[Array, "B G K"], Int[Array, "B G K"] | None]:
    """The logits of what may be drawn, and which tokens they are of, None: of all in order. The logit of what may not
    be drawn is minus infinity. What equals the last one of a nucleus belongs to it."""
    among, tokens = logits, None
    if 0 < filters.top_k < logits.shape[-1]:
        among, tokens = jax.lax.top_k(logits, filters.top_k)  # no noise is drawn for all others
    if filters.top_p < 1:
        if tokens is None:
            lowest = _nucleus_of_all(among, filters.top_p)
        else:
            lowest, _ = _nucleus(among, jax.nn.logsumexp(among, axis=-1), filters.top_p)
        among = jnp.where(among >= lowest, among, -jnp.inf)
    if filters.min_p:
        lowest = among.max(axis=-1, keepdims=True) + np.float32(np.log(filters.min_p))
        among = jnp.where(among >= lowest, among, -jnp.inf)
    return among, tokens


def _nucleus_of_all(logits: Float[Array, "B G V"], top_p: float) -> Float[Array, "B G 1"]:
    """The lowest logit in the nucleus. Sorting a vocabulary for every token costs more than a small model does: it is
    done where the nucleus of some row goes beyond its likeliest tokens."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)

    def sorted_whole():
        return _nucleus(-jnp.sort(-logits, axis=-1), normaliser, top_p)[0]

    if logits.shape[-1] <= _LIKELIEST:
        return sorted_whole()
    lowest, complete = _nucleus(jax.lax.top_k(logits, _LIKELIEST)[0], normaliser, top_p)
    return jax.lax.cond(jnp.all(complete), lambda: lowest, sorted_whole)


def _nucleus(
    descending: Float[Array, "B G K"], normaliser: Float[Array, "B G"], top_p: float
) -> tuple[Float[Array, "B G 1"], Bool[Array, "B G"]]:
    """The lowest of the largest logits in the nucleus, and whether they hold all of it."""
    probabilities = jnp.exp(descending - normaliser[..., None])
    reached = jnp.cumsum(probabilities, axis=-1)
    last = jnp.sum(reached - probabilities < top_p, axis=-1, keepdims=True) - 1
    return jnp.take_along_axis(descending, last, axis=-1), reached[..., -1] >= top_p
