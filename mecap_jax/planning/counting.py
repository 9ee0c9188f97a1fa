"""What a program does, counted: FLOPs from its trace, bytes of collectives from its compiled text."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(jaxpr: Any, trips: int = 1) -> float:
    """FLOPs of all products and convolutions of a traced program, over all devices.

    The compiler's own count takes the body of a loop once. Here a scan counts as often as it runs, the body of a
    `while` loop, whose end depends on data, `trips` times, of branches the dearest, and a kernel as often as its grid
    has places. What is computed again in the backward pass is counted again.

    Args:
      jaxpr: of `jax.jit(f).trace(...)`, or a part of one.
      trips: how often each `while` loop runs.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        name, inside = equation.primitive.name, list(_inner(equation.params))
        if name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(sizes[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
        elif name == "cond":
            total += max(matmul_flops(branch, trips) for branch in inside)
        elif name == "while":
            total += trips * matmul_flops(equation.params["body_jaxpr"], trips)
        else:
            times = equation.params["length"] if name == "scan" else 1
            if name == "pallas_call":  # once in every place of its grid; those that it skips are counted
                times = math.prod(equation.params["grid_mapping"].grid)
            total += times * sum(matmul_flops(part, trips) for part in inside)
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (Jaxpr, ClosedJaxpr)):
                yield item


_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?P<type>.+?) (?P<operation>[\w\-]+)\((?P<rest>.*)$")
_SHAPE = re.compile(r"([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def collective_bytes(text: str, trips: int = 1) -> dict[str, float]:
    """Bytes that a device sends in a compiled program, by kind of collective.

    Of n devices that share in one, each sends (n - 1) / n of an all-gather's result and of what goes into a
    reduce-scatter or an all-to-all, twice that of an all-reduce (rings), and the whole of a permutation.

    Args:
      text: of `compiled.as_text()`.
      trips: how often a loop runs for which the compiler does not know it.
    """
    bodies: dict[str, list[re.Match]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            current = bodies.setdefault(begun[2], [])
            entry = begun[2] if begun[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(found)

    @functools.cache
    def of(name: str) -> dict[tuple[str, str], float]:
        """Bytes by kind and channel."""
        total: dict[tuple[str, str], float] = {}

        def add(key: tuple[str, str], size: float) -> None:
            # A TPU hides one collective behind several computations, and each of them names it: its channel tells.
            total[key] = max(size, total.get(key, 0.0))

        for instruction in bodies.get(name, ()):
            operation, rest = instruction["operation"], instruction["rest"]
            kind = operation.removesuffix("-start")
            if kind in _KINDS:
                channel = _CHANNEL.search(rest)
                size = _sent(kind, instruction["type"], rest, started=operation != kind)
                add((kind, channel[1] if channel else instruction[0]), size)
            called = _CALLED.findall(rest)
            for branches in _BRANCHES.findall(rest):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            known = _TRIPS.search(rest)
            times = (int(known[1]) if known else trips) if operation == "while" else 1
            for other in called:
                for key, size in of(other).items():
                    add(key, times * size)
        return total

    sums: dict[str, float] = {}
    for (kind, _), size in of(entry).items():
        sums[kind] = sums.get(kind, 0.0) + size
    return sums


def _sent(kind: str, type_: str, rest: str, started: bool) -> float:
    shapes = [
        math.prod(map(int, filter(None, sizes.split(",")))) * _width(name) for name, sizes in _SHAPE.findall(type_)
    ]
    # A start gives its operands back beside the results, and sometimes counters of a few bytes.
    size = sum(shapes) if not started else _of_results(kind, shapes)
    if kind == "collective-permute":
        return float(size)
    group = _group_size(rest)
    if kind == "reduce-scatter":
        size *= group
    return (2.0 if kind == "all-reduce" else 1.0) * size * (group - 1) / group


def _of_results(kind: str, shapes: list[int]) -> int:
    return max(shapes) if kind != "reduce-scatter" else min(size for size in shapes if size > 8)


# The axes of a mesh, the order of its devices where it is not their own, and the axes along which a group lies.
_NAMED = re.compile(r"replica_groups=\w*\[([^\]]*)\](?:, device_ids=\(\[[\d,]*\](?:T\([\d,]*\))?\))? \{([^}]*)\}")


def _group_size(rest: str) -> int:
    """How many devices share in a collective, from one of three spellings of its groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if shaped := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(shaped[1])
    if named := _NAMED.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # a part of an axis says its own size
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"a collective without groups: {rest[:200]}")


def _width(name: str) -> int:
    """Bytes of an element of an HLO type."""
    if name in ("pred", "token", "opaque"):
        return 1 if name == "pred" else 0
    bits = int(re.search(r"\d+", name)[0])
    return max(bits // 8, 1)
