"""`model.bin` of CTranslate2 (version 6 of the format): named arrays one behind the other, little-endian.

A number of the format and the model's name and revision come first. Each array has a name, its sides, a type and its
bytes; names that stand for other arrays follow, and are not read.
"""

from __future__ import annotations

import math
import struct

import ml_dtypes
import numpy as np

from mecap_jax.models.checkpoints.table import CheckpointError

_VERSION = 6
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)
_MOST_SIDES = 8


def read_ctranslate2(content: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the model's name, such as "WhisperSpec", and its arrays by name: views of `content`.

    Raises:
      CheckpointError: another version, or cut short, or ill-formed.
    """
    file = _Reader(content)
    try:
        if (version := file.number("I")) != _VERSION:
            raise ValueError(f"version {version}, only {_VERSION} is read")
        model, _revision, count = file.text(), file.number("I"), file.number("I")
        return model, dict(file.array() for _ in range(count))
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"no model.bin of CTranslate2, at byte {file.position}: {error}") from error


class _Reader:
    """What stands at a position, which moves on."""

    def __init__(self, content: bytes):
        self.content, self.position = content, 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self.content, self.position)
        self.position += struct.calcsize(f"<{kind}")
        return value

    def block(self, size: int) -> memoryview:
        if size > len(self.content) - self.position:
            raise ValueError(f"{size} bytes announced, {len(self.content) - self.position} left")
        self.position += size
        return memoryview(self.content)[self.position - size : self.position]

    def text(self) -> str:
        return bytes(self.block(self.number("H"))).decode().rstrip("\0")

    def array(self) -> tuple[str, np.ndarray]:
        name, sides = self.text(), self.number("B")
        if sides > _MOST_SIDES:
            raise ValueError(f"{name!r:.80} has {sides} sides")
        shape = tuple(self.number("I") for _ in range(sides))
        kind, size = self.number("B"), self.number("I")
        if kind >= len(_DTYPES):
            raise ValueError(f"{name!r:.80} has the unknown type {kind}")
        dtype = np.dtype(_DTYPES[kind])
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name!r:.80} has {size} bytes, which are no {dtype.name} {list(shape)}")
        return name, np.frombuffer(self.block(size), dtype).reshape(shape)
