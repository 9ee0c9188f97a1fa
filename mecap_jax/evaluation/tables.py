"""Markdown tables of metrics, and the table over several seeds; all foreign text is escaped."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_ABBREVIATIONS = ("sft", "grpo", "dapo")


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
      better: "higher", "lower", or "" where neither is.
      digits: decimals.
    """

    title: str
    better: str = "higher"
    digits: int = 3


METRICS = {
    "war": Metric("WAR"),
    "uar": Metric("UAR"),
    "format": Metric("Answers that follow the protocol"),
    "eea": Metric("Explanations of the right emotion (EEA)"),
    "fcr": Metric("Right, and rightly explained (FCR)"),
    "epc": Metric("Explained as answered (EPC)"),
    "judge_silent": Metric("Explanations without a verdict", better="lower"),
    "claims_true": Metric("Claims about voice, face and emotion that are true"),
    "claims": Metric("Claims a text makes", better="", digits=1),
    "wheel_f1": Metric("F1 by emotion wheels"),
    "wheel_precision": Metric("Precision by emotion wheels"),
    "wheel_recall": Metric("Recall by emotion wheels"),
    "wheel_average": Metric("Mean of precision and recall by emotion wheels"),
    "affect_error": Metric("Distance to the right emotion", better="lower"),
    "label_kl": Metric("KL of answers to labels (nats)", better="lower"),
    "label_js": Metric("JS of answers to labels (nats)", better="lower"),
    "emotion_uar": Metric("Emotion UAR, nearest anchor"),
    "emotion_war": Metric("Emotion WAR, nearest anchor"),
    "emotion_word_uar": Metric("Emotion UAR, first word"),
    "retrieval": Metric("Own references rather than those of another emotion"),
    "emotion_reward": Metric("Emotion reward"),
    "bleu_1": Metric("BLEU-1"),
    "bleu_2": Metric("BLEU-2"),
    "bleu_3": Metric("BLEU-3"),
    "bleu_4": Metric("BLEU-4"),
    "rouge_l": Metric("ROUGE-L"),
    "meteor": Metric("METEOR"),
    "cider_d": Metric("CIDEr-D"),
    "sbert_similarity": Metric("Sentence similarity"),
    "sbert_above_50": Metric("Share with similarity above .5"),
    "sbert_above_60": Metric("Share with similarity above .6"),
    "sbert_above_80": Metric("Share with similarity above .8"),
    "vocabulary_size": Metric("Different words", digits=0),
    "distinct_1": Metric("Distinct-1"),
    "distinct_2": Metric("Distinct-2"),
    "distinct_captions": Metric("Different captions", digits=0),
    "repetition": Metric("Captions that repeat themselves", better="lower"),
    "mean_length": Metric("Mean length (words)", better="", digits=1),
}
ABLATION_KEYS = ("emotion_uar", "emotion_word_uar", "war", "uar", "wheel_f1")  # what is compared between modalities
_CONDITIONS = {"audio": "audio only", "video": "video only", "features": "features only", "all": "everything"}


def pairs(stages: Iterable[str]) -> list[tuple[str, str]]:
    """Returns what is compared: the last main stage with all others, and these with SFT."""
    stages = ordered_stages(stages)
    last = [stage for stage in ("sft", "grpo") if stage in stages][-1:] or stages[:1]
    found = [(last[0], other) for other in stages if other != last[0]] if last else []
    if last == ["grpo"] and "sft" in stages:
        found += [(row, "sft") for row in stages if row not in ("sft", "grpo")]
    return found


def describe(key: str) -> Metric:
    """Returns how to show the metric `key`; Chinese word-level keys follow their character-level metric."""
    base = key.removesuffix("_words")
    metric = METRICS.get(base, Metric(base.replace("_", " ")))
    return metric if base == key else dataclasses.replace(metric, title=f"{metric.title}, by words")


def ordered(keys: Iterable[str]) -> list[str]:
    """Returns metric keys without duplicates, in the order of `METRICS`, the rest behind."""
    rank = {key: i for i, key in enumerate(METRICS)}
    return sorted(dict.fromkeys(keys), key=lambda key: rank.get(key.removesuffix("_words"), len(rank)))


def stage_title(stage: str) -> str:
    """Returns the printed name of a stage: "SFT", "GRPO, semantic", "Text only"."""
    first, *rest = stage.split("_")
    if first in _ABBREVIATIONS:
        return ", ".join(filter(None, (first.upper(), " ".join(rest))))
    return " ".join((first, *rest)).capitalize()


def condition_title(condition: str) -> str:
    """Returns the printed name of what a model gets to see."""
    return _CONDITIONS.get(condition, condition)


