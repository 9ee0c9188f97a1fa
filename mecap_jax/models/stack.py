"""Running a stack of layers: equal layers of a deep one are compiled once, and run in a loop.

The layers stay modules of their own, and their parameters keep their names; a program stacks their weights where it
begins, matrices in the dtype in which they are multiplied.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Fewer equal layers in a row are compiled one by one: a loop would cost more than it saves.
LOOPED_FROM = 6

# (layer, x) -> (what passes on to the next layer, what this one gives by itself).
Step = Callable[[Any, Any], tuple[Any, Any]]


def run_layers(
    layers: Sequence[nnx.Module], steps: Sequence[Step], x: Any, dtype: jnp.dtype, *, remat: bool = False
) -> tuple[Any, list[Any]]:
    """Takes `x` through a stack of layers.

    Args:
      steps: how each layer is called.
      dtype: in which the layers multiply.
      remat: the backward pass computes a layer's inside again instead of keeping it.

    Returns what comes out of the last layer, and what each gives by itself.
    """

    def key(i: int) -> tuple:
        graphdef, state = nnx.split(layers[i])
        # In a gradient, parameters that train are traced by another class. Below the first of them nothing has a
        # gradient; in a loop together with it, everything would.
        return steps[i], graphdef, *((x.shape, x.dtype, type(x)) for x in jax.tree.leaves(state))

    outputs = []
    for (step, *_), run in itertools.groupby(range(len(layers)), key):
        run = [layers[i] for i in run]
        if len(run) < LOOPED_FROM:
            for layer in run:
                one = functools.partial(step, layer)
                x, output = (jax.checkpoint(one) if remat else one)(x)
                outputs.append(output)
        else:
            x, stacked = _loop(run, step, x, dtype, remat)
            outputs += [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(len(run))]
    return x, outputs


def _loop(layers: Sequence[nnx.Module], step: Step, x: Any, dtype: jnp.dtype, remat: bool) -> tuple[Any, Any]:
    def stack(*leaves):
        matrix = leaves[0].ndim > 1 and jnp.issubdtype(leaves[0].dtype, jnp.floating)
        return jnp.stack([x.astype(dtype) for x in leaves] if matrix else leaves)

    graphdef = nnx.graphdef(layers[0])
    weights = jax.tree.map(stack, *map(nnx.state, layers))

    def body(x, state):
        return step(nnx.merge(graphdef, state), x)

    # Inside a loop nothing can be merged with the forward pass: no barriers are needed against it.
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if remat else body, x, weights)
