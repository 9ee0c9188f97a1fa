"""Running a stack of layers: equal layers of a deep one are compiled once, and run in a loop.

The layers stay modules of their own, and their parameters keep their names; a program stacks their weights where it
begins, matrices in the dtype in which they are multiplied.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mecap_jax.sharding import platform

# Fewer equal layers in a row are compiled one by one. A loop copies a layer's weights before it multiplies with them,
# which a small model on a CPU feels. With rematerialisation a CPU always loops: what is not in a loop, its back end
# computes again early, and saves nothing.
LOOPED_FROM = {"cpu": 12, "gpu": 6, "tpu": 6}


@dataclasses.dataclass(frozen=True)
class Running:
    """How layers run.

    Attributes:
      dtype: in which they multiply.
      remat: the backward pass computes a layer's inside again instead of keeping it, except for values of these names
        (`jax.ad_checkpoint.checkpoint_name`); None: everything is kept.
      unroll: no loops.
      rows: how the rows of what passes between layers are divided over a mesh; None on the default device.
    """

    dtype: jnp.dtype
    remat: tuple[str, ...] | None = None
    unroll: bool = False
    rows: NamedSharding | None = None

    @property
    def mesh(self) -> Mesh | None:
        return self.rows.mesh if self.rows else None

    @property
    def looped_from(self) -> int:
        on = platform(self.mesh)
        return 2 if on == "cpu" and self.remat is not None else LOOPED_FROM[on]

    def by_rows(self, x: Any) -> Any:
        """`x` with its rows divided. A partitioner that is left alone may divide the width instead, because the weights
        are."""
        if self.rows is None or self.rows.mesh.size == 1:
            return x
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, self.rows), x)

    def checkpointed(self, step: Callable, **options: bool) -> Callable:
        """`step` with its rematerialisation."""
        if self.remat is None:
            return step
        return jax.checkpoint(step, policy=jax.checkpoint_policies.save_only_these_names(*self.remat), **options)


# (layer, x) -> (what passes on to the next layer, what this one gives by itself).
Step = Callable[[Any, Any], tuple[Any, Any]]


def run_layers(layers: Sequence[nnx.Module], steps: Sequence[Step], x: Any, running: Running) -> tuple[Any, list[Any]]:
    """Takes `x` through a stack of layers, each called as its step says.

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
        if running.unroll or len(run) < running.looped_from:
            for layer in run:
                x, output = running.checkpointed(functools.partial(step, layer))(x)
                outputs.append(output)
        else:
            x, stacked = _loop(run, step, x, running)
            outputs += [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(len(run))]
    return x, outputs


def _loop(layers: Sequence[nnx.Module], step: Step, x: Any, running: Running) -> tuple[Any, Any]:
    def stack(*leaves):
        matrix = leaves[0].ndim > 1 and jnp.issubdtype(leaves[0].dtype, jnp.floating)
        return jnp.stack([x.astype(running.dtype) for x in leaves] if matrix else leaves)

    graphdef = nnx.graphdef(layers[0])
    weights = jax.tree.map(stack, *map(nnx.state, layers))

    def body(x, state):
        return step(nnx.merge(graphdef, state), running.by_rows(x))

    # Inside a loop nothing can be merged with the forward pass: no barriers are needed against it.
    return jax.lax.scan(running.checkpointed(body, prevent_cse=False), x, weights)
