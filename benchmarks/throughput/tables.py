"""Results as tables for people."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput.rounds import OURS, PHASES, SIDES, median

TITLES = {
    "text": "Text",
    "tunix": "Text, beside Tunix",
    "image": "Image and text",
    "embeddings": "A decoder on media embeddings",
    "clips": "Sound, video and text",
    "encoder": "Sentence encoder, sentences in batches of 64",
    "media": "Reading clips of 8 s (H.264 of three sizes, AAC; 16 frames and sound are kept)",
    "start": "From the command to the first step of `configs/grpo.py`",
    "0.5b": "A decoder of Qwen2.5-0.5B's shape on media embeddings",
    "3b": "A decoder of Qwen2.5-3B's shape on media embeddings",
}


def _others(steps: Sequence[Mapping[str, Any]]) -> float:
    return statistics.mean(step["others"] for step in steps)


def machine() -> dict[str, Any]:
    """The processor, its cores that may be used, and the memory."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    widest = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in facts.get("flags", "").split()]
    return {
        "processor": facts.get("model name", ""),
        "family": facts.get("cpu family", ""),
        "model": facts.get("model", ""),
        "instructions": widest,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    }


def _digits(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.3f}"


def table(result: Mapping[str, Any]) -> str:
    """A row's table: a column for each side."""
    return _steps_table(result) if OURS in result["sides"] else _part_table(result)


def _part_table(result: Mapping[str, Any]) -> str:
    """Of a part of the work: how long, and how much of the cores."""
    sides, ratios = result["sides"], result["ratios"]
    names = [name for name in SIDES if name in sides]
    lines = [
        f"#### {TITLES[result['row']]}",
        "",
        "| | s | a second | a second of a core | × |",
        "| --- |" + " ---: |" * 4,
    ]
    for name in names:
        if not (steps := sides[name].get("steps")):
            lines.append(f"| {SIDES[name].title} | – | – | – | – |")
            continue
        items, seconds = steps[0]["facts"]["items"], median(steps, "seconds")
        busy = statistics.median(step["facts"]["core_seconds"] for step in steps)
        ratio = f"**{ratios[name]['step']:.1f}**" if name in ratios else "1"
        lines.append(
            f"| {SIDES[name].title} | {_digits(seconds)} | {items / seconds:.2f} | {items / busy:.2f} | {ratio} |"
        )
    return "\n".join([*lines, *_about(result)])


def _steps_table(result: Mapping[str, Any]) -> str:
    work, sides, ratios = result["work"], result["sides"], result["ratios"]
    names = [name for name in SIDES if name in sides]
    completions = work["prompts"] * work["group"]

    def line(title: str, cell) -> str:
        return (
            f"| {title} | "
            + " | ".join(cell(name) if "steps" in sides[name] and sides[name]["steps"] else "–" for name in names)
            + " |"
        )

    def seconds(what: str):
        return lambda name: _digits(median(sides[name]["steps"], what))

    def rate(count: int):
        return lambda name: f"{count / median(sides[name]['steps'], 'seconds'):.2f}"

    def times(name: str) -> str:
        if name not in ratios:
            return "1"
        low, high = ratios[name]["step_range"]
        return f"**{ratios[name]['step']:.1f}** ({low:.1f}–{high:.1f})"

    shape = f"P = {work['prompt_tokens']:,}, G = {work['group']}, C = {work['completion_tokens']}"
    lines = [
        f"#### {TITLES[result['row']]}: {shape}",
        "",
        "| | "
        + " | ".join(f"{SIDES[name].title}, {work['dtype']}" if name == OURS else SIDES[name].title for name in names)
        + " |",
        "| --- |" + " ---: |" * len(names),
        line("step, s", seconds("seconds")),
        line("fastest step, s", lambda name: _digits(min(step["seconds"] for step in sides[name]["steps"]))),
        *(line(f"{phase}, s", seconds(phase)) for phase in PHASES),
        line("completion tokens/s", rate(completions * work["completion_tokens"])),
        line("prompts (clips)/s", rate(work["prompts"])),
        line("first step, s", lambda name: f"{sides[name]['first_step']['seconds']:.1f}"),
        line("cores busy with other things", lambda name: f"{_others(sides[name]['steps']):.1f}"),
        line("peak memory, GB", lambda name: f"{sides[name]['peak_gb']:.1f}"),
        line("× ours", times),
        line("× ours, fastest steps", lambda name: f"{ratios[name]['fastest']:.1f}" if name in ratios else "1"),
    ]
    lines += _about(result)
    if facts := [step["facts"] for step in sides[OURS].get("steps", ()) if "mfu" in step["facts"]]:
        whole, update = (statistics.median(fact[name] for fact in facts) for name in ("mfu", "mfu_update"))
        which = "that was measured in the same process" if _on(sides[OURS]) == "cpu" else "of the maker's data sheet"
        lines.append(f"Ours: {whole:.0%} of the matrix rate {which}, the update {update:.0%}.")
    if facts and (end := sides[OURS].get("end")):
        flops = statistics.median(fact["mfu_update"] * fact["peak_flops"] for fact in facts)
        read, copied = end["decode_bytes_per_s"], end["copy_bytes_per_s"]
        decoding, whole = _digits(end["rollout_s"] - end["first_token_s"]), _digits(end["rollout_s"])
        lines.append(
            f"The update reaches {flops / end['product_flops']:.0%} of the median rate of products of square matrices "
            f"({end['product_flops'] / 1e12:.2f} TFLOP/s). Decoding takes {decoding} of a roll-out's {whole} s and "
            f"reads weights and cache at {read / 1e9:,.0f} GB/s, {read / copied:.0%} of the rate of a copy (read and "
            f"written, {copied / 1e9:,.0f} GB/s)."
        )
    return "\n".join(lines)


def _about(result: Mapping[str, Any]) -> list[str]:
    """What could not be measured, and how and on what the rest was."""
    sides, about = result["sides"], result["machine"]
    first = next(iter(sides.values()))
    problems = [f"{SIDES[name].title}: {side['problem']}" for name, side in sides.items() if "problem" in side]
    on = _on(first)
    versions = {name: version for side in sides.values() for name, version in side.get("versions", {}).items()}
    return [
        *(["", *problems] if problems else []),
        "",
        f"Medians of {len(first.get('steps', ()))} each, "
        + ("in turn; " if on == "cpu" else f"one side behind the other; {on}, ")
        + f"{about['cores']} cores of {about['processor']} (family "
        f"{about['family']}, model {about['model']}; {', '.join(about['instructions'])}), {result['date']}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + ".",
    ]


def _on(side: Mapping[str, Any]) -> str:
    """The device of one of our sides, as JAX names it."""
    return side.get("settings", {}).get("device", "cpu")
