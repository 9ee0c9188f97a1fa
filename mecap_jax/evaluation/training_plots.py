"""The report's pictures of training: learning curves, rewards by term, and what the sampled groups look like."""

from __future__ import annotations

import dataclasses
import heapq
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mecap_jax.evaluation import plot_style as style
from mecap_jax.evaluation.plot_style import COLOURS, INK, STYLE
from mecap_jax.evaluation.tables import describe

_TERMS = ("#009E73", "#CC79A7", "#0072B2", "#E69F00", "#56B4E9", "#D55E00")
# Shares of a step, by what they are logged as.
_SHARES = {
    "frac_degenerate": "degenerate captions",
    "completions/clipped_ratio": "captions cut at the longest length",
    "clip_ratio/region_mean": "probability ratios clipped",
    "frac_reward_zero_std": "groups without spread of reward",
}

_WIDEST = 5  # groups with most to learn from

Rows = Sequence[Mapping[str, Any]]


def plot_sft(rows: Rows, path: Path) -> None:
    """Draws the likelihood of captions over SFT steps, of training batches and validation clips, and the learning
    rate."""
    with matplotlib.rc_context(STYLE):
        figure, (nll, rate) = style.grid(1, 2, 3.2, width_ratios=[3, 2])
        _curve(nll, rows, "token_nll", COLOURS["sft"], label="training")
        _points(nll, rows, "validation/token_nll", "validation")
        _label(nll, "SFT: negative log-likelihood of captions", "nats a token")
        nll.set_ylim(bottom=0)
        _curve(rate, rows, "learning_rate", COLOURS["sft"], smooth=False)
        _label(rate, "SFT: learning rate", "")
        for axis in (nll, rate):
            axis.set_xlabel("SFT step")
        style.save(figure, path)


