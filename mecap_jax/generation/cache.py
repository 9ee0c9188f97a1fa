"""The key-value cache of the completions: one buffer a layer, written in place inside the decoding loop."""

from __future__ import annotations

import jax.numpy as jnp

from mecap_jax.models.decoder import KeyValue, Prefix


def init_cache(prefix: Prefix, group_size: int, length: int) -> list[KeyValue]:
    """Zero buffers [B, K, G, length, H] for every layer of `prefix`, in the prefix's dtype.

    A list of per-layer buffers, not one stacked array: passing a stacked cache through a scan makes a second copy.
    """

    def buffer(prompt):
        batch, heads, _, head = prompt.shape
        return jnp.zeros((batch, heads, group_size, length, head), prompt.dtype)

    return [KeyValue(buffer(layer.keys), buffer(layer.values)) for layer in prefix.layers]