def ordered_stages(stages: Iterable[str]) -> list[str]:
    """Returns stages without duplicates: the main ones, then the rows that they are compared with."""
    rank = {"sft": 0, "grpo": 1}
    return sorted(dict.fromkeys(stages), key=lambda stage: rank.get(stage, len(rank)))


def format_value(key: str, value: float | None, interval: Sequence[float] | None = None, signed: bool = False) -> str:
    """Returns "0.812 [0.744, 0.871]", without the brackets where there is no interval, or "unavailable"."""
    if value is None:
        return "unavailable"
    text, *ends = (_number(number, describe(key).digits, signed) for number in (value, *(interval or ())))
    return f"{text} [{', '.join(ends)}]" if ends else text


def _number(value: float, digits: int, signed: bool) -> str:
    value = round(value, digits) + 0.0  # no "-0.000"
    return f"{value:{'+' if signed and value else ''},.{digits}f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Returns a Markdown table of escaped cells; with `numbers` all columns but the first are aligned right."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def escape(text: str, limit: int = 400) -> str:
    """Returns foreign text as one harmless line of Markdown, cut (with "…") after `limit` characters.

    HTML, table bars, emphasis, code and links lose their meaning; control and invisible characters are spelled out.
    """
    text = " ".join(text.split())
    text = text if len(text) <= limit else text[:limit] + "…"
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    text = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", html.escape(text, quote=False))
    # Bare addresses would become links.
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def results_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Combines the `report.json` of several seeds into Markdown: metrics by stage, then the paired differences.

    A cell is the mean over seeds with the range (lowest to highest seed); a difference also says in how many seeds its
    own interval excludes 0. Stages and metrics that not all seeds have are marked with the number of seeds.

    Raises:
      ValueError: no reports, a seed that occurs twice, or reports that do not compare (other tokenisation or clips).
    """
    if not reports:
        raise ValueError("a results table needs at least one report")
    seeds = [report["seed"] for report in reports]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds} must differ")
    for key in ("tokenisation", "test"):
        values = [report[key] for report in reports]
        if any(value != values[0] for value in values):
            raise ValueError(f"reports do not compare: {key!r} differs: {values}")
    stages = ordered_stages(stage for report in reports for stage in report["eval"])
    keys = ordered(key for report in reports for metrics in report["eval"].values() for key in metrics)
    rows = []
    for key in keys:
        cells = [[report["eval"].get(stage, {}).get(key) for report in reports] for stage in stages]
        rows.append([metric_cell(key), *(_over_seeds(key, cell) for cell in cells)])
    parts = [
        f"Mean over seeds ({', '.join(map(str, seeds))}), in brackets the lowest and the highest.",
        markdown_table(["metric", *map(stage_title, stages)], rows),
    ]
    compared = [pair for pair in pairs(stages) if any(pair_name(*pair) in report["differences"] for report in reports)]
    if compared:
        parts += [
            "Paired differences on the same clips; in parentheses the seeds in which the interval excludes 0.",
            markdown_table(
                ["metric", *(f"{stage_title(a)} − {stage_title(b)}" for a, b in compared)],
                [
                    [metric_cell(key), *(_difference_over_seeds(key, pair, reports) for pair in compared)]
                    for key in keys
                ],
            ),
        ]
    for name in dict.fromkeys(name for report in reports for name in report.get("others", {})):
        elsewhere = [{"seed": r["seed"], **r["others"][name]} for r in reports if name in r.get("others", {})]
        parts += [f"On other clips, {escape(name)}:", results_table(elsewhere).strip()]
    return "\n\n".join(parts) + "\n"


def pair_name(first: str, second: str) -> str:
    """Returns the key of a difference in `report.json`, such as "grpo - sft"."""
    return f"{first} - {second}"


def metric_cell(key: str) -> str:
    """Returns a metric's name for a table, with an arrow towards the better side."""
    metric = describe(key)
    return escape(metric.title) + {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]


def _over_seeds(key: str, values: Sequence[float | None], signed: bool = False) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "unavailable"
    spread = (min(present), max(present)) if len(present) > 1 else None
    cell = format_value(key, float(np.mean(present)), spread, signed)
    return cell if len(present) == len(values) else f"{cell} ({len(present)} of {len(values)} seeds)"


def _difference_over_seeds(key: str, pair: tuple[str, str], reports: Sequence[Mapping[str, Any]]) -> str:
    found = [report["differences"].get(pair_name(*pair), {}).get(key) for report in reports]
    cell = _over_seeds(key, [None if entry is None else entry["value"] for entry in found], signed=True)
    clear = [entry for entry in found if entry is not None and excludes_zero(entry["low"], entry["high"])]
    return cell if cell == "unavailable" else f"{cell} ({len(clear)})"


def excludes_zero(low: float | None, high: float | None) -> bool:
    """Returns whether an interval lies wholly on one side of 0."""
    return low is not None and high is not None and (low > 0 or high < 0)
