"""Damage to files, drawn from a seed: what a disk, a network and somebody hostile do to bytes."""

import copy
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 80_000_000)
_HEADER = 1024  # most fields that steer a parser stand among the first bytes, or the last


def mutants(files: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields `count` damaged files as (name of the original, bytes): number i depends on the seed and i only."""
    names = sorted(files)
    for i in range(count):
        name = names[i % len(names)]
        yield name, mutant(files[name], np.random.default_rng((seed, i)))


def mutant(data: bytes, random: np.random.Generator) -> bytes:
    """Returns the bytes with one to three changes of a random kind."""
    for _ in range(random.integers(1, 4)):
        if data:
            data = _KINDS[random.integers(len(_KINDS))](bytearray(data), random)
    return data


def json_mutant(value: Any, random: np.random.Generator) -> Any:
    """Returns a copy of a JSON value with one to three parts taken away, doubled, or put to something else."""
    value = copy.deepcopy(value)
    for _ in range(random.integers(1, 4)):
        places = list(_json_places(value))
        if not places:
            break
        container, key = places[random.integers(len(places))]
        action = random.integers(5)
        if action == 0:
            del container[key]
        elif action == 1 and isinstance(container, dict):
            container[_HOSTILE_NAMES[random.integers(len(_HOSTILE_NAMES))]] = container.pop(key)
        elif action == 1:
            container.insert(key, container[key])
        elif action == 2:
            other, other_key = places[random.integers(len(places))]
            container[key] = copy.deepcopy(other[other_key]) if other_key != key else None
        else:
            container[key] = copy.deepcopy(_HOSTILE_VALUES[random.integers(len(_HOSTILE_VALUES))])
    return value


def _json_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key or index) of every part of a JSON value."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(part, dict | list):
            yield from _json_places(part)


def _nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [{"a": value}]
    return value


_HOSTILE_NAMES = ("", "..", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "id", "x" * 5000, "__class__", "\u2028")
_HOSTILE_VALUES = (
    *_HOSTILE_NAMES,
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, -1e300, 1.5, float("nan"), float("inf"), [], {}, [[]]),
    *(
        [None] * 3,
        {"": {}},
        "NaN",
        "{",
        "[1",
        '{"overall": 3}',
        "\ufeff",
        "a,b;c\td",
        "'",
        '"',
        "\n",
        _nested(3),
        _nested(120),
    ),
)


def _place(data: bytearray, random: np.random.Generator) -> int:
    """A position: half of the time in the header or at the end, where a trailer stands."""
    header = min(_HEADER, len(data))
    near = int(random.integers(header))
    return (near, len(data) - 1 - near, *random.integers(len(data), size=2).tolist())[random.integers(4)]


def _flip_bits(data: bytearray, random: np.random.Generator) -> bytes:
    for _ in range(random.integers(1, 9)):
        data[_place(data, random)] ^= 1 << int(random.integers(8))
    return bytes(data)


def _overwrite(data: bytearray, random: np.random.Generator) -> bytes:
    at, size = _place(data, random), int(random.integers(1, 33))
    return bytes(data[:at] + random.bytes(size) + data[at + size :])


def _set_number(data: bytearray, random: np.random.Generator) -> bytes:
    """Puts an extreme value where a field of one, two, four or eight bytes may stand."""
    value = _EXTREMES[random.integers(len(_EXTREMES))]
    code = "BHIQ"[random.integers(4)]
    field = struct.pack("<>"[random.integers(2)] + code, value & (256 ** struct.calcsize("=" + code) - 1))
    at = _place(data, random)
    return bytes(data[:at] + field + data[at + len(field) :])


def _truncate(data: bytearray, random: np.random.Generator) -> bytes:
    return bytes(data[: random.integers(len(data) + 1)])


def _insert(data: bytearray, random: np.random.Generator) -> bytes:
    at, size = _place(data, random), int(random.integers(1, 65))
    return bytes(data[:at] + (bytes(size) if random.integers(2) else random.bytes(size)) + data[at:])


def _repeat(data: bytearray, random: np.random.Generator) -> bytes:
    begin, end = sorted(random.integers(len(data) + 1, size=2).tolist())
    return bytes(data[:end] + data[begin:])


def _cut_out(data: bytearray, random: np.random.Generator) -> bytes:
    at, size = _place(data, random), int(random.integers(1, 65))
    return bytes(data[:at] + data[at + size :])


def _blank(data: bytearray, random: np.random.Generator) -> bytes:
    begin, end = sorted(random.integers(len(data) + 1, size=2).tolist())
    return bytes(data[:begin] + bytes(end - begin) + data[end:])


_KINDS = (_flip_bits, _overwrite, _set_number, _set_number, _truncate, _insert, _repeat, _cut_out, _blank)
