"""Meshes, and where parameters and batches live on them.

The mesh has three axes: `data` (copies of the parameters), `fsdp` (parameters and optimiser state divided) and
`tensor` (heads, feed-forward and vocabulary divided). Parameters name their logical axes; `ShardingRules` says which
mesh axis each logical axis follows. One device is a mesh of size one: there is no second code path.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mecap_jax.config import ConfigError, MeshConfig
from mecap_jax.json_files import to_json

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


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes, or over these. `config.validate_devices` has said whether it fits.

    Raises:
      ConfigError: devices that share rows are on different hosts.
    """
    devices = jax.devices() if devices is None else devices
    size = len(devices) // (config.fsdp * config.tensor) if config.data == -1 else config.data
    mesh = jax.make_mesh(
        (size, config.fsdp, config.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )
    for sharing in mesh.devices.reshape(-1, config.tensor):
        if len({device.process_index for device in sharing}) > 1:
            raise ConfigError(
                f"config key 'mesh.tensor': {config.tensor} devices share rows, and must be on one host, which has "
                f"{sum(device.process_index == devices[0].process_index for device in devices)}"
            )
    return mesh


def fitting_mesh(config: MeshConfig) -> MeshConfig:
    """The mesh for what was trained on `config`, on the devices that are there: divided likewise as far as they go."""
    tensor = math.gcd(config.tensor, jax.local_device_count())
    return MeshConfig(fsdp=math.gcd(config.fsdp, jax.device_count() // tensor), tensor=tensor, gather=config.gather)


def single_device() -> Mesh:
    """A mesh of this process's first device."""
    return jax.make_mesh(
        (1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.local_devices()[:1]
    )


def platform(mesh: Mesh | None) -> str:
    """What programs for a mesh (which need not be attached) or for the default device run on: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are divided over the `data` and `fsdp` axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def gathered(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Where a parameter is once it is no longer divided over `fsdp`; heads and layers stay divided over `tensor`."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    kept = [None if axis == "fsdp" else axis for axis in sharding.spec]
    while kept and kept[-1] is None:  # see `ShardingRules.spec`
        kept.pop()
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


@dataclasses.dataclass(frozen=True)
class Division:
    """How the rows of a batch are spread over a mesh: `parts` micro-batches, each with `size` rows on every shard.

    A shard is one device, or the devices along `tensor`, which hold the same rows. Rows are dealt out one shard after
    the other, so that every part holds a run of consecutive rows whatever the mesh is. Places behind the last row are
    filled up with rows that do not count.
    """

    rows: int
    parts: int
    size: int
    shards: int

    @property
    def filled(self) -> float:
        """The share of the places, and so of the work, that is only filled up."""
        return 1 - self.rows / (self.parts * self.size * self.shards)

    def places(self, shards: Sequence[int]) -> np.ndarray:
        """int [parts, len(shards) * size]: the rows of the batch that `shards` hold; `self.rows` and more fill up."""
        numbers = np.arange(self.parts * self.size * self.shards).reshape(self.parts, self.size, self.shards)
        return numbers[..., list(shards)].swapaxes(1, 2).reshape(self.parts, -1)


def divide(rows: int, mesh: Mesh, at_once: int = 0) -> Division:
    """Spreads `rows` evenly, with at most `at_once` of them on a device at a time; 0: as many as there are."""
    shards = shard_count(mesh)
    each = max(1, -(-rows // shards))
    parts = -(-each // (at_once or each))
    return Division(rows, parts, -(-each // parts), shards)


def shard_count(mesh: Mesh) -> int:
    """How many parts the rows of a batch are divided into."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def local_shards(mesh: Mesh) -> list[int]:
    """The shards of which this process holds the rows, in the order in which `put_batch` takes them."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((shard_count(mesh),)).values()
    return sorted({index[0].start or 0 for index in indices})


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


def all_items(items: list[Any]) -> list[Any]:
    """Every process's items (JSON trees) on every process, those of the first process first."""
    if jax.process_count() == 1:
        return items
    text = np.frombuffer(to_json(items).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, max(lengths) - len(text))))
    return [item for text, length in zip(texts, lengths) for item in json.loads(text[:length].tobytes())]
