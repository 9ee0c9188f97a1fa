"""Drawing one token from logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


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
        among = jnp.where(_nucleus(among, filters.top_p), among, -jnp.inf)
    if filters.min_p:
        lowest = among.max(axis=-1, keepdims=True) + np.float32(np.log(filters.min_p))
        among = jnp.where(among >= lowest, among, -jnp.inf)
    return among, tokens


def _nucleus(logits: Float[Array, "B G K"], top_p: float) -> Bool[Array, "B G K"]:
    """Which are the likeliest whose probabilities reach `top_p`.

    Nothing is sorted: the lowest logit of the nucleus is found by halving, exactly, because there are 2^32 float32
    numbers. That is 32 sums over a vocabulary; a sort for every token costs several times as much.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    order = _as_integers(logits)

    def halve(_, bounds):
        low, high = bounds  # what is from `low` on reaches top_p, what is from `high` on does not
        middle = (low & high) + ((low ^ high) >> 1)  # their mean; the sum would overflow
        reaches = jnp.sum(jnp.where(order >= middle, probabilities, 0.0), axis=-1, keepdims=True) >= top_p
        return jnp.where(reaches, middle, low), jnp.where(reaches, high, middle)

    bounds = (order.min(axis=-1, keepdims=True), order.max(axis=-1, keepdims=True) + 1)
    return order >= jax.lax.fori_loop(0, 32, halve, bounds)[0]


def _as_integers(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """int32 numbers in the same order as these float32 ones."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
