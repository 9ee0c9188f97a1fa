"""Markdown tables of metrics, and what their differences tell; all foreign text is escaped."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterable, Mapping, Sequence

from mecap_jax.evaluation.claims import ASPECTS

# Words of stages' names that are names themselves.
_NAMES = {name.lower().replace("-", ""): name for name in ("SFT", "GRPO", "DAPO", "GPT-2", "BART", "Qwen2")}


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
    **{f"claims_true/{aspect}": Metric(f"Claims about {aspect} that are true") for aspect in ASPECTS},
}
# What systems are compared in.
COMPARED = (
    "war uar eea fcr epc claims_true wheel_f1 affect_error emotion_word_uar emotion_uar emotion_reward retrieval "
    "bleu_4 rouge_l meteor vocabulary_size"
).split()
ABOVE, BELOW, ALIKE = "above", "below", "not told apart"
UNTRAINED = "untrained"  # text that has learnt nothing here: what it earns is no merit of training
REWARD_OFF = "reward_off"  # the row of comparison that is `grpo` without what its reward teaches
ABLATION_KEYS = ("emotion_uar", "emotion_word_uar", "war", "uar", "wheel_f1")  # what is compared between modalities
# These grow with the number of clips, or shrink with it: of fewer clips they do not compare.
COUNTS = ("vocabulary_size", "distinct_1", "distinct_2", "distinct_captions")
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
    """Returns the printed name of a stage: "SFT", "GRPO, semantic", "GPT-2, SFT", "Text only"."""
    first, *rest = stage.split("_")
    if first in _NAMES:
        return ", ".join(filter(None, (_NAMES[first], " ".join(_NAMES.get(word, word) for word in rest))))
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


def pair_name(first: str, second: str) -> str:
    """Returns the key of a difference in `report.json`, such as "grpo - sft"."""
    return f"{first} - {second}"


def metric_cell(key: str) -> str:
    """Returns a metric's name for a table, with an arrow towards the better side."""
    metric = describe(key)
    return escape(metric.title) + {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]


def verdict(low: float | None, high: float | None) -> str:
    """Returns what the interval of a paired difference tells: that the first is `ABOVE` the second, `BELOW` it, or
    neither (`ALIKE`: the interval holds 0, or there is none)."""
    if low is None or high is None or low <= 0 <= high:
        return ALIKE
    return ABOVE if low > 0 else BELOW


def verdict_cells(verdicts: Mapping[str, str]) -> list[str]:
    """Returns the metrics that are above, those that are below, and those that are not told apart, as three cells."""
    return [
        ", ".join(metric_cell(key) for key in ordered(verdicts) if verdicts[key] == word)
        for word in (ABOVE, BELOW, ALIKE)
    ]


def reward_verdict(verdicts: Mapping[str, Mapping[str, str]]) -> str:
    """Returns in words what the reward of `grpo` did, beside its twin without what the reward teaches; "" where there
    is no twin.

    Args:
      verdicts: by stage and metric, how `grpo` compares with it.
    """
    if REWARD_OFF not in verdicts:
        return ""
    twin, start = verdicts[REWARD_OFF], verdicts.get("sft", {})
    off, sft, rl = stage_title(REWARD_OFF), stage_title("sft"), stage_title("grpo")
    unearned = [key for key in ordered(start) if start[key] != ALIKE and twin.get(key, ALIKE) == ALIKE]
    found = [
        f"{word} in {', '.join(map(metric_cell, keys))}"
        for word in (ABOVE, BELOW)
        if (keys := [key for key in ordered(twin) if twin[key] == word])
    ]
    text = (
        f"What the reward did is the difference from “{off}”, the same training without what the reward teaches. "
        f"{rl} is {'; '.join(found) if found else 'not told apart from it in any of these metrics'}."
    )
    if unearned:
        names = ", ".join(map(metric_cell, unearned))
        text += f" Told apart from {sft} but not from “{off}”, so not shown to be the reward's: {names}."
    return text
