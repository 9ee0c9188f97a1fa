"""The report's pictures: training curves, metrics with intervals, confusion matrices, modality ablation.

Drawn on bare `Figure` objects with the Agg renderer: no display, no global pyplot state. Colours are Okabe and Ito's,
which colour-blind readers can tell apart; a stage keeps its colour in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.patches
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mecap_jax.evaluation.tables import condition_title, describe, ordered_stages, stage_title

COLOURS = {"sft": "#0072B2", "grpo": "#D55E00"}
_OTHERS = ("#999999", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442")  # rows of comparison
_TERMS = ("#009E73", "#CC79A7", "#0072B2", "#E69F00", "#56B4E9", "#D55E00")
_INK, _PALE = "#333333", "#DDDDDD"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "text.parse_math": False,
}
_PANELS = (
    "war", "uar", "format", "eea", "fcr", "epc", "claims_true",
    "emotion_uar", "emotion_word_uar", "emotion_reward", "sbert_similarity",
    "bleu_1", "bleu_4", "rouge_l", "meteor",
    "cider_d", "vocabulary_size", "distinct_2", "distinct_captions",
)  # fmt: skip

Values = Mapping[str, float | None]
Intervals = Mapping[str, Sequence[float] | None]


def plot_grpo(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws reward, its terms, KL, entropy, completion length and dead groups over GRPO steps (TRL's keys)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(2, 3, width=12, height=6.4)
        reward, terms, kl, entropy, length, dead = axes
        steps, values = _series(rows, "reward")
        _, spread = _series(rows, "reward_std", like="reward")
        reward.fill_between(steps, values - spread, values + spread, color=COLOURS["grpo"], alpha=0.15, linewidth=0)
        _curve(reward, rows, "reward", COLOURS["grpo"], label="training, sampled")
        _points(reward, rows, "validation/reward", "validation, greedy")
        _label(reward, "Reward", "mean ± std within groups")
        names = sorted({key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean")})
        for i, name in enumerate(names):
            _curve(terms, rows, name, _TERMS[i % len(_TERMS)], label=describe(name.split("/")[1]).title)
        _label(terms, "Reward terms", "mean, before weighting")
        if names:
            low, high = terms.get_ylim()
            terms.set_ylim(low, high + 0.1 * (high - low) * math.ceil(len(names) / 2))
            terms.legend(fontsize=9, loc="upper left", ncols=2, borderaxespad=0.1, columnspacing=1.2)
        for axis, key, title, unit in (
            (kl, "kl", "KL to the reference policy", "nats a token"),
            (entropy, "entropy", "Entropy", "nats a token"),
            (length, "completions/mean_length", "Completion length", "tokens, mean"),
            (dead, "frac_reward_zero_std", "Groups without reward spread", "share"),
        ):
            _curve(axis, rows, key, COLOURS["grpo"])
            _label(axis, title, unit)
        kl.set_ylim(bottom=min(0.0, kl.get_ylim()[0]))
        dead.set_ylim(-0.03, 1.03)
        for axis in axes[3:]:
            axis.set_xlabel("GRPO step")
        _save(figure, path)


def plot_sft(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the likelihood of captions over SFT steps, of the training batches and of the validation clips."""
    with matplotlib.rc_context(STYLE):
        figure, (axis,) = _grid(1, 1, width=7, height=4)
        _curve(axis, rows, "token_nll", COLOURS["sft"], label="training")
        _points(axis, rows, "validation/token_nll", "validation")
        _label(axis, "Negative log-likelihood of captions", "nats a token")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("SFT step")
        _save(figure, path)


def plot_metrics(values: Mapping[str, Values], intervals: Mapping[str, Intervals], path: Path) -> None:
    """Draws one panel a metric: a bar a stage with its confidence interval. Metrics that no stage has are left out."""
    stages = ordered_stages(values)
    keys = [key for key in _PANELS if any(values[stage].get(key) is not None for stage in stages)]
    columns = min(4, len(keys))
    with matplotlib.rc_context(STYLE):
        rows = math.ceil(len(keys) / columns)
        figure, axes = _grid(rows, columns, width=3.1 * columns, height=2.4 * rows + 0.5)
        for axis, key in zip(axes, keys):
            for x, stage in enumerate(stages):
                _bar(axis, x, key, values[stage].get(key), intervals[stage].get(key), _colour(stage, stages), width=0.7)
            _label(axis, describe(key).title, "")
            axis.set_xticks([])
            axis.set_xlim(-0.7, len(stages) - 0.3)
        for axis in axes[len(keys) :]:
            axis.remove()
        _legend(figure, stages)
        _save(figure, path)


