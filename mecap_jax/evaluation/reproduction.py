"""What several seeds gave, as Markdown for the documentation: summary, tables by seed, and which claims hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mecap_jax.evaluation.intervals import Difference, bootstrap_over_seeds
from mecap_jax.evaluation.stage import StageResult
from mecap_jax.evaluation.tables import (
    condition_title,
    escape,
    format_value,
    markdown_table,
    metric_cell,
    ordered,
    ordered_stages,
    stage_title,
)

Report = Mapping[str, Any]
SUMMARY_KEYS = (
    "emotion_word_uar emotion_uar emotion_reward bleu_4 rouge_l meteor cider_d vocabulary_size distinct_captions"
).split()
_MUST_RISE = ("emotion_reward", "emotion_uar", "emotion_word_uar")
_MUST_NOT_FALL = ("bleu_4", "rouge_l", "meteor")


def summary_table(reports: Sequence[Report]) -> str:
    """The main metrics of every stage: mean over seeds, and the envelope of the seeds' own intervals."""
    stages = ordered_stages(stage for report in reports for stage in report["eval"])
    rows = []
    for key in SUMMARY_KEYS:
        cells = []
        for stage in stages:
            values = [report["eval"].get(stage, {}).get(key) for report in reports]
            bounds = [report["confidence"].get(stage, {}).get(key) for report in reports]
            known = None not in values
            envelope = (min(low for low, _ in bounds), max(high for _, high in bounds)) if None not in bounds else None
            cells.append(format_value(key, float(np.mean(values)) if known else None, envelope if known else None))
        rows.append([metric_cell(key), *cells])
    return f"{provenance(reports)}\n\n{markdown_table(['metric', *map(stage_title, stages)], rows)}\n"


def seeds_tables(reports: Sequence[Report], results: Sequence[Mapping[str, Mapping[str, StageResult]]]) -> str:
    """Two tables over seeds for the run's own clips, and two for each set of further ones: the mean of every metric of
    every stage, and the differences between all pairs of stages with their intervals (`bootstrap_over_seeds`).

    Args:
      reports: one a seed.
      results: one a seed: by name of the clips ("": the run's own) and stage.

    Raises:
      ValueError: the seeds were evaluated on different clips, or have not the same stages.
    """
    intervals = reports[0]["intervals"]
    brackets = f"{intervals['level']:.0%} intervals (bootstrap over {intervals['clusters']} and seeds)"
    parts = [provenance(reports, brackets)]
    for name in results[0]:
        parts += [f"The same stages on other clips, {escape(name)}:"] if name else []
        parts += _means_and_differences([found.get(name, {}) for found in results], intervals)
    return "\n\n".join(parts) + "\n"


def _means_and_differences(results: Sequence[Mapping[str, StageResult]], intervals: Mapping[str, Any]) -> list[str]:
    first = results[0]
    stages = ordered_stages(first)
    for found in results[1:]:
        if found.keys() != first.keys() or found[stages[0]].ids != first[stages[0]].ids:
            raise ValueError("seeds compare only where they have the same stages and were evaluated on the same clips")
    metrics = [{stage: result.metrics for stage, result in found.items()} for found in results]
    keys = ordered(key for stage in stages for key in metrics[0][stage])
    rows = [
        [metric_cell(key), *(_mean_cell(key, [found[stage].get(key) for found in metrics]) for stage in stages)]
        for key in keys
    ]
    clusters = [clip.cluster for clip in first[stages[0]].clips]
    compared = [key for key in _COMPARED if key in keys]
    differences = []
    for low, high in itertools.combinations(stages, 2):
        of_high, of_low = ([found[stage].statistics for found in results] for stage in (high, low))
        found = bootstrap_over_seeds(of_high, of_low, clusters, intervals["resamples"], intervals["level"])
        cells = [_difference_cell(key, found.get(key)) for key in compared]
        differences.append([f"{stage_title(high)} − {stage_title(low)}", *cells])
    return [
        markdown_table(["metric", *map(stage_title, stages)], rows),
        markdown_table(["difference", *map(metric_cell, compared)], differences),
    ]


# What systems are compared in.
_COMPARED = (
    "war uar eea fcr epc claims_true wheel_f1 affect_error emotion_word_uar emotion_uar retrieval bleu_4 rouge_l meteor"
).split()


def _mean_cell(key: str, values: Sequence[float | None]) -> str:
    return "" if None in values else format_value(key, float(np.mean(values)))


def _difference_cell(key: str, found: Difference | None) -> str:
    return "" if found is None or not np.isfinite(found.value) else format_value(key, found.value, found.interval, True)


def provenance(reports: Sequence[Report], brackets: str = "") -> str:
    """Where figures come from: data, seeds, intervals, machine, date.

    Args:
      brackets: what stands in brackets; by default the envelope of the seeds' own intervals.
    """
    first = reports[0]
    intervals, made, test = first["intervals"], first["made"], first["test"]
    data = "Synthetic corpus" if first["data"]["synthetic"] else "Corpus"
    dates = sorted({report["made"]["date"][:10] for report in reports})
    clusters = intervals["clusters"]
    seeds = ", ".join(str(report["seed"]) for report in reports)
    brackets = brackets or (
        f"the lowest and the highest bound of the seeds' own {intervals['level']:.0%} intervals (bootstrap over "
        f"{clusters})"
    )
    return (
        f"{data}, {test['clips']} test clips of {test[clusters]} held-out {clusters}; mean of seeds {seeds}; in "
        f"brackets {brackets}. {made['machine']}, JAX {made['packages']['jax']}, {' and '.join(dates)}."
    )