def plot_grpo(rows: Rows, weights: Mapping[str, float], path: Path) -> None:
    """Draws over GRPO steps: reward, its terms (stacked, by weight), KL, entropy, length, shares, learning rate.

    Args:
      rows: steps, under TRL's names.
      weights: weight by reward term where the reward is their sum with fixed weights; else empty, and terms are not
        stacked.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = style.grid(4, 2, 10)
        reward, terms, kl, entropy, length, shares, validation, rate = axes
        steps, values = _series(rows, "reward")
        _, spread = _series(rows, "reward_std", like="reward")
        reward.fill_between(steps, values - spread, values + spread, color=COLOURS["grpo"], alpha=0.15, linewidth=0)
        _curve(reward, rows, "reward", COLOURS["grpo"], label="training, sampled")
        _points(reward, rows, "validation/reward", "validation, greedy")
        _label(reward, "Reward", "mean ± std within groups")
        _terms(terms, rows, weights)
        _validation_terms(validation, rows)
        for axis, key, title, unit in (
            (kl, "kl", "KL to the reference policy", "nats a token"),
            (entropy, "entropy", "Entropy", "nats a token"),
            (length, "completions/mean_length", "Length of captions", "tokens: mean, range"),
        ):
            _curve(axis, rows, key, COLOURS["grpo"])
            _label(axis, title, unit)
        steps, least = _series(rows, "completions/min_length")
        _, most = _series(rows, "completions/max_length", like="completions/min_length")
        length.fill_between(steps, least, most, color=COLOURS["grpo"], alpha=0.12, linewidth=0)
        kl.set_ylim(bottom=min(0.0, kl.get_ylim()[0]))
        for (key, title), ink, line in zip(_SHARES.items(), _TERMS, ("-", "--", "-.", ":")):
            steps, values = _series(rows, key)
            if len(steps):
                shares.plot(steps, running_mean(values), line, color=ink, linewidth=2, label=title)
        _label(shares, "What goes to waste", "share")
        top = max(0.05, shares.get_ylim()[1])
        shares.set_ylim(-0.02 * top, 1.75 * top)
        if shares.get_lines():
            shares.legend(loc="upper left", borderaxespad=0.1)
        _curve(rate, rows, "learning_rate", COLOURS["grpo"], smooth=False)
        _label(rate, "Learning rate", "")
        for axis in axes:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        for axis in axes[-2:]:
            axis.set_xlabel("GRPO step")
        style.save(figure, path)


def _terms(axis: Axes, rows: Rows, weights: Mapping[str, float]) -> None:
    """Reward terms: what each adds to the reward, stacked, where it is their weighted sum and none is below zero; else
    their means."""
    keys = {key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean")}
    names = sorted(key.removeprefix("rewards/").removesuffix("/mean") for key in keys)
    found = {name: running_mean(_series(rows, f"rewards/{name}/mean", like="reward")[1]) for name in names}
    steps = _series(rows, "reward")[0]
    stacked = bool(names) and set(names) <= set(weights) and all(np.nanmin(found[n]) >= 0 for n in names)
    if stacked:
        names = [name for name in sorted(names, key=lambda name: -weights[name]) if weights[name]]
        parts = [weights[name] * np.nan_to_num(found[name]) for name in names]
        axis.stackplot(steps, parts, colors=_TERMS, labels=[_term(name) for name in names], alpha=0.85)
        _label(axis, "What each term adds to the reward", "weight × mean, stacked")
    else:
        for i, name in enumerate(names):
            axis.plot(steps, found[name], color=_TERMS[i % len(_TERMS)], linewidth=2, label=_term(name))
        _label(axis, "Reward terms", "mean, before weighting")
    if names:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.16 * (high - low) * math.ceil(len(names) / 2))
        axis.legend(loc="upper left", ncols=2, borderaxespad=0.1, columnspacing=1.2)


def _validation_terms(axis: Axes, rows: Rows) -> None:
    """Means of reward terms over validation clips, captioned greedily."""
    prefix = "validation/rewards/"
    keys = {key for row in rows for key in row if key.startswith(prefix)}
    names = sorted(key for key in keys if not key.endswith("/failures"))
    for i, name in enumerate(names):
        steps, values = _series(rows, name)
        label = _term(name.removeprefix(prefix))
        axis.plot(steps, values, style.MARKERS[i % 8] + "-", color=_TERMS[i % 6], markersize=5, label=label)
    _label(axis, "Reward terms on validation clips", "mean, before weighting")
    if names:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.16 * (high - low) * math.ceil(len(names) / 2))
        axis.legend(loc="upper left", ncols=2, borderaxespad=0.1, columnspacing=1.2)
    else:
        _absent(axis)


@dataclasses.dataclass(frozen=True)
class SampledGroups:
    """What the report tells of the groups that Emo-GRPO sampled: numbers of all of them, and the texts of a few.

    Attributes:
      steps, spreads: of every group its step and the standard deviation of its rewards.
      completion_steps, advantages, lengths: of every completion its step, its advantage (NaN: none) and its length in
        characters.
      widest: the groups whose rewards differ most, the first one most; rows of `completions.jsonl`.
    """

    steps: Int[np.ndarray, " G"]
    spreads: Float[np.ndarray, " G"]
    completion_steps: Int[np.ndarray, " N"]
    advantages: Float[np.ndarray, " N"]
    lengths: Float[np.ndarray, " N"]
    widest: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, rows: Iterable[Mapping[str, Any]]) -> SampledGroups | None:
        """Goes through rows of `completions.jsonl` once, and holds one of them at a time; None where none is of GRPO's
        own stage."""
        steps, spreads = array("q"), array("d")
        completion_steps, advantages, lengths = array("q"), array("d"), array("d")
        widest: list[tuple[float, int, Mapping[str, Any]]] = []
        for row in rows:
            if row.get("stage") != "grpo":
                continue
            steps.append(row["step"])
            spreads.append(reward_spread(row))
            for completion in row["completions"]:
                advantage = completion["advantage"]
                completion_steps.append(row["step"])
                advantages.append(math.nan if advantage is None else advantage)
                lengths.append(len(completion["text"]))
            entry = (spreads[-1], -len(steps), row)  # of equal ones the first; rows themselves are never compared
            if len(widest) < _WIDEST:
                heapq.heappush(widest, entry)
            else:
                heapq.heappushpop(widest, entry)
        if not steps:
            return None
        chosen = tuple(row for *_, row in sorted(widest, reverse=True))
        return cls(*map(np.array, (steps, spreads, completion_steps, advantages, lengths)), chosen)


def plot_groups(groups: SampledGroups, path: Path) -> None:
    """Draws advantages, lengths and the spread of rewards within groups, of the first and the last fifth of steps."""
    last = groups.steps.max()
    fifth = math.ceil(last / 5)
    parts = {
        "first fifth of steps": lambda steps: steps <= fifth,
        "last fifth": lambda steps: steps > last - fifth,
    }
    panels = (
        ("Advantages", "", groups.advantages, groups.completion_steps),
        ("Length of captions", "characters", groups.lengths, groups.completion_steps),
        ("Spread within groups", "standard deviation of reward", groups.spreads, groups.steps),
    )
    with matplotlib.rc_context(STYLE):
        figure, axes = style.grid(1, 3, 3)
        for axis, (title, unit, values, steps) in zip(axes, panels):
            found = {name: values[chosen(steps) & np.isfinite(values)] for name, chosen in parts.items()}
            every = np.concatenate(list(found.values()))
            edges = np.histogram_bin_edges(every, 24) if len(every) else np.linspace(0, 1, 2)
            for (name, part), ink, line in zip(found.items(), (COLOURS["sft"], COLOURS["grpo"]), ("--", "-")):
                shares = np.full(len(part), 1 / max(len(part), 1))
                axis.hist(part, edges, weights=shares, histtype="step", color=ink, linestyle=line, linewidth=1.8,
                          label=name)  # fmt: skip
            axis.set_title(title, fontsize=10.5)
            axis.set_xlabel(unit)
        axes[0].set_ylabel("share")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        style.save(figure, path)


def reward_spread(group: Mapping[str, Any]) -> float:
    """Returns the standard deviation of the rewards that a group has, without degenerate captions; 0 without any."""
    rewards = [c["reward"] for c in judged(group)]
    return float(np.std(rewards)) if rewards else 0.0


def judged(group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns a group's completions that have a reward and are not degenerate."""
    return [c for c in group["completions"] if c["reward"] is not None and not c.get("degenerate")]


