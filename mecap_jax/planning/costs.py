"""What a step would cost on given devices: memory, work, traffic, and the time that it cannot go below."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mecap_jax.config import Bucket, Config
from mecap_jax.planning.chips import Chip
from mecap_jax.planning.counting import collective_bytes, matmul_flops
from mecap_jax.planning.programs import Program, StagePlan, gigabytes, parameter_counts, plan_stage

_GIGA = {"K": 2**10 / 1e9, "M": 2**20 / 1e9, "G": 2**30 / 1e9}
# What libtpu says of a program that needs too much: all that it uses, or its temporaries alone.
_OUT_OF_MEMORY = re.compile(r"(Used |HLO temporaries \()([\d.]+)([KMG])\w*\)? (?:of|exceeds) .*hbm", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call of a program costs; of one device.

    Attributes:
      calls: how often a step runs it.
      arguments_gb, temporaries_gb: of memory by the compiler; None where it gave up because memory does not suffice
        (and does not say it).
      copies_gb: weights beside what is kept, in the dtype and the place in which they are sampled with.
      needed_gb: what the compiler says that it needs, or at least needs, where it gave up; else None.
      tflops: of products, 1e12, its share of those of all devices; what is computed again in a backward pass counts.
      collective_gb: sent, by kind of collective.
      compiler_seconds: the compiler's own estimate, which is not of loops (and on some platforms negative); None
        where it gives none.
      compile_seconds: what tracing and compiling took.
    """

    calls: int
    arguments_gb: float | None
    temporaries_gb: float | None
    copies_gb: float
    needed_gb: float | None
    tflops: float
    collective_gb: dict[str, float]
    compiler_seconds: float | None
    compile_seconds: float


def cost_of(program: Program, devices: int) -> Cost:
    """Traces and compiles a program for the devices that its shapes name.

    Of several that run one behind the other, memory is that of the largest.
    """
    costs = [_cost_of(program, trace, devices) for trace in program.traces]
    lacking = [cost.needed_gb for cost in costs if cost.needed_gb]
    arguments, temporaries = (
        max((x for x in (getattr(cost, name) for cost in costs) if x is not None), default=None)
        for name in ("arguments_gb", "temporaries_gb")
    )
    sent: dict[str, float] = {}
    for cost in costs:
        sent = {kind: sent.get(kind, 0.0) + cost.collective_gb.get(kind, 0.0) for kind in {*sent, *cost.collective_gb}}
    estimates = [cost.compiler_seconds for cost in costs]
    return Cost(
        program.calls,
        None if lacking else arguments,
        temporaries,
        costs[0].copies_gb,
        max(lacking, default=None),
        sum(cost.tflops for cost in costs),
        dict(sorted(sent.items())),
        None if None in estimates else sum(estimates),
        sum(cost.compile_seconds for cost in costs),
    )


def _cost_of(program: Program, trace: Callable[[], jax.stages.Traced], devices: int) -> Cost:
    began = time.perf_counter()
    traced, copies = trace(), gigabytes(program.copies)
    tflops = matmul_flops(traced.jaxpr, program.trips) / devices / 1e12
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not (said := _OUT_OF_MEMORY.search(str(error))):
            raise
        needed = float(said[2]) * _GIGA[said[3]]
        temporaries = needed if "temporaries" in said[1] else None
        return Cost(program.calls, None, temporaries, copies, needed, tflops, {}, None, time.perf_counter() - began)
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis() or {}
    sent = collective_bytes(compiled.as_text(), program.trips)
    return Cost(
        program.calls,
        memory.argument_size_in_bytes / 1e9,
        memory.temp_size_in_bytes / 1e9,
        copies,
        None,
        tflops,
        {kind: size / 1e9 for kind, size in sorted(sent.items())},
        counted.get("optimal_seconds"),
        time.perf_counter() - began,
    )


def plan(
    config: Config,
    stage: str,
    mesh: Mesh,
    bucket: Bucket,
    chip: Chip | None,
    tell: Callable[[str], Any],
    counted_only: bool = False,
) -> dict[str, Any]:
    """What a step of a stage costs on a mesh, as a JSON tree; `tell` is told of every program.

    Without `chip` there is no time, and nothing to fit into. With `counted_only`, and where what is kept does not fit,
    nothing is compiled: what is kept is all that is known then.
    """
    staged = plan_stage(config, stage, mesh, bucket)
    kept = {name: gigabytes(tree) for name, tree in staged.kept.items()}
    kept["batches"] = gigabytes(staged.batch) * staged.division.parts
    total, trains = parameter_counts(config, mesh)
    hopeless = chip is not None and sum(kept.values()) > chip.memory / 1e9
    costs = {}
    for name, program in {} if counted_only or hopeless else staged.programs.items():
        costs[name] = cost_of(program, mesh.size)
        tell(f"  {name}: {_in_words(costs[name])}")
    beside = [(cost.temporaries_gb or 0.0) + cost.copies_gb for cost in costs.values()]
    needed = sum(kept.values()) + max(beside, default=0.0)
    lacking = [cost.needed_gb for cost in costs.values() if cost.needed_gb]
    result = {
        "config": config.name,
        "stage": stage,
        "mesh": dict(mesh.shape),
        "device": mesh.devices.flat[0].device_kind,
        "bucket": dataclasses.asdict(bucket),
        "parameters": total,
        "trainable_parameters": trains,
        "rows_a_step": staged.division.rows,
        "micro_batches": staged.division.parts,
        "filled_up": staged.division.filled,
        "kept_gb": kept,
        "programs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
        "needed_gb": float(max([needed, *lacking])),
    }
    if chip is not None:
        result |= {
            "memory_gb": chip.memory / 1e9,
            "fits": bool(not lacking and needed <= chip.memory / 1e9),
            **(_times(config, staged, costs, mesh, chip) if costs else {}),
        }
    return result


def _times(config: Config, staged: StagePlan, costs: dict[str, Cost], mesh: Mesh, chip: Chip) -> dict[str, Any]:
    """The time below which a step cannot go: of products at the chip's peak, of what decoding has to read, of links.

    Each program takes at least the longest of the three, as if they overlapped perfectly.
    """
    seconds, computing = {}, 0.0
    for name, cost in costs.items():
        products = cost.tflops * 1e12 / chip.flops
        links = sum(cost.collective_gb.values()) * 1e9 / chip.links
        reading = 0.0
        if name == "sample":
            # Every token reads the decoder's weights, in the dtype in which they compute, once.
            weights = staged.kept["parameters"]["language_model"]
            size = sum(np.prod(x.shape) for x in jax.tree.leaves(weights)) * np.dtype(config.model.dtype).itemsize
            reading = staged.programs[name].trips * size / mesh.shape["tensor"] / chip.bandwidth
        seconds[name] = cost.calls * max(products, links, reading)
        computing += cost.calls * products
    whole = sum(seconds.values())
    return {"seconds_at_least": seconds | {"step": whole}, "utilisation_at_most": computing / whole if whole else 0.0}


def _in_words(cost: Cost) -> str:
    if cost.needed_gb:
        return f"needs {cost.needed_gb:.1f} GB, more than there is ({cost.compile_seconds:.0f} s)"
    sent = sum(cost.collective_gb.values())
    return (
        f"{cost.temporaries_gb:.2f} GB of temporaries beside {cost.arguments_gb:.2f} GB, {cost.tflops:.2f} TFLOP, "
        f"{sent:.2f} GB sent, {cost.calls} times a step ({cost.compile_seconds:.0f} s)"
    )
