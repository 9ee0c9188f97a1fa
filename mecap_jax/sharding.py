"""Meshes, and where parameters and batches live on them.

The mesh has three axes: `data` (copies of the parameters), `fsdp` (parameters and optimiser state divided) and
`tensor` (heads, feed-forward and vocabulary divided). Parameters name their logical axes; `ShardingRules` says which
mesh axis each logical axis follows. One device is a mesh of size one: there is no second code path.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mecap_jax.config import MeshConfig

BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axis of every logical axis of a parameter (None: not divided)."""

    vocab: str | None = "tensor"
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"

    def spec(self, axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        """The partition of one parameter; a dimension that does not divide over its mesh axis stays whole.

        Raises:
          ValueError: two dimensions of one parameter follow the same mesh axis.
        """
        wanted = [None if axis is None else getattr(self, axis) for axis in axes]
        used = [axis for axis in wanted if axis is not None]
        if len(set(used)) != len(used):
            raise ValueError(
                f"logical axes {axes} follow the mesh axes {wanted}: one mesh axis cannot divide two dimensions"
            )
        placed = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(wanted, shape)]
        while placed and placed[-1] is None:  # as jit writes it: another spelling would compile every step twice
            placed.pop()
        return PartitionSpec(*placed)


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh over all devices of all processes. `config.validate_devices` has said whether it fits."""
    size = jax.device_count() // (config.fsdp * config.tensor) if config.data == -1 else config.data
    return jax.make_mesh(
        (size, config.fsdp, config.tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )


def single_device() -> Mesh:
    """A mesh of this process's first device."""
    return jax.make_mesh(
        (1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.local_devices()[:1]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are divided over the `data` and `fsdp` axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of a batch (a pytree of NumPy arrays) onto the mesh as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a batch-sharded array, in order."""
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def all_rows(rows: Any) -> Any:
    """Every process's rows (a pytree of NumPy arrays) on every process, for numbers that describe a whole batch."""
    if jax.process_count() == 1:
        return rows
    return multihost_utils.process_allgather(rows, tiled=True)
