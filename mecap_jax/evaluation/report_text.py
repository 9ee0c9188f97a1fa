"""`report.md`: what happened in a run, for people, rendered from `report.json` and the sampled captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mecap_jax.evaluation.stage import NEAREST_ANCHOR, StageResult
from mecap_jax.evaluation.tables import (
    ABLATION_KEYS,
    ABOVE,
    ALIKE,
    BELOW,
    COMPARED,
    REWARD_OFF,
    UNTRAINED,
    condition_title,
    describe,
    escape,
    format_value,
    markdown_table,
    metric_cell,
    ordered,
    ordered_stages,
    reward_verdict,
    stage_title,
    verdict,
)
from mecap_jax.evaluation.training_plots import SampledGroups, judged, reward_spread
from mecap_jax.json_files import to_json

_TOKENISATION = {
    "ptb": "the Penn Treebank tokenizer, punctuation removed",
    "words": "a regular expression (there is no Java for the Penn Treebank tokenizer, or the language is not English)",
    "characters": "Chinese characters",
}
_MOST_QUARANTINED = 50
# What a verdict is about: the first that was measured. The nearest anchor is too close to what the reward optimises.
_MAIN = ("emotion_word_uar", "uar", "wheel_f1", "rouge_l")


def render(
    report: Mapping[str, Any],
    results: Mapping[str, StageResult],
    chosen: Sequence[int],
    pictures: Mapping[str, str],
    groups: SampledGroups | None = None,
    players: Mapping[str, str] | None = None,
) -> str:
    """Returns the Markdown report.

    Args:
      report: what `report.json` holds.
      results: scored stages.
      chosen: indices of the clips whose captions are shown.
      pictures: addresses of the pictures by name.
      groups: what Emo-GRPO sampled; None where there was none.
      players: HTML that plays a clip, by its id; none in `report.md`.
    """
    sections = [
        _head(report),
        _verdict(report),
        _recalls(report, pictures),
        _results(report, pictures),
        _changes(report["differences"], pictures),
        _recognition(results, pictures),
        _ablation(report, pictures),
        _others(report),
        _samples(results, chosen, players or {}),
        _training(pictures, groups),
        _data(report["data"]),
        _made(report),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    name = escape(str(report["config"].get("name", "run")))
    text = f"# Report: {name}, seed {report['seed']}\n\n"
    if report["data"]["synthetic"]:
        text += "**The data are synthetic**: the figures show that the system learns, not how well it hears people.\n"
    return text


def _verdict(report: Mapping[str, Any]) -> str:
    """Three lines: how good, against what it started from, and what of it is the reward's."""
    stages = ordered_stages(report["eval"])
    last = [stage for stage in ("sft", "grpo") if stage in stages][-1:] or stages[:1]
    scores = report["eval"][last[0]]
    key = next((key for key in _MAIN if scores.get(key) is not None), None)
    if key is None:
        return ""
    floors = [f"{stage_title(stage)} {format_value(key, report['eval'][stage].get(key))}"
              for stage in stages if stage == "text_only"]  # fmt: skip
    if key.endswith("uar") and report["recalls"].get(last[0]):
        floors.insert(0, f"chance {format_value(key, 1 / len(report['recalls'][last[0]]))}")
    if untrained := report[UNTRAINED]:
        floors.append(f"{UNTRAINED} {format_value(key, untrained['eval'].get(key))}")
    beside = f" ({', '.join(floors)})" if floors else ""
    value = format_value(key, scores[key], report["confidence"][last[0]].get(key))
    lines = [f"**{stage_title(last[0])}** reaches {value} in {metric_cell(key)}{beside}."]
    verdicts = _verdicts(report["differences"])
    if last != ["grpo"]:
        lines.append("**Not compared**: there was no reinforcement learning.")
        lines.append("**Not shown**: what reinforcement learning would add.")
    else:
        sft, twin = stage_title("sft"), stage_title(REWARD_OFF)
        lines.append(
            f"**Against {sft}** it is {_in_words(verdicts['sft'])}."
            if "sft" in verdicts
            else f"**Not compared**: there is no {sft} in this run."
        )
        lines.append(
            f"**By the reward**, against “{twin}”, it is {_in_words(verdicts[REWARD_OFF])}."
            if REWARD_OFF in verdicts
            else f"**Not shown**: what the reward did of that; `evaluation.rows={REWARD_OFF}` trains the twin."
        )
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))


