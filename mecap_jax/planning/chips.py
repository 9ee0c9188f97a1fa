"""Accelerators as their makers describe them, and the slices of them that there are."""

from __future__ import annotations

import dataclasses
import re

from mecap_jax.throughput import PEAKS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, one JAX device.

    Attributes:
      name: as topologies are called, "v5e" in "v5e:4x4".
      memory: bytes of high-bandwidth memory.
      flops: peak of bfloat16 products, FLOP/s.
      bandwidth: of its memory, bytes/s.
      links: of its links to other chips, all together and in one direction, bytes/s.
      slices: topologies of 4 to 256 chips, each twice the one before.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    links: float
    slices: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
# cloud.google.com/tpu/docs/v5e, v5p, v6e (2026-11): memory in GiB, HBM in GB/s, links (ICI) in GB/s
# both ways, of which one way is half.
CHIPS = {
    name: Chip(name, memory * 2**30, PEAKS[kind], bandwidth * 1e9, links / 2 * 1e9, slices)
    for name, kind, memory, bandwidth, links, slices in (
        ("v5e", "TPU v5e", 16, 819, 400, _FLAT),
        ("v5p", "TPU v5", 95, 2765, 1200, _CUBES),
        ("v6e", "TPU v6e", 32, 1640, 800, _FLAT),
    )
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:4x4".

    Raises:
      ValueError: not a topology's name, or of a chip that is not known; the message says what there is.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        known = "; ".join(f"{chip.name}:{', '.join(chip.slices)}" for chip in CHIPS.values())
        raise ValueError(f"--topology: there is no {topology!r}; there are, for example, {known}")
    return CHIPS[name]
