"""What reinforcement learning adds to SFT of different lengths: from where on a reward teaches more than supervision
does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from mecap_jax.evaluation.intervals import difference_over_seeds
from mecap_jax.evaluation.plot_style import STYLE, colour, grid, legend, marker, metric_title, save
from mecap_jax.evaluation.reproduction import check_alike, provenance
from mecap_jax.evaluation.stage import StageResult
from mecap_jax.evaluation.tables import (
    COMPARED,
    format_value,
    markdown_table,
    metric_cell,
    ordered_stages,
    stage_title,
    verdict,
)

BUDGET_SECTION = "budget"  # of the documentation
KEYS = ("emotion_word_uar", "claims_true", "bleu_4", "vocabulary_size")  # where there are such
# Of every length of SFT, the scored stages of each seed.
Budgets = Mapping[int, Sequence[Mapping[str, StageResult]]]


def budget_tables(reports: Sequence[Mapping[str, Any]], budgets: Budgets) -> str:
    """Means over seeds by length of SFT and stage; and what the main stage has above each other stage of the same
    length, with intervals over clusters and seeds (`difference_over_seeds`).

    Args:
      reports: of one length, one a seed: where the figures come from.
      budgets: at least the stages "sft" and "grpo", the same of every length and seed.

    Raises:
      ReproductionError: stages were evaluated on different clips or speakers.
    """
    stages = _stages(budgets)
    check_alike(
        [f"{report['seed']} behind {steps} steps" for steps in budgets for report in reports],
        [{stage: found[stage] for stage in stages} for seeds in budgets.values() for found in seeds],
    )
    keys = _keys(budgets, stages)
    level, clusters = reports[0]["intervals"]["level"], reports[0]["intervals"]["clusters"]
    means, compared = [], []
    for steps, seeds in sorted(budgets.items()):
        for stage in stages:
            cells = [format_value(key, _mean(seeds, stage, key)) for key in keys]
            means.append([str(steps), stage_title(stage), *cells])
        for other in stages:
            if other == "grpo":
                continue
            system, against = ([found[name].statistics for found in seeds] for name in ("grpo", other))
            found = difference_over_seeds(system, against, [c.cluster for c in seeds[0]["sft"].clips], level)
            cells = [format_value(key, found[key].value, found[key].interval, True) for key in keys]
            says = verdict(*(found[keys[0]].interval or (None, None)))
            compared.append([str(steps), f"{stage_title('grpo')} − {stage_title(other)}", *cells, says])
    titles = [metric_cell(key) for key in keys]
    brackets = f"{level:.0%} intervals over {clusters} and seeds (two-way variance, Student's t)"
    return "\n\n".join(
        (
            provenance(reports, brackets),
            markdown_table(["steps of SFT", "stage", *titles], means),
            markdown_table(["steps of SFT", "difference", *titles, f"by {metric_title(keys[0])}"], compared),
        )
    )


def plot_budget(budgets: Budgets, path: Path) -> None:
    """Draws a panel a measure: its mean over seeds by length of SFT and stage, with a dot for every seed."""
    stages = _stages(budgets)
    keys = _keys(budgets, stages)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(-(-len(keys) // 2), 2, 6.2)
        lengths = sorted(budgets)
        for axis in axes[len(keys) :]:
            axis.set_visible(False)
        for axis, key in zip(axes, keys):
            for s, stage in enumerate(stages):
                # Beside each other, where lines would hide each other's dots.
                places = np.array(lengths) * 1.03 ** (s - (len(stages) - 1) / 2)
                style = {"color": colour(stage, stages), "marker": marker(stage, stages)}
                axis.plot(places, [_mean(budgets[steps], stage, key) for steps in lengths], **style, linewidth=1.5)
                for place, steps in zip(places, lengths):
                    values = [found[stage].metrics[key] for found in budgets[steps]]
                    axis.plot([place] * len(values), values, ".", color=style["color"], alpha=0.5, markersize=4)
            axis.set_xscale("log")
            axis.set_xticks(lengths, [str(steps) for steps in lengths])
            axis.minorticks_off()
            axis.set_title(metric_title(key))
            axis.set_xlabel("steps of SFT before")
        legend(figure, stages)
        save(figure, path)


def _stages(budgets: Budgets) -> list[str]:
    """The stages that every seed of every length has."""
    seeds = [found for by_seed in budgets.values() for found in by_seed]
    return ordered_stages(stage for stage in seeds[0] if all(stage in found for found in seeds))


def _keys(budgets: Budgets, stages: Sequence[str]) -> list[str]:
    """Four measures that every stage has: `KEYS`, or what stands in their place in another task."""
    found = [of_seed[stage].metrics for seeds in budgets.values() for of_seed in seeds for stage in stages]
    known = (key for key in (*KEYS, *COMPARED) if all(metrics.get(key) is not None for metrics in found))
    return list(dict.fromkeys(known))[: len(KEYS)]


def _mean(seeds: Sequence[Mapping[str, StageResult]], stage: str, key: str) -> float:
    return float(np.mean([found[stage].metrics[key] for found in seeds]))