def _in_words(verdicts: Mapping[str, str]) -> str:
    """ "better in A; worse in B; not told apart in 7 others"; of every metric compared, more is better or less is."""
    sides: dict[str, list[str]] = {"better": [], "worse": [], ALIKE: []}
    for key in ordered(verdicts):
        up = {ABOVE: "better", BELOW: "worse"}
        down = {ABOVE: "worse", BELOW: "better"}
        word = (down if describe(key).better == "lower" else up).get(verdicts[key], ALIKE)
        sides[word].append(escape(describe(key).title))
    parts = [f"{word} in {', '.join(names)}" for word, names in sides.items() if names and word != ALIKE]
    if alike := len(sides[ALIKE]):
        parts.append(f"not told apart in {alike} {'metric' if alike == 1 else 'metrics'}")
    return "; ".join(parts) or "not compared in any metric"


def _recalls(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    recalls = report["recalls"]
    if not recalls:
        return ""
    stages = ordered_stages(recalls)
    rows = []
    for name in recalls[stages[0]]:
        cells = [recalls[stage][name] for stage in stages]
        rows.append([escape(name), *(format_value("uar", c["value"], _interval(c)) for c in cells)])
    table = markdown_table(["recall", *map(stage_title, stages)], rows)
    return "\n\n".join(
        ["## Recall by emotion", table, _picture(pictures, "recalls", "Recall by emotion, with intervals")]
    )


def _interval(entry: Mapping[str, float | None]) -> tuple[float, float] | None:
    return None if entry["low"] is None else (entry["low"], entry["high"])


def _results(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    stages, untrained = ordered_stages(report["eval"]), report[UNTRAINED]
    table = _by_stage(report, {UNTRAINED: untrained} if untrained else {})
    clusters = report["intervals"]["clusters"]
    clips = f"{report['test']['clips']} {escape(report['data'].get('evaluated_split', 'test'))} clips"
    notes = [
        f"{clips} of {report['test'][clusters]} {escape(clusters)}. In brackets the "
        f"{report['intervals']['level']:.0%} interval from {report['intervals']['resamples']:,} bootstrap resamples of "
        f"{escape(clusters)} (percentiles; jackknife for different words, distinct-n and different captions). With "
        "fewer than about 20 of them intervals come out too narrow."
    ]
    if report["tokenisation"]:
        sources = " and ".join(_TOKENISATION[name] for name in report["tokenisation"].split("+"))
        notes[0] += f" Tokens come from {sources}."
    if "+" in report["tokenisation"]:
        notes.append("Every clip is scored by the language of its references; METEOR is that of the English ones.")
    if report["test"][clusters] < 2:
        notes.append(f"There are no intervals: they need at least two {escape(clusters)}.")
    if untrained:
        notes.append(
            f"“{stage_title(UNTRAINED)}” is {escape(untrained['what'])}, on {untrained['clips']} of the clips, drawn "
            "at random: what text earns that has learnt nothing here. What depends on the number of clips is left out."
        )
    reasons: dict[str, list[str]] = {}
    for stage in stages:
        for key, reason in report["unavailable"][stage].items():
            if key not in reasons.setdefault(reason, []):
                reasons[reason].append(key)
    notes += [f"Unavailable: {', '.join(f'`{k}`' for k in keys)}. {escape(why)}." for why, keys in reasons.items()]
    return "\n\n".join(["## Results", table, *notes, _picture(pictures, "metrics", "Metrics with intervals")])


def _by_stage(scores: Mapping[str, Any], floors: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> str:
    """A table of metrics with intervals, a column a stage; and a floor, with what is not known of it left empty."""
    stages = ordered_stages(scores["eval"])
    keys = ordered(key for stage in stages for key in scores["eval"][stage])
    rows = [
        [
            metric_cell(key),
            *(format_value(key, scores["eval"][s].get(key), scores["confidence"][s].get(key)) for s in stages),
            *(
                format_value(key, floor["eval"][key], floor["confidence"].get(key)) if key in floor["eval"] else ""
                for floor in floors.values()
            ),
        ]
        for key in keys
    ]
    return markdown_table(["metric", *map(stage_title, (*stages, *floors))], rows)


def _changes(differences: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, str]) -> str:
    if not differences:
        return ""
    text = (
        "## What changed\n\n"
        "Paired differences on the same clips: every resample draws the same clusters for both. Bold where the "
        "interval excludes 0; with this many comparisons some will by chance.\n\n" + _differences(differences)
    )
    picture = _picture(pictures, "differences", "Paired differences, with intervals")
    return "\n\n".join(filter(None, (text, reward_verdict(_verdicts(differences)), picture)))


def _verdicts(differences: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By stage and metric, how `grpo` compares with it."""
    of_grpo = {pair.removeprefix("grpo - "): row for pair, row in differences.items() if pair.startswith("grpo - ")}
    return {
        stage: {key: verdict(row[key]["low"], row[key]["high"]) for key in COMPARED if key in row}
        for stage, row in of_grpo.items()
    }


def _differences(differences: Mapping[str, Mapping[str, Any]]) -> str:
    names = {pair: " − ".join(stage_title(stage) for stage in pair.split(" - ")) for pair in differences}
    keys = ordered(key for row in differences.values() for key in row)
    rows = [[metric_cell(key), *(_change(key, row.get(key)) for row in differences.values())] for key in keys]
    return markdown_table(["metric", *names.values()], rows)


def _others(report: Mapping[str, Any]) -> str:
    clusters, parts = report["intervals"]["clusters"], []
    for name, scores in report["others"].items():
        count = f"{scores['test']['clips']} clips of {scores['test'][clusters]} {escape(clusters)}"
        parts += [f"## On other clips: {escape(name)}", f"{count}; intervals and differences as above."]
        parts.append(_by_stage(scores))
        if scores["differences"]:
            parts += [_differences(scores["differences"]), reward_verdict(_verdicts(scores["differences"]))]
    return "\n\n".join(filter(None, parts))


def _change(key: str, entry: Mapping[str, float | None] | None) -> str:
    if entry is None or entry["value"] is None:
        return "unavailable"
    text = format_value(key, entry["value"], _interval(entry), signed=True)
    return text if verdict(entry["low"], entry["high"]) == ALIKE else f"**{text}**"


def _recognition(results: Mapping[str, StageResult], pictures: Mapping[str, str]) -> str:
    if "confusion" not in pictures:
        return ""
    reading = next(iter(results.values())).reading
    told = {
        NEAREST_ANCHOR: "The class of a caption is its nearest emotion anchor, which is close to what the reward "
        "optimises; the first emotion word is read without any sentence encoder.",
    }
    return (
        "## Which emotion the model hears and sees\n\n"
        + told.get(reading, f"As the {escape(reading)} says; one that cannot be read is wrong.")
        + "\n\n"
        + _picture(pictures, "confusion", "Confusion matrices by stage and reading")
    )


def _ablation(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    if not report["ablation"]:
        return ""
    rows = []
    measured = {key for row in report["ablation"].values() for entry in row.values() for key in entry["eval"]}
    keys = [key for key in (*ABLATION_KEYS, "rouge_l", "format") if key in measured]
    for stage in ordered_stages(report["ablation"]):
        for condition, entry in report["ablation"][stage].items():
            cells = [format_value(key, entry["eval"].get(key), entry["confidence"].get(key)) for key in keys]
            rows.append([f"{stage_title(stage)}, {escape(condition_title(condition))}", *cells])
    header = ["sees", *map(metric_cell, keys)]
    return (
        "## What each modality contributes\n\nThe same model, with the other modality masked out.\n\n"
        + markdown_table(header, rows)
        + "\n\n"
        + _picture(pictures, "ablation", "Recall by modality")
    )


def _samples(results: Mapping[str, StageResult], chosen: Sequence[int], players: Mapping[str, str]) -> str:
    stages = ordered_stages(stage for stage in results if stage in ("sft", "grpo")) or ordered_stages(results)
    first = results[stages[0]]
    rows = []
    for i in chosen:
        clip = first.clips[i]
        references = "<br>".join(f"“{escape(text)}”" for text in clip.references[:2])
        cells = [_caption(results[stage], i) for stage in stages]
        name = "<br>".join(filter(None, (escape(clip.id), players.get(clip.id))))
        rows.append([name, escape(clip.label or "no label"), references, *cells])
    header = ["clip", "label", "references (at most two)", *map(stage_title, stages)]
    table = markdown_table(header, rows, numbers=False)
    return (
        f"## Answers\n\n{len(chosen)} clips drawn at random, evenly over labels. In italics the emotion that is "
        f"expressed, by {escape(first.reading)}.\n\n{table}"
    )


def _caption(result: StageResult, i: int) -> str:
    caption, guess = result.captions[i], result.predicted[i]
    text = f"“{escape(caption)}”" if caption.strip() else "(empty)"
    if guess is None:
        return text
    label = result.clips[i].label
    verdict = "" if label is None else " ✓" if guess == label else " ✗"
    return f"{text}<br>*{escape(guess)}*{verdict}"


def _training(pictures: Mapping[str, str], groups: SampledGroups | None) -> str:
    titles = {
        "sft": "SFT: likelihood and learning rate",
        "grpo": "Emo-GRPO: reward, its terms, KL, entropy, length, shares and learning rate",
        "groups": "Advantages, lengths and spread of rewards in the first and the last fifth of the steps",
    }
    shown = [picture for name, title in titles.items() if (picture := _picture(pictures, name, title))]
    return "\n\n".join(["## Training", *shown, *_telling_groups(groups.widest if groups else ())]) if shown else ""


def _telling_groups(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The groups whose rewards differ most, which is what a group-relative advantage learns from."""
    rows = []
    for group in groups:
        ranked = sorted(judged(group), key=lambda c: c["reward"])
        if len(ranked) > 1:
            cells = [f"{c['reward']:.2f}: “{escape(c['text'])}”" for c in (ranked[-1], ranked[0])]
            clip = f"{escape(str(group['utterance_id']))}<br>*{escape(str(group['label'] or 'no label'))}*"
            rows.append([str(group["step"]), clip, f"{reward_spread(group):.2f}", *cells])
    if not rows:
        return []
    header = ["step", "clip", "spread", "highest reward", "lowest reward"]
    text = (
        "Groups with most to learn from: those whose rewards have the largest standard deviation, degenerate "
        "captions left out."
    )
    return [text, markdown_table(header, rows, numbers=False)]


def _data(data: Mapping[str, Any]) -> str:
    bad = data["quarantined"]
    rest = {key: value for key, value in data.items() if key not in ("quarantined", "synthetic")}
    tables = {
        k: v for k, v in rest.items() if isinstance(v, Mapping) and any(isinstance(x, Mapping) for x in v.values())
    }
    rows = [[escape(key), _inline(value)] for key, value in rest.items() if key not in tables]
    parts = ["## Data"]
    if rows:
        parts.append(markdown_table(["", ""], rows, numbers=False))
    for key, table in tables.items():
        columns = list(dict.fromkeys(name for row in table.values() if isinstance(row, Mapping) for name in row))
        body = [
            [escape(name), *(_inline(row.get(c, 0)) for c in columns)] if isinstance(row, Mapping)
            else [escape(name), _inline(row), *[""] * (len(columns) - 1)]
            for name, row in table.items()
        ]  # fmt: skip
        parts.append(markdown_table([escape(key), *map(escape, columns)], body))
    if not bad:
        parts.append("No clip was quarantined.")
    else:
        shown = [[escape(str(clip["id"])), escape(str(clip["reason"]))] for clip in bad[:_MOST_QUARANTINED]]
        more = "" if len(bad) <= _MOST_QUARANTINED else f" The first {_MOST_QUARANTINED}; all are in `report.json`."
        parts.append(f"{len(bad)} {'clip was' if len(bad) == 1 else 'clips were'} quarantined and left out.{more}")
        parts.append(markdown_table(["clip", "reason"], shown, numbers=False))
    return "\n\n".join(parts)


def _made(report: Mapping[str, Any]) -> str:
    made, timing = report["made"], report["timing"]
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    rows = [
        ["seed", str(report["seed"])],
        ["date (UTC)", escape(made["date"])],
        ["machine", escape(f"{made['machine']}; {made['devices']}")],
        ["software", escape(f"Python {made['python']}, {packages}")],
        *([escape(f"time: {key}"), _inline(value)] for key, value in timing.items()),
    ]
    config = to_json(report["config"], indent=2)
    return (
        "## How it was made\n\n"
        + markdown_table(["", ""], rows, numbers=False)
        + f"\n\n<details><summary>Configuration</summary>\n\n```json\n{config}\n```\n\n</details>\n"
    )


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(key))} {_inline(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_inline, value))
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


def _picture(pictures: Mapping[str, str], name: str, title: str) -> str:
    return f"![{title}]({pictures[name]})" if name in pictures else ""
