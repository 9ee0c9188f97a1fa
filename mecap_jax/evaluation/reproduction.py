"""What several seeds gave, as Markdown for the documentation: summary, tables by seed, and what is above what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mecap_jax.evaluation.intervals import Difference, difference_over_seeds
from mecap_jax.evaluation.stage import StageResult
from mecap_jax.evaluation.tables import (
    ABLATION_KEYS,
    ABOVE,
    ALIKE,
    BELOW,
    COMPARED,
    condition_title,
    escape,
    format_value,
    markdown_table,
    metric_cell,
    ordered,
    ordered_stages,
    pairs,
    reward_verdict,
    stage_title,
    verdict,
    verdict_cells,
)

Report = Mapping[str, Any]
SUMMARY_KEYS = (
    "emotion_word_uar emotion_uar emotion_reward bleu_4 rouge_l meteor cider_d vocabulary_size distinct_captions"
).split()
# A seed's scored stages, by the name of the clips ("": the run's own) and by stage.
Results = Mapping[str, Mapping[str, StageResult]]
MAIN_SECTION = "results"  # of the main recipe, in the documentation and in the README
_FEW_SEEDS = 5
_UAR = ("emotion_uar", "emotion_word_uar")


class ReproductionError(ValueError):
    """Runs that cannot stand in one table."""


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


def seeds_tables(reports: Sequence[Report], results: Sequence[Results], ablation: Sequence[Results] = ()) -> str:
    """Three tables over seeds for the run's own clips, and three for each set of further ones: what is above what, the
    mean of every metric of every stage, and the differences between all pairs of stages with their intervals
    (`difference_over_seeds`).

    Args:
      reports: one a seed.
      results: one a seed.
      ablation: as in `claims_table`, of the run's own clips.

    Raises:
      ReproductionError: the seeds have not the same stages, or stages were evaluated on different clips or speakers.
    """
    intervals = reports[0]["intervals"]
    if any(by_name.keys() != results[0].keys() for by_name in results):
        raise ReproductionError(
            f"seeds were evaluated on different sets of clips: {[list(found) for found in results]}"
        )
    level, clusters = intervals["level"], intervals["clusters"]
    brackets = f"{level:.0%} intervals over {clusters} and seeds (two-way variance, Student's t)"
    parts = [provenance(reports, brackets)]
    for name in results[0]:
        parts += [f"The same stages on other clips, {escape(name)}:"] if name else []
        found = [by_name[name] for by_name in results]
        parts.append(claims_table(reports, found, () if name else ablation))
        parts += _means_and_differences(found, level)
    return "\n\n".join(filter(None, parts)) + "\n"


def claims_table(
    reports: Sequence[Report], results: Sequence[Mapping[str, StageResult]], ablation: Sequence[Results] = ()
) -> str:
    """What is above what over all seeds, by the intervals of paired differences and by nothing else; and what the
    reward did, where there is a twin without it.

    Args:
      reports: one a seed.
      results: one a seed, by stage.
      ablation: one a seed: by stage and modality, where the stage saw no other.

    Raises:
      ReproductionError: as in `seeds_tables`.
    """
    level, kind = reports[0]["intervals"]["level"], reports[0]["intervals"]["clusters"]
    seeds = [report["seed"] for report in reports]
    check_alike(seeds, results)
    rows, of_grpo = [], {}
    for first, second in pairs(results[0]):
        found = _compare([by_stage[first] for by_stage in results], [by_stage[second] for by_stage in results], level)
        verdicts = {key: _verdict(found[key]) for key in COMPARED if key in found}
        rows.append([f"{stage_title(first)} against {stage_title(second)}", *verdict_cells(verdicts)])
        if first == "grpo":
            of_grpo[second] = verdicts
    for stage, conditions in ablation[0].items() if ablation else ():
        whole = [by_stage[stage] for by_stage in results]
        for condition in conditions:
            alone = [by_stage[stage][condition] for by_stage in ablation]
            check_alike(seeds, [{stage: a, condition: b} for a, b in zip(whole, alone)])
            found = _compare(whole, alone, level)
            title = f"{stage_title(stage)}: {condition_title('all')} against {condition_title(condition)}"
            rows.append([title, *verdict_cells({key: _verdict(found[key]) for key in ABLATION_KEYS if key in found})])
    table = markdown_table(["over all seeds", f"{ABOVE} in", f"{BELOW} in", f"{ALIKE} in"], rows, numbers=False)
    method = (
        f"By {level:.0%} intervals of paired differences over {kind} and seeds; of so many comparisons some are told "
        "apart by chance."
    )
    return "\n\n".join(filter(None, (method, table, reward_verdict(of_grpo)))) if rows else ""


def check_alike(seeds: Sequence[object], results: Sequence[Mapping[str, StageResult]]) -> None:
    """Checks that all stages of all seeds were evaluated on the same clips of the same speakers.

    Args:
      seeds: what each is called.
      results: one a seed, by stage.

    Raises:
      ReproductionError: names seed and stage, and the clips or the stages that differ.
    """
    stages = list(results[0])
    clusters = {clip.id: clip.cluster for clip in results[0][stages[0]].clips}
    for seed, found in zip(seeds, results):
        if found.keys() != results[0].keys():
            raise ReproductionError(f"seed {seeds[0]} has the stages {stages}, seed {seed} {list(found)}")
        for stage, result in found.items():
            theirs = {clip.id: clip.cluster for clip in result.clips}
            if list(theirs.items()) != list(clusters.items()):
                differing = sorted({*theirs.items()} ^ {*clusters.items()}) or sorted(clusters.items())
                named = ", ".join(f"{clip!r} of {cluster!r}" for clip, cluster in differing[:3])
                raise ReproductionError(
                    f"seed {seed}, {stage}: evaluated on other clips than seed {seeds[0]}, {stages[0]} "
                    f"({len(theirs)} and {len(clusters)} clips; different: {named})"
                )


def _compare(first: Sequence[StageResult], second: Sequence[StageResult], level: float) -> dict[str, Difference]:
    clusters = [clip.cluster for clip in first[0].clips]
    one, other = ([result.statistics for result in system] for system in (first, second))
    return difference_over_seeds(one, other, clusters, level)


def _verdict(difference: Difference) -> str:
    return verdict(*(difference.interval or (None, None)))


def _means_and_differences(results: Sequence[Mapping[str, StageResult]], level: float) -> list[str]:
    stages = ordered_stages(results[0])
    metrics = [{stage: result.metrics for stage, result in found.items()} for found in results]
    keys = ordered(key for stage in stages for key in metrics[0][stage])
    rows = [
        [metric_cell(key), *(_mean_cell(key, [found[stage].get(key) for found in metrics]) for stage in stages)]
        for key in keys
    ]
    compared = [key for key in COMPARED if key in keys]
    differences = []
    for low, high in itertools.combinations(stages, 2):
        found = _compare([by_stage[high] for by_stage in results], [by_stage[low] for by_stage in results], level)
        cells = [_difference_cell(key, found.get(key)) for key in compared]
        differences.append([f"{stage_title(high)} − {stage_title(low)}", *cells])
    return [
        markdown_table(["metric", *map(stage_title, stages)], rows),
        markdown_table(["difference", *map(metric_cell, compared)], differences),
    ]


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
    caveat = ""
    if not brackets:
        brackets = (
            f"the lowest and the highest bound of the seeds' own {intervals['level']:.0%} intervals (bootstrap over "
            f"{clusters})"
        )
        caveat = f" They know nothing of what other seeds would give, and of few {clusters} they are too narrow."
    if len(reports) < _FEW_SEEDS:
        caveat += (
            f" With fewer than {_FEW_SEEDS} seeds intervals mostly speak for the {clusters}, and hold the truth less "
            f"often than in {intervals['level']:.0%} of the cases."
        )
    return (
        f"{data}, {test['clips']} test clips of {test[clusters]} held-out {clusters}; mean of {len(reports)} "
        f"{'seed' if len(reports) == 1 else 'seeds'} ({seeds}); in brackets {brackets}.{caveat} {made['machine']}, "
        f"JAX {made['packages']['jax']}, {' and '.join(dates)}."
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
            [f"{stage_title(stage)}, {condition_title(condition)}", *_cells(found, _UAR)]
            for stage, conditions in report["ablation"].items()
            for condition, found in conditions.items()
        ]
        if rows:
            parts.append(markdown_table(["what it sees", *map(metric_cell, _UAR)], rows))
    return "\n\n".join(parts) + "\n"


def _cells(found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [format_value(key, found["eval"].get(key), found["confidence"].get(key)) for key in keys]


def section_of(own: str, changes: Sequence[str], named: str | None) -> str:
    """Returns the section that tables go into: the recipe's own one is for the recipe as it is.

    Args:
      own: the recipe's section.
      changes: in what it is another experiment.
      named: the section that was asked for, if any.

    Raises:
      ReproductionError: tables of something else would take the place of a recipe's own.
    """
    section = named or own
    if section == own and changes or section == MAIN_SECTION != own:
        why = f"with {', '.join(changes)} these" if changes else "these"
        raise ReproductionError(
            f"{why} are not the results of the section {section!r}; they need one of their own (--section=NAME), "
            "between the lines '<!-- NAME: begin -->' and '<!-- NAME: end -->' of the document"
        )
    return section


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
