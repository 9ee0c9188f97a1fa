"""How rows are spread over devices: every row once, evenly, never more at a time than memory allows."""

import numpy as np
import pytest

from mecap_jax.config import MeshConfig
from mecap_jax.sharding import Division, divide, fitting_mesh, local_shards, make_mesh


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=4), MeshConfig(fsdp=2, tensor=4)])
@pytest.mark.parametrize("rows, at_once", [(0, 0), (1, 0), (12, 0), (12, 1), (24, 2), (100, 7)])
def test_every_row_has_one_place(config, rows, at_once):
    mesh = make_mesh(config)
    division = divide(rows, mesh, at_once)
    places = division.places(local_shards(mesh))
    assert division.shards == 8 // config.tensor and division.size <= (at_once or rows or 1)
    assert places.shape == (division.parts, division.size * division.shards)
    assert sorted(places.ravel()) == list(range(places.size)) and places.size >= rows
    assert division.filled == 1 - rows / places.size
    # Not a whole micro-batch, nor a whole round of rows, is only filled up.
    assert rows == 0 or (places.min(axis=1) < rows).all() and places.size - rows < division.parts * division.shards
    # Each micro-batch is a run of rows, whatever the mesh is.
    assert all(set(part) == set(range(min(part), max(part) + 1)) for part in places)


def test_processes_share_the_places():
    division = Division(rows=21, parts=2, size=3, shards=4)
    mine, theirs = division.places([0, 1]), division.places([2, 3])
    np.testing.assert_array_equal(mine[0], [0, 4, 8, 1, 5, 9])
    assert sorted(np.concatenate([mine, theirs]).ravel()) == list(range(24))
    assert abs((mine < 21).sum() - (theirs < 21).sum()) <= 2


@pytest.mark.parametrize(
    "trained, found",
    [
        (MeshConfig(), MeshConfig()),
        (MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=2, tensor=2)),
        (MeshConfig(fsdp=64), MeshConfig(fsdp=8)),
        (MeshConfig(fsdp=3, tensor=12), MeshConfig(fsdp=1, tensor=4)),
    ],
)
def test_a_run_fits_onto_the_eight_devices_that_are_there(trained, found):
    assert fitting_mesh(trained) == found
    make_mesh(found)
