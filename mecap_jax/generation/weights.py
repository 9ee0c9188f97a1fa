"""The weights that completions are sampled and scored with: gathered and rounded once, instead of at every use.

Training keeps parameters in float32 and divided over `fsdp`. A decoding loop that used them as they are would gather
and round every matrix for every token.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mecap_jax.sharding import gathered

_AT_ONCE = 2**30  # bytes that a program makes on a device; a parameter that is larger has one of its own


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
    for indices, convert in conversions(leaves, dtype, gather):
        for i, x in zip(indices, convert([leaves[i] for i in indices])):
            leaves[i] = x
    return jax.tree.unflatten(tree, leaves)


def conversions(
    leaves: Sequence[jax.Array | jax.ShapeDtypeStruct], dtype: str, gather: bool
) -> list[tuple[list[int], Callable]]:
    """The programs of `sampling_params`, each with the numbers of the parameters that it takes, and gives, as a list.

    Small ones share a program; what one makes is bounded, because XLA gathers it into temporaries first.
    """
    wanted = [as_used(x, dtype, gather) for x in leaves]
    parts: list[tuple[list[int], int]] = []
    for i, (x, (to, place)) in enumerate(zip(leaves, wanted)):
        if x.dtype == to and x.sharding.is_equivalent_to(place, len(x.shape)):
            continue
        size = math.prod(place.shard_shape(x.shape)) * to.itemsize
        indices, before = parts.pop() if parts and parts[-1][1] + size <= _AT_ONCE else ([], 0)
        parts.append(([*indices, i], before + size))
    return [(indices, _convert(*zip(*(wanted[i] for i in indices)))) for indices, _ in parts]


def as_used(x: jax.Array | jax.ShapeDtypeStruct, dtype: str, gather: bool) -> tuple[jnp.dtype, jax.sharding.Sharding]:
    """The dtype and the place in which `sampling_params` gives a parameter, or the shape of one."""
    dtype = jnp.dtype(dtype)
    rounded = len(x.shape) > 1 and x.dtype.itemsize > dtype.itemsize
    return dtype if rounded else x.dtype, gathered(x.sharding) if gather else x.sharding


@functools.lru_cache(maxsize=256)
def _convert(dtypes: tuple[jnp.dtype, ...], places: tuple[jax.sharding.Sharding, ...]):
    """One program, compiled once a run."""
    return jax.jit(lambda xs: [x.astype(dtype) for x, dtype in zip(xs, dtypes)], out_shardings=list(places))