# --- parts ------------------------------------------------------------------------------------------------------


def _term(name: str) -> str:
    return describe(name.rpartition("/")[2]).title  # of a user's own term, the file without its directory


def _series(rows: Rows, key: str, like: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values of `key`, over the rows that have `like` (by default `key`); gaps are NaN."""
    chosen = [row for row in rows if (like or key) in row]
    values = [row.get(key) for row in chosen]
    values = [math.nan if value is None else value for value in values]
    return np.array([row["step"] for row in chosen], dtype=float), np.array(values, dtype=float)


def _curve(axis: Axes, rows: Rows, key: str, colour: str, label: str | None = None, smooth: bool = True) -> None:
    """Draws a series; with `smooth` pale, and its running mean on top."""
    steps, values = _series(rows, key)
    if not len(steps):
        _absent(axis)
        return
    if smooth:
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    axis.plot(steps, running_mean(values) if smooth else values, color=colour, linewidth=2, label=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _absent(axis: Axes) -> None:
    axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes, color="#777777")


def _points(axis: Axes, rows: Rows, key: str, label: str) -> None:
    """Draws the few steps that have `key` as points over the curve that is there, and tells the two apart."""
    steps, values = _series(rows, key)
    if len(steps):
        axis.plot(steps, values, color=INK, marker="o", markersize=5, linewidth=1, linestyle="--", label=label)
        axis.legend(loc="best")


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


def _label(axis: Axes, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=10.5)
    axis.set_ylabel(unit)