def seed_tables(reports: Sequence[Report]) -> str:
    """One table a seed, every metric with its interval, and what the model makes of one modality alone."""
    parts = []
    for report in reports:
        stages = ordered_stages(report["eval"])
        keys = ordered(key for stage in stages for key in report["eval"][stage])
        rows = [
            [
                metric_cell(k),
                *(format_value(k, report["eval"][s].get(k), report["confidence"][s].get(k)) for s in stages),
            ]
            for k in keys
        ]
        parts += [f"### Seed {report['seed']}", markdown_table(["metric", *map(stage_title, stages)], rows)]
        rows = [
            [f"{stage_title(stage)}, {condition_title(condition)}", *_cells(found, _MUST_RISE[1:])]
            for stage, conditions in report["ablation"].items()
            for condition, found in conditions.items()
        ]
        if rows:
            parts.append(markdown_table(["what it sees", *map(metric_cell, _MUST_RISE[1:])], rows))
    return "\n\n".join(parts) + "\n"


def _cells(found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [format_value(key, found["eval"].get(key), found["confidence"].get(key)) for key in keys]


def claims_table(reports: Sequence[Report]) -> str:
    """Which claims hold in which seeds, computed from the reports; `make reproduce` asks nothing else."""
    rows = []
    for title, holds in _claims_by_seed(reports[0]):
        found = [holds(report) for report in reports]
        where = ", ".join(str(report["seed"]) for report, ok in zip(reports, found) if ok)
        rows.append(
            [title, f"{sum(found)} of {len(found)}" + (f" (seeds {where})" if 0 < sum(found) < len(found) else "")]
        )
    for title, key, one, other in _claims_on_the_mean(reports[0]):
        means = [float(np.mean([report["eval"][stage][key] for report in reports])) for stage in (one, other)]
        verdict = "yes" if means[0] > means[1] else "equal" if means[0] == means[1] else "no"
        rows.append([title, f"{verdict}: {format_value(key, means[0])} against {format_value(key, means[1])}"])
    return markdown_table(["claim", "holds"], rows, numbers=False) + "\n"


def _claims_by_seed(report: Report) -> list[tuple[str, Callable[[Report], bool]]]:
    stages = report["eval"]
    claims: list[tuple[str, Callable[[Report], bool]]] = []
    if {"sft", "text_only"} <= set(stages):
        claims.append(("SFT above text only in first-word UAR, intervals apart", _apart))
    for stage, conditions in report["ablation"].items():
        if len(conditions) > 2:
            title = f"{stage_title(stage)}: everything above either modality alone, both UARs"
            claims.append((title, lambda r, stage=stage: _more_is_better(r["ablation"][stage])))
    if {"sft", "grpo"} <= set(stages):
        for key in _MUST_RISE:
            claims.append((f"Emo-GRPO above SFT in {metric_cell(key)}", lambda r, key=key: _gain(r, key) > 0))
        for key in _MUST_NOT_FALL:
            title = f"Emo-GRPO not below the lower bound of SFT in {metric_cell(key)}"
            claims.append((title, lambda r, key=key: _keeps(r, key)))
    return claims


def _claims_on_the_mean(report: Report) -> list[tuple[str, str, str, str]]:
    wanted = [
        ("Mean first-word UAR: Emo-GRPO above SFT of equal time", "emotion_word_uar", "grpo", "sft_control"),
        ("Mean first-word UAR: Emo-GRPO above the semantic reward alone", "emotion_word_uar", "grpo", "grpo_semantic"),
        ("Mean vocabulary: Emo-GRPO above SFT", "vocabulary_size", "grpo", "sft"),
    ]
    return [claim for claim in wanted if {claim[2], claim[3]} <= set(report["eval"])]


def _gain(report: Report, key: str) -> float:
    return report["eval"]["grpo"][key] - report["eval"]["sft"][key]


def _keeps(report: Report, key: str) -> bool:
    value, interval = report["eval"]["grpo"].get(key), report["confidence"]["sft"].get(key)
    return value is not None and interval is not None and value >= interval[0]


def _apart(report: Report) -> bool:
    (low, _), (_, high) = (report["confidence"][stage]["emotion_word_uar"] for stage in ("sft", "text_only"))
    return low > high


def _more_is_better(conditions: Mapping[str, Any]) -> bool:
    alone = [found["eval"] for condition, found in conditions.items() if condition != "all"]
    return all(conditions["all"]["eval"][key] > max(found[key] for found in alone) for key in _MUST_RISE[1:])


def replace_section(text: str, name: str, body: str) -> str:
    """Puts `body` between the lines `<!-- name: begin -->` and `<!-- name: end -->` of a document.

    Raises:
      ValueError: the document does not hold both lines, in this order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the document has no section between {begin!r} and {end!r}")
    return f"{head}{begin}\n\n{body.strip()}\n\n{end}{tail}"
