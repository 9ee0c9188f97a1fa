"""The report's pictures of results: metrics and their differences with intervals, recalls, confusions, modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mecap_jax.evaluation import plot_style as style
from mecap_jax.evaluation.plot_style import INK, STYLE, dots, metric_title
from mecap_jax.evaluation.tables import (
    ABOVE,
    ALIKE,
    COMPARED,
    condition_title,
    describe,
    ordered_stages,
    stage_title,
    verdict,
)

_SHOWN = (
    "war", "uar", "wheel_f1", "format", "eea", "fcr", "epc", "claims_true",
    "emotion_word_uar", "emotion_uar", "emotion_reward", "retrieval", "sbert_similarity",
    "bleu_4", "rouge_l", "meteor", "cider_d", "distinct_2", "vocabulary_size", "distinct_captions",
)  # fmt: skip
# Better, worse, not told apart: colour and shape.
_BETTER, _WORSE, _ALIKE = ("#009E73", "^"), ("#D55E00", "v"), ("#777777", "o")
_READINGS = {"anchor": "nearest anchor", "first_word": "first emotion word"}

Values = Mapping[str, float | None]
Intervals = Mapping[str, Sequence[float] | None]


def plot_metrics(
    values: Mapping[str, Values],
    intervals: Mapping[str, Intervals],
    floors: Mapping[str, Values],
    title: str,
    path: Path,
) -> None:
    """Draws one row a metric: a dot a stage with its interval. Shares have one scale, and every count its own.

    Args:
      floors: by name ("chance") and metric, what is reached without learning.
      title: what dots and lines are.
    """
    stages = ordered_stages(values)
    keys = [key for key in _SHOWN if any(values[stage].get(key) is not None for stage in stages)]
    shares = [key for key in keys if all((values[stage].get(key) or 0) <= 1 for stage in stages)]
    panels = [shares, *([key] for key in keys if key not in shares)] if shares else [[key] for key in keys]
    heights = [len(panel) * max(0.3, 0.09 * len(stages)) + 0.3 for panel in panels]
    drawn = _floors(floors, keys)
    with matplotlib.rc_context(STYLE):
        height = sum(heights) + 0.3 * len(panels) + 0.7
        figure, axes = style.grid(len(panels), 1, height, lines="x", height_ratios=heights)
        for axis, panel in zip(axes, panels):
            chosen = {stage: [values[stage].get(key) for key in panel] for stage in stages}
            ends = {stage: [intervals[stage].get(key) for key in panel] for stage in stages}
            dots(axis, list(map(metric_title, panel)), chosen, ends, stages)
            for name, floor in drawn.items():
                for y, key in enumerate(panel):
                    if floor.get(key) is not None:
                        axis.plot([floor[key]] * 2, [y - 0.4, y + 0.4], **style.floor_line(name))
        if shares:
            axes[0].set_xlim(0, 1)
        axes[0].set_title(title)
        style.legend(figure, stages, drawn)
        style.save(figure, path)


def plot_differences(differences: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws paired differences, a panel a pair: a dot a metric with its interval, beside zero.

    Args:
      differences: pair ("grpo - sft") -> metric -> value, low, high; at least one pair, of one first stage.
      title: what dots and lines are.
    """
    keys = [key for key in COMPARED if any(key in row for row in differences.values())]
    panels = [[key for key in keys if describe(key).digits], [key for key in keys if not describe(key).digits]]
    panels = [panel for panel in panels if panel]
    columns = min(3, len(differences))
    blocks = -(-len(differences) // columns)
    heights = [0.3 * len(panel) + 0.35 for panel in panels]
    with matplotlib.rc_context(STYLE):
        height = blocks * (sum(heights) + 0.35 * len(panels)) + 1
        figure, axes = style.grid(
            blocks * len(panels), columns, height, lines="x", height_ratios=heights * blocks, sharey="row"
        )
        names = list(differences)
        for row in range(blocks * len(panels)):
            panel = panels[row % len(panels)]
            for column in range(columns):
                axis, number = axes[row * columns + column], row // len(panels) * columns + column
                if number >= len(names):
                    axis.set_visible(False)
                    continue
                _differences(axis, panel, differences[names[number]])
                if row % len(panels) == 0:
                    axis.set_title(f"− {stage_title(names[number].partition(' - ')[2])}", fontsize=10)
        for number in range(len(panels)):  # one scale for all pairs
            of_panel = [axes[r * columns + c] for r in range(number, blocks * len(panels), len(panels))
                        for c in range(columns)]  # fmt: skip
            widest = max(abs(end) for axis in of_panel if axis.get_visible() for end in axis.get_xlim())
            for axis in of_panel:
                axis.set_xlim(-widest, widest)
        title = f"{stage_title(names[0].partition(' - ')[0])} − each other stage: {title}"
        handles = [
            Line2D([], [], color=ink, marker=shape, markerfacecolor=ink if shape != "o" else "white", label=text)
            for (ink, shape), text in ((_BETTER, "better"), (_WORSE, "worse"), (_ALIKE, "not told apart from 0"))
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, title=title, title_fontsize=11)
        style.save(figure, path)


def _differences(axis, keys: Sequence[str], row: Mapping[str, Any]) -> None:
    for y, key in enumerate(keys):
        found = row.get(key)
        if found is None or found["value"] is None:
            continue
        told = verdict(found["low"], found["high"])
        good = (told == ABOVE) == (describe(key).better != "lower")
        ink, shape = _ALIKE if told == ALIKE else _BETTER if good else _WORSE
        if found["low"] is not None:
            axis.plot([found["low"], found["high"]], [y, y], color=ink, linewidth=1.8, solid_capstyle="butt")
        face = "white" if told == ALIKE else ink
        axis.plot(found["value"], y, shape, color=ink, markerfacecolor=face, markersize=6)
    axis.axvline(0, color=INK, linewidth=1)
    style.row_titles(axis, list(map(metric_title, keys)))


def plot_recalls(
    recalls: Mapping[str, Mapping[str, Mapping[str, Any]]], clips: Mapping[str, int], title: str, path: Path
) -> None:
    """Draws the recall of every emotion: a dot a stage with its interval, and chance.

    Args:
      recalls: stage -> emotion -> value, low, high.
      clips: of every emotion.
    """
    stages = ordered_stages(recalls)
    names = list(clips)
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = style.grid(1, 1, len(names) * max(0.32, 0.13 * len(stages)) + 1.2, lines="x")
        found = {stage: [recalls[stage].get(name) for name in names] for stage in stages}
        values = {stage: [entry and entry["value"] for entry in row] for stage, row in found.items()}
        ends = {
            stage: [(e["low"], e["high"]) if e and e["low"] is not None else None for e in row]
            for stage, row in found.items()
        }
        dots(axis, [f"{name} ({clips[name]} clips)" for name in names], values, ends, stages)
        axis.axvline(1 / len(names), **style.floor_line("chance"))
        axis.set_xlim(0, 1.02)
        axis.set_title(title)
        style.legend(figure, stages, ["chance"])
        style.save(figure, path)


def plot_confusion(
    readings: Mapping[str, Mapping[str, Sequence[str | None]]],
    labels: Sequence[str | None],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Draws confusion matrices in percent of each label's clips: a row of panels a stage, a column a reading.

    Args:
      readings: stage -> reading -> the class that each caption expresses, or None.
      labels: of the clips, in the same order; clips without one are left out.
      classes: names of the K classes; what is none of them counts as no emotion.
      path: the PNG file.
    """
    stages = ordered_stages(readings)
    kinds = list(dict.fromkeys(kind for stage in stages for kind in readings[stage]))
    clips = [labels.count(name) for name in classes]
    cell = min(0.42, 5 / (len(classes) + 1) / max(1, len(kinds) - 0.2))
    size = STYLE | {"axes.spines.left": False, "axes.spines.bottom": False, "font.size": 9}
    with matplotlib.rc_context(size):
        height = len(stages) * (cell * len(classes) + 0.55) + 1
        figure, axes = style.grid(len(stages), len(kinds), height, lines="", sharex=True, sharey=True)
        for axis, (stage, kind) in zip(axes, ((stage, kind) for stage in stages for kind in kinds)):
            counts = confusion_counts(readings[stage].get(kind, [None] * len(labels)), labels, classes)
            shares = counts / np.maximum(clips, 1)[:, None]
            image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for (i, j), share in np.ndenumerate(shares):
                if counts[i, j]:
                    ink = "white" if share > 0.55 else INK
                    axis.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8.5)
            axis.axvline(len(classes) - 0.5, color=INK, linewidth=0.8)
            columns = [*classes, "no emotion"]
            axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
            axis.set_yticks(range(len(classes)), [f"{name} ({n})" for name, n in zip(classes, clips)])
            axis.tick_params(length=0)
            axis.set_title(f"{stage_title(stage)}, by {_READINGS.get(kind, kind)}", fontsize=10)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02, format=PercentFormatter(1))
        bar.outline.set_visible(False)
        bar.set_label("share of the label's clips")
        style.save(figure, path)


def confusion_counts(
    predicted: Sequence[str | None], labels: Sequence[str | None], classes: Sequence[str]
) -> np.ndarray:
    """Returns clips by label and predicted class, int `[K, K + 1]`; the last column: no class."""
    index = {name: k for k, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes) + 1), dtype=int)
    for guess, truth in zip(predicted, labels):
        if truth in index:
            counts[index[truth], index.get(guess, len(classes))] += 1
    return counts


def plot_ablation(
    values: Mapping[str, Mapping[str, Values]],
    intervals: Mapping[str, Mapping[str, Intervals]],
    keys: Sequence[str],
    floors: Mapping[str, Values],
    path: Path,
) -> None:
    """Draws, a panel each metric in `keys`, dots by what the model gets to see (`values[stage][condition]`).

    Args:
      floors: as in `plot_metrics`.
    """
    stages = ordered_stages(values)
    conditions = list(dict.fromkeys(condition for stage in stages for condition in values[stage]))
    drawn = _floors(floors, keys)
    with matplotlib.rc_context(STYLE):
        height = len(conditions) * max(0.35, 0.15 * len(stages)) + 1.3
        figure, axes = style.grid(1, len(keys), height, lines="x", sharey=True)
        for axis, key in zip(axes, keys):
            of = {stage: [values[stage].get(c, {}).get(key) for c in conditions] for stage in stages}
            ends = {stage: [intervals[stage].get(c, {}).get(key) for c in conditions] for stage in stages}
            dots(axis, list(map(condition_title, conditions)), of, ends, stages)
            for name, floor in drawn.items():
                if floor.get(key) is not None:
                    axis.axvline(floor[key], **style.floor_line(name))
            axis.set_xlim(0, 1.02)
            axis.set_title(metric_title(key))
        style.legend(figure, stages, drawn)
        style.save(figure, path)


def _floors(floors: Mapping[str, Values], keys: Sequence[str]) -> dict[str, Values]:
    """Those floors that are known of one of the metrics `keys`."""
    return {name: floor for name, floor in floors.items() if any(floor.get(key) is not None for key in keys)}
