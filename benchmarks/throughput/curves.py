"""Curves of a sweep: what a step takes and holds, by one dimension of the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.throughput.cost import cost
from benchmarks.throughput.models import DECODER
from benchmarks.throughput.rounds import SIDES, median
from benchmarks.throughput.work import Work
from mecap_jax.evaluation.plot_style import STYLE

_COLOURS = ("#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
_AXES = {
    "prompt_tokens": "tokens of a prompt (P)",
    "group": "completions of a prompt (G)",
    "completion_tokens": "tokens of a completion (C)",
}


def plot_sweep(results: Sequence[Mapping[str, Any]], dimension: str, path: Path) -> None:
    """Draws seconds and peak memory of a step of every side over a dimension of the work, both axes by factors."""
    results = sorted(results, key=lambda result: result["work"][dimension])
    fixed = [f"{name[0].upper()} = {results[0]['work'][name]}" for name in _AXES if name != dimension]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        seconds, memory = figure.subplots(1, 2)
        for colour, (name, side) in zip(_COLOURS, SIDES.items()):
            measured = [result for result in results if result["sides"].get(name, {}).get("steps")]
            if not measured:
                continue
            x = [result["work"][dimension] for result in measured]
            sides = [result["sides"][name] for result in measured]
            style = dict(color=colour, marker="o", markersize=5, linewidth=2, label=side.title)
            seconds.plot(x, [median(side["steps"], "seconds") for side in sides], **style)
            memory.plot(x, [side["peak_gb"] for side in sides], **style)
        for axis, title in ((seconds, "Seconds a step"), (memory, "Peak memory, GB")):
            axis.set(title=title, xlabel=_AXES[dimension], xscale="log", yscale="log")
            axis.set_xticks([result["work"][dimension] for result in results])
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter(ScalarFormatter())
                side.set_minor_formatter(NullFormatter())
            axis.grid(color="#DDDDDD", linewidth=0.8)
        seconds.legend(title=", ".join(fixed))
        figure.savefig(path, dpi=150)


def sweep_table(results: Sequence[Mapping[str, Any]], dimension: str) -> str:
    """The same as a table: seconds and GB of each side, their ratio, and what it is in operations by `cost`."""
    names = [name for name in SIDES if any(name in result["sides"] for result in results)]
    lines = [
        f"| {dimension} | "
        + " | ".join(f"{SIDES[name].title}, s | GB" for name in names)
        + " | × ours | × operations |",
        "| ---: |" + " ---: | ---: |" * len(names) + " ---: | ---: |",
    ]
    for result in sorted(results, key=lambda result: result["work"][dimension]):
        cells = []
        for name in names:
            side = result["sides"].get(name, {})
            measured = side.get("steps")
            cells += [f"{median(measured, 'seconds'):.2f}", f"{side['peak_gb']:.1f}"] if measured else ["–", "–"]
        ratios = [f"{ratio['step']:.1f}" for ratio in result["ratios"].values()]
        operations = [cost(Work(**result["work"]), DECODER, shared).operations for shared in (False, True)]
        cells += [", ".join(ratios) or "–", f"{operations[0] / operations[1]:.1f}"]
        lines.append(f"| {result['work'][dimension]:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
