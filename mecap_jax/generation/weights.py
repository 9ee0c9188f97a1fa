"""The weights that completions are sampled and scored with: gathered and rounded once, instead of at every use.

Training keeps parameters in float32 and divided over `fsdp`. A decoding loop that used them as they are would gather
and round every matrix for every token.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mecap_jax.sharding import gathered


def sampling_params(params: Any, dtype: str, gather: bool) -> Any:
    """Parameters, or a part of them, as programs without a gradient use them; they compute the same.

    Matrices come in the dtype that they are multiplied in, where they are stored in a wider one; norms and biases keep
    theirs. What need not change is the same array, so that on one device, in the dtype of storage, nothing is copied.

    Args:
      dtype: of matrix products.
      gather: every device (with `tensor`: every group of them) gets all of each parameter; the copy costs parameters
        times bytes of `dtype` until it is let go of.
    """
    leaves, tree = jax.tree.flatten(params)
    wanted = [as_used(x, dtype, gather) for x in leaves]
    changed = [i for i, (x, (to, place)) in enumerate(zip(leaves, wanted)) if not _is_so(x, to, place)]
    if changed:
        made = convert(*zip(*(wanted[i] for i in changed)))([leaves[i] for i in changed])
        for i, x in zip(changed, made):
            leaves[i] = x
    return jax.tree.unflatten(tree, leaves)


def as_used(x: jax.Array | jax.ShapeDtypeStruct, dtype: str, gather: bool) -> tuple[jnp.dtype, jax.sharding.Sharding]:
    """The dtype and the place in which `sampling_params` gives a parameter, or the shape of one."""
    dtype = jnp.dtype(dtype)
    rounded = x.ndim > 1 and x.dtype.itemsize > dtype.itemsize
    return dtype if rounded else x.dtype, gathered(x.sharding) if gather else x.sharding


def _is_so(x: jax.Array, dtype: jnp.dtype, place: jax.sharding.Sharding) -> bool:
    return x.dtype == dtype and x.sharding.is_equivalent_to(place, x.ndim)


@functools.lru_cache(maxsize=16)
def convert(dtypes: tuple[jnp.dtype, ...], places: tuple[jax.sharding.Sharding, ...]):
    """One program for all parameters, compiled once a run."""
    return jax.jit(lambda xs: [x.astype(dtype) for x, dtype in zip(xs, dtypes)], out_shardings=list(places))
