"""The end of a run: `report.json` for programs; `report.md` with `plots/*.png`, and `report.html`, for people."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mecap_jax.evaluation import plots, training_plots
from mecap_jax.evaluation.intervals import bootstrap
from mecap_jax.evaluation.recognition import recognition
from mecap_jax.evaluation.report_html import Media, picture_address, players, to_page
from mecap_jax.evaluation.report_text import render
from mecap_jax.evaluation.stage import StageResult, compare
from mecap_jax.evaluation.tables import ABLATION_KEYS, COMPARED, COUNTS, UNTRAINED, pair_name, pairs
from mecap_jax.evaluation.training_plots import SampledGroups
from mecap_jax.json_files import parse_json, to_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pycocoevalcap")


class ReportError(ValueError):
    """What a report cannot be made of; the message says what is wrong with it."""


def write_report(
    directory: str | Path,
    *,
    seed: int,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    results: Mapping[str, StageResult],
    metrics_log: Sequence[Mapping[str, Any]],
    timing: Mapping[str, Any],
    ablation: Mapping[str, Mapping[str, StageResult]] | None = None,
    others: Mapping[str, Mapping[str, StageResult]] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    samples: int = 24,
    cluster_kind: str = "speakers",
    groups: Iterable[Mapping[str, Any]] = (),
    untrained: StageResult | None = None,
    untrained_is: str = "",
    media: Media | None = None,
) -> dict[str, Any]:
    """Writes `report.json`, `report.md`, `plots/*.png` and `report.html`, which needs no other file, into `directory`
    and returns what `report.json` holds.

    `report.json` has the keys `seed`, `config`, `data`, `eval` (stage -> metric -> value or null), `confidence` (same
    shape, `[low, high]` or null) and `timing`; further `test` (clips, clusters and a hash of the clip ids),
    `tokenisation`, `unavailable` (stage -> metric -> reason), `differences` ("grpo - sft" -> metric -> value, low,
    high), `confusion` (stage -> classes, counts), `recalls` (stage -> class -> value, low, high), `ablation` (stage ->
    condition -> eval, confidence), `others` (name -> test, tokenisation, eval, confidence, differences), `intervals`
    (how they were made), `untrained` (what, clips, eval, confidence; or null) and `made` (date, machine, versions).

    Args:
      directory: the run's working directory.
      seed: the run's seed; it also seeds the resamples and the choice of samples.
      config: the configuration as plain JSON types.
      data: counts as plain JSON types. It must hold `synthetic` (bool) and `quarantined`, a list of
        `{"id": ..., "reason": ...}`; everything else is shown as it is.
      results: scored stages, all over the same clips.
      metrics_log: rows of `metrics.jsonl`. A row with `reward` is a GRPO step, one with `loss` and without `reward` an
        SFT step; both have `step`. Rows whose `stage` is neither "sft" nor "grpo" are left out of the curves.
      timing: `total_s`, `compile_s`, `steps`, as plain JSON types.
      ablation: stage -> condition ("audio", "video") -> the same model with less to see. The full model, under the name
        "all", is added from `results`.
      others: clips that are not the run's own, by name -> scored stages, all over the same of them.
      resamples, confidence: as in `intervals.bootstrap`.
      samples: captions shown in `report.md`, drawn at random, evenly over labels.
      cluster_kind: what clusters are, in the plural.
      groups: rows of `completions.jsonl`; gone through once, and never held all together.
      untrained: text without any training, of some of the clips; None: not known.
      untrained_is: what text that is.
      media: the files of a clip by its id, for the players of `report.html`; None: it has none.

    Raises:
      ReportError: no results, stages over different clips or tokenisations, `data` without its two keys, a logged step
        without `step`, a stage in `ablation` that is not in `results`.
    """
    _check(data, results, metrics_log, ablation or {})
    directory = Path(directory)
    first = next(iter(results.values()))
    options = (resamples, confidence, seed)
    elsewhere = {}
    for name, stages in (others or {}).items():
        _check_alike(stages)
        elsewhere[name] = _other(stages, cluster_kind, options)
    report = {
        "seed": seed,
        "config": dict(config),
        "data": dict(data),
        "eval": {stage: result.metrics for stage, result in results.items()},
        "confidence": {stage: result.confidence(*options) for stage, result in results.items()},
        "timing": dict(timing),
        "test": _clips(first, cluster_kind),
        "tokenisation": first.tokenisation,
        "unavailable": {stage: dict(result.unavailable) for stage, result in results.items()},
        "differences": _differences(results, options),
        "confusion": {
            stage: {"classes": list(result.classes), "counts": result.confusion.tolist()}
            for stage, result in results.items()
            if result.confusion is not None
        },
        "recalls": {stage: found for stage, result in results.items() if (found := _recalls(result, options))},
        "ablation": _ablation(results, ablation or {}, options),
        "others": elsewhere,
        "untrained": _untrained(untrained, untrained_is, options),
        "intervals": {"resamples": resamples, "level": confidence, "clusters": cluster_kind},
        "made": _made(),
    }
    text = _to_json(report)
    report = parse_json(text)
    sampled = SampledGroups.read(groups)
    pictures = _draw(directory / "plots", report, results, metrics_log, sampled)
    chosen = _choose(first, samples, seed)
    _write(directory / "report.json", text)
    _write(directory / "report.md", render(report, results, chosen, pictures, sampled))
    addresses = {name: picture_address(directory / path) for name, path in pictures.items()}
    played = players([first.clips[i].id for i in chosen], media) if media else {}
    _write(directory / "report.html", to_page(render(report, results, chosen, addresses, sampled, played)))
    return report


def _clips(result: StageResult, cluster_kind: str) -> dict[str, Any]:
    """What was evaluated."""
    return {
        "clips": len(result.clips),
        cluster_kind: len({clip.cluster for clip in result.clips}),
        "ids_sha256": hashlib.sha256("\n".join(result.ids).encode()).hexdigest(),
    }


def _untrained(result: StageResult | None, what: str, options: tuple) -> dict[str, Any] | None:
    if result is None:
        return None
    parts = {"eval": result.metrics, "confidence": result.confidence(*options)}
    compared = {name: {key: row[key] for key in row if key not in COUNTS} for name, row in parts.items()}
    return {"what": what, "clips": len(result.clips), **compared}


def _other(results: Mapping[str, StageResult], cluster_kind: str, options: tuple) -> dict[str, Any]:
    first = next(iter(results.values()))
    return {
        "test": _clips(first, cluster_kind),
        "tokenisation": first.tokenisation,
        "eval": {stage: result.metrics for stage, result in results.items()},
        "confidence": {stage: result.confidence(*options) for stage, result in results.items()},
        "differences": _differences(results, options),
    }


def _check(
    data: Mapping[str, Any],
    results: Mapping[str, StageResult],
    metrics_log: Sequence[Mapping[str, Any]],
    ablation: Mapping[str, Mapping[str, StageResult]],
):
    if not results:
        raise ReportError("a report needs the results of at least one stage")
    for key in ("synthetic", "quarantined"):
        if key not in data:
            raise ReportError(f"the report's data must say {key!r}, it has {sorted(data)}")
    unknown = sorted(set(ablation) - set(results))
    if unknown:
        raise ReportError(f"ablation of {unknown}, but results only of {sorted(results)}")
    ablated = {f"{stage}/{key}": result for stage, row in ablation.items() for key, result in row.items()}
    _check_alike({**results, **ablated})
    for i, row in enumerate(metrics_log):
        if ("reward" in row or "loss" in row) and "step" not in row:
            raise ReportError(f"row {i} of the metrics log has no 'step'")


def _check_alike(results: Mapping[str, StageResult]) -> None:
    (name, first), *others = results.items()
    for other, result in others:
        if result.ids != first.ids:
            raise ReportError(f"stages {name!r} and {other!r} captioned different clips")
        if result.tokenisation != first.tokenisation:
            both = f"{name!r} ({first.tokenisation}) and {other!r} ({result.tokenisation})"
            raise ReportError(f"stages {both} are tokenised differently")


def _to_json(report: Mapping[str, Any]) -> str:
    for key, part in report.items():
        try:
            json.dumps(part, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ReportError(f"report key {key!r} cannot be written as JSON: {error}") from error
    return to_json(report, indent=2) + "\n"


def _differences(results: Mapping[str, StageResult], options: tuple) -> dict[str, Any]:
    table = {}
    for a, b in pairs(results):
        differences = compare(results[a], results[b], *options).items()
        table[pair_name(a, b)] = {
            key: dict(zip(("value", "low", "high"), map(_finite, (d.value, *(d.interval or (math.nan, math.nan))))))
            for key, d in differences
        }
    return table


def _finite(number: float) -> float | None:
    """None for what is undefined: the share of true claims among none, say."""
    return number if math.isfinite(number) else None


def _recalls(result: StageResult, options: tuple) -> dict[str, Any]:
    """Recall of every class that clips have, with its interval; empty where captions are not read as classes."""
    if result.confusion is None:
        return {}
    recalls = recognition(result.predicted, [clip.label for clip in result.clips], result.classes).recalls
    intervals = bootstrap(recalls, [clip.cluster for clip in result.clips], *options)
    return {
        name: dict(zip(("value", "low", "high"), (recall.value, *(intervals[name] or (None, None)))))
        for name, recall in recalls.items()
    }


def _ablation(
    results: Mapping[str, StageResult], ablation: Mapping[str, Mapping[str, StageResult]], options: tuple
) -> dict[str, Any]:
    return {
        stage: {
            condition: {"eval": result.metrics, "confidence": result.confidence(*options)}
            for condition, result in {**conditions, "all": results[stage]}.items()
        }
        for stage, conditions in ablation.items()
    }


def _made() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _draw(
    directory: Path,
    report: Mapping[str, Any],
    results: Mapping[str, StageResult],
    metrics_log: Sequence[Mapping[str, Any]],
    groups: SampledGroups | None,
) -> dict[str, str]:
    """Draws what there is to draw; returns each picture's path relative to the report by its name."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []

    def path(name: str) -> Path:
        drawn.append(name)
        return directory / f"{name}.png"

    first = next(iter(results.values()))
    of = f"{report['intervals']['level']:.0%} intervals over {report['intervals']['clusters']}"
    keys = ("uar", "emotion_uar", "emotion_word_uar")
    chance = dict.fromkeys(keys, 1 / len(report["recalls"][next(iter(report["recalls"]))])) if report["recalls"] else {}
    floors = {"chance": chance, UNTRAINED: (report[UNTRAINED] or {}).get("eval", {})}
    plots.plot_metrics(report["eval"], report["confidence"], floors, f"Metrics, with {of}", path("metrics"))
    leading = next(iter(report["differences"]), "").partition(" - ")[0]
    floor = pair_name(leading, "text_only")  # beside it, all other differences would be dots at zero
    led = {pair: row for pair, row in report["differences"].items() if pair.startswith(f"{leading} - ")}
    if led := {pair: row for pair, row in led.items() if pair != floor and set(row) & set(COMPARED)}:
        plots.plot_differences(led, f"paired differences, with {of}", path("differences"))
    rows = [row for row in metrics_log if row.get("stage") in (None, "sft", "grpo")]
    grpo = [row for row in rows if "reward" in row]
    sft = [row for row in rows if "loss" in row and "reward" not in row]
    if sft:
        training_plots.plot_sft(sft, path("sft"))
    if grpo:
        training_plots.plot_grpo(grpo, _fixed_weights(report["config"]), path("grpo"))
    if groups is not None:
        training_plots.plot_groups(groups, path("groups"))
    labels = [clip.label for clip in first.clips]
    shown = {s: row for s, row in report["recalls"].items() if s in ("sft", "grpo", "text_only")} or report["recalls"]
    if shown:
        clips = {name: labels.count(name) for name in first.classes if name in labels}
        plots.plot_recalls(shown, clips, f"Recall by {first.reading}, with {of}", path("recalls"))
    readings = {s: r.readings for s, r in results.items() if s in ("sft", "grpo") and r.confusion is not None}
    if readings:
        plots.plot_confusion(readings, labels, first.classes, path("confusion"))
    values, intervals = (
        {s: {c: entry[part] for c, entry in row.items()} for s, row in report["ablation"].items()}
        for part in ("eval", "confidence")
    )
    keys = [key for key in ABLATION_KEYS if any(key in entry for row in values.values() for entry in row.values())]
    if keys:
        text_only = {"text only": report["eval"].get("text_only", {})}
        plots.plot_ablation(values, intervals, keys, floors | text_only, path("ablation"))
    return {name: f"plots/{name}.png" for name in drawn}


def _fixed_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Weight by reward term where the reward is their sum with weights that stay; else empty."""
    reward = (config.get("grpo") or {}).get("reward", {})
    terms = reward.get("terms", ())
    is_fixed = reward.get("combine") == "sum" and not any(term.get("schedule") for term in terms)
    return {term["name"]: term["weight"] for term in terms} if is_fixed else {}


def _choose(result: StageResult, samples: int, seed: int) -> list[int]:
    """Returns indices of clips, drawn at random and as evenly over labels as there are clips, in label order."""
    generator = random.Random(seed)
    by_label: dict[str, list[int]] = {}
    for i, clip in enumerate(result.clips):
        by_label.setdefault(clip.label or "", []).append(i)
    queues = [generator.sample(by_label[label], len(by_label[label])) for label in sorted(by_label)]
    turns = [queue[turn] for turn in range(len(result.clips)) for queue in queues if turn < len(queue)]
    return sorted(turns[:samples], key=lambda i: (result.clips[i].label or "", i))


def _write(path: Path, text: str):
    """Writes a file as a whole: a reader sees the old one or the new one."""
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