def plot_confusion(
    confusions: Mapping[str, np.ndarray], classes: Sequence[str], clips: Sequence[int], reading: str, path: Path
) -> None:
    """Draws confusion matrices side by side, in percent of each gold class.

    Args:
      confusions: clips by gold and predicted class, `[K, K]`, by stage.
      classes: names of the K classes.
      clips: clips of each gold class; more than a row's sum where captions express no class.
      reading: how captions became classes.
      path: the PNG file.
    """
    stages = ordered_stages(confusions)
    size = max(4.2, 0.62 * len(classes) + 1)
    with matplotlib.rc_context(STYLE | {"axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes = _grid(1, len(stages), width=size * len(stages) + 0.9, height=size, grid=False)
        for axis, stage in zip(axes, stages):
            counts = confusions[stage]
            shares = counts / np.maximum(clips, 1)[:, None]
            image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (i, j), share in np.ndenumerate(shares):
                if counts[i, j]:
                    axis.text(
                        j, i, f"{100 * share:.0f}", ha="center", va="center", color="white" if share > 0.55 else _INK
                    )
            axis.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
            axis.set_yticks(range(len(classes)), [f"{name} ({n})" for name, n in zip(classes, clips)])
            axis.tick_params(length=0)
            axis.set_title(stage_title(stage))
            axis.set_xlabel(f"predicted ({reading})")
        axes[0].set_ylabel("label (clips)")
        bar = figure.colorbar(image, ax=axes, shrink=0.75, aspect=30, pad=0.02, format=PercentFormatter(1))
        bar.outline.set_visible(False)
        bar.set_label("share of the label's clips")
        _save(figure, path)


def plot_ablation(
    values: Mapping[str, Mapping[str, Values]],
    intervals: Mapping[str, Mapping[str, Intervals]],
    keys: Sequence[str],
    chance: float | None,
    path: Path,
) -> None:
    """Draws, for each metric in `keys`, bars by what the model gets to see (`values[stage][condition]`).

    `chance` is the level of guessing, a dashed line; None where it is not known.
    """
    stages = ordered_stages(values)
    conditions = list(dict.fromkeys(condition for stage in stages for condition in values[stage]))
    width = 0.8 / len(stages)
    with matplotlib.rc_context(STYLE):
        figure, axes = _grid(1, len(keys), width=5.2 * len(keys), height=4)
        for axis, key in zip(axes, keys):
            for s, stage in enumerate(stages):
                for x, condition in enumerate(conditions):
                    value = values[stage].get(condition, {}).get(key)
                    interval = intervals[stage].get(condition, {}).get(key)
                    place = x + (s - (len(stages) - 1) / 2) * width
                    _bar(axis, place, key, value, interval, _colour(stage, stages), width=0.92 * width)
            if chance is not None:
                axis.axhline(chance, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
                axis.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), xytext=(-2, 3),
                              textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
            axis.set_xlim(-0.5, len(conditions) - 0.2)
            _label(axis, describe(key).title, "")
            axis.set_xticks(range(len(conditions)), map(condition_title, conditions))
            axis.tick_params(axis="x", length=0)
            axis.set_ylim(0, 1.05)
        _legend(figure, stages)
        _save(figure, path)


# --- parts ------------------------------------------------------------------------------------------------------


def _grid(rows: int, columns: int, width: float, height: float, grid: bool = True) -> tuple[Figure, list[Axes]]:
    """Returns a figure of `width` by `height` inches and its axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        if grid:
            axis.grid(axis="y", color=_PALE, linewidth=0.8)
            axis.set_axisbelow(True)
    return figure, axes


def _series(rows: Sequence[Mapping[str, Any]], key: str, like: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values of `key`, over the rows that have `like` (by default `key`); gaps are NaN."""
    chosen = [row for row in rows if (like or key) in row]
    values = [row.get(key) for row in chosen]
    values = [math.nan if value is None else value for value in values]
    return np.array([row["step"] for row in chosen], dtype=float), np.array(values, dtype=float)


def _curve(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str | None = None):
    """Draws the raw series pale and its running mean on top."""
    steps, values = _series(rows, key)
    if not len(steps):
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes, color="#888888")
        return
    axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    axis.plot(steps, running_mean(values), color=colour, linewidth=2, label=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _points(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str):
    """Draws the few steps that have `key` as points over the curve that is there, and tells the two apart."""
    steps, values = _series(rows, key)
    if len(steps):
        axis.plot(steps, values, color=_INK, marker="o", markersize=5, linewidth=1, linestyle="--", label=label)
        axis.legend(fontsize=9, loc="best")


def running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the exponential mean of the values so far, over about a fiftieth of them all; gaps are skipped.

    It is divided by the weights so far, so that it begins at the first value instead of rising from zero.
    """
    decay = 1 - 1 / max(1, len(values) / 50)
    total, weight, means = 0.0, 0.0, []
    for value in values:
        finite = math.isfinite(value)
        total, weight = decay * total + (value if finite else 0), decay * weight + finite
        means.append(total / weight if weight else math.nan)
    return np.array(means)


def _bar(
    axis: Axes, x: float, key: str, value: float | None, interval: Sequence[float] | None, colour: str, width: float
):
    if value is None:
        axis.text(x, 0, "n/a", ha="center", va="bottom", fontsize=8, color="#888888")
        return
    axis.bar(x, value, width=width, color=colour)
    low, high = (value, value) if interval is None else interval
    if interval is not None:
        axis.plot([x, x], [low, high], color="white", linewidth=3.4, solid_capstyle="butt")
        axis.plot([x, x], [low, high], color=_INK, linewidth=1.6, solid_capstyle="butt")
    digits = min(2 if value >= 0.1 else 3, describe(key).digits)
    axis.annotate(f"{value:,.{digits}f}", (x, max(value, high)), xytext=(0, 3), textcoords="offset points",
                  ha="center", fontsize=8.5)  # fmt: skip
    axis.set_ylim(0, max(axis.get_ylim()[1], 1.15 * max(value, high)))


def _label(axis: Axes, title: str, unit: str):
    axis.set_title(title, fontsize=10.5)
    axis.set_ylabel(unit)


def _colour(stage: str, stages: Sequence[str]) -> str:
    others = [name for name in stages if name not in COLOURS]
    return COLOURS[stage] if stage in COLOURS else _OTHERS[others.index(stage) % len(_OTHERS)]


def _legend(figure: Figure, stages: Sequence[str]):
    handles = [matplotlib.patches.Patch(color=_colour(stage, stages), label=stage_title(stage)) for stage in stages]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(stages), handlelength=1, handleheight=1)


def _save(figure: Figure, path: Path):
    figure.savefig(path, dpi=150)
