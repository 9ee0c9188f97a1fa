"""The model card of an export: `README.md` with YAML front matter, from a run's configuration and report.

Whatever was written by others (configurations, names of data, licences) is escaped: in the front matter as JSON
strings, which are YAML, in the text by `tables.escape`, in code as Python literals.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.config import Config, GrpoConfig, RewardSpec, SftConfig, row_of, stage_config
from mecap_jax.evaluation.card_usage import transformers_usage
from mecap_jax.evaluation.tables import escape, format_value, markdown_table, metric_cell, ordered, stage_title
from mecap_jax.families import FAMILIES
from mecap_jax.json_files import to_json

CARD_FILE = "README.md"
# Asks for nothing in return, so that it decides nothing about a work that it is part of.
_PUBLIC_DOMAIN = "cc0-1.0"


@dataclasses.dataclass(frozen=True)
class About:
    """What a task says of a model that was trained for it.

    Attributes:
      does: what the model does, behind "a model that".
      limits: what its answers and figures are not, whole sentences.
    """

    does: str
    limits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Export:
    """What a card tells about.

    Attributes:
      config: of the run.
      stage: whose weights these are; `steps`: how many it took.
      instruction: the request in its prompts.
      about: what the task says of it.
      dtype: of the tensors.
      adapters: whether these are adapters without the weights that they are for.
      report: what `report.json` holds, {} without one.
      data: what is known of the data: `report["data"]`, or as much of it as there is.
      base: the backbone's directory, "" without one.
    """

    config: Config
    stage: str
    instruction: str
    about: About
    steps: int
    dtype: str
    adapters: bool
    report: Mapping[str, Any]
    data: Mapping[str, Any]
    base: str


def render_card(export: Export) -> str:
    """Returns the card as Markdown."""
    sections = [
        _front_matter(export),
        _head(export),
        _recipe(export),
        _data(export),
        _metrics(export),
        _usage(export),
        _licences(export),
        _limitations(export),
    ]
    return "\n\n".join(sections) + "\n"


def base_name(directory: str) -> str:
    """The name of a backbone: that of its directory, under its publisher's where it has the name of a published one."""
    name = Path(directory).name
    return f"Qwen/{name}" if re.fullmatch(r"Qwen(2\.5|3)-[\w.-]+", name) else name


# --- front matter --------------------------------------------------------------------------------------------------


def _front_matter(export: Export) -> str:
    seen = _seen(export)
    fields: dict[str, Any] = {"license": _licence(export)}
    if export.base:
        fields["base_model"] = base_name(export.base)
        fields["base_model_relation"] = "adapter" if export.adapters else "finetune"
    fields["library_name"] = "peft" if export.adapters else "transformers"
    task = "video" if "video" in seen else "audio" if "audio" in seen else None
    fields["pipeline_tag"] = f"{task}-text-to-text" if task else "text-generation"
    method = _kind(export, export.stage)
    synthetic = ["synthetic-data"] if _synthetic(export) else []
    fields["tags"] = ["emotion-captioning", "emotion-recognition", method, *seen, *synthetic, "mecap-jax"]
    lines = [f"{key}: {to_json(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _licence(export: Export) -> str:
    """The one licence that all parts have, "other" where there are several or one is not known."""
    found = {str(name).lower() for name in export.data.get("licences", {"": 0})}
    if export.base:
        found.add(_base_licence(export.base)[0].lower())
    asking = found - {_PUBLIC_DOMAIN} or {_PUBLIC_DOMAIN}
    licence = asking.pop()
    return licence if not asking and re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,40}", licence) else "other"


def _base_licence(directory: str) -> tuple[str, str]:
    """The identifier and the name of the licence that a backbone's own card states; "" for what it does not."""
    card = Path(directory) / CARD_FILE
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([\w.+-]+)", front.group(1), re.M)) if front else {}
    return found.get("license", ""), found.get("license_name", "")


# --- sections ------------------------------------------------------------------------------------------------------


def _head(export: Export) -> str:
    config = stage_config(export.config, export.stage)
    what = "Low-rank adapters for a model" if export.adapters else "A model"
    reads = {"audio": "speech", "video": "a face", "features": "precomputed features"}
    seen = [reads[kind] for kind in _seen(export)] + (["a transcript"] if config.data.include_transcript else [])
    text = f"# {escape(config.name)}: {escape(stage_title(export.stage))}\n\n"
    text += f"{what} that {export.about.does}, from {_listed(seen) or 'the request alone'}. "
    if export.base:
        text += f"It goes on from {escape(base_name(export.base))}. "
    else:
        text += "It was trained from random weights. "
    text += f"Trained with mecap_jax; tensors are {export.dtype}."
    if _synthetic(export):
        text += (
            "\n\n**The training and test data are synthetic.** The figures below show that the system learns, not how "
            "well it hears people."
        )
    return text


def _recipe(export: Export) -> str:
    config, model = export.config, export.config.model
    if model.lora is not None:
        targets = ", ".join(map(escape, model.lora.targets))
        adapted = f"adapters of rank {model.lora.rank}, alpha {model.lora.alpha:g}, on {targets}"
    trained = [escape(pattern) for pattern in config.trainable] + ([adapted] if model.lora is not None else [])
    rows = [
        ["model", f"{escape(model.name)} ({escape(model.family)})"],
        ["what trains (patterns over parameter names)", _listed(trained)],
        ["parameters and matrix products in training", f"{model.param_dtype}, {model.dtype}"],
        ["seed", str(config.seed)],
        ["steps of the last stage", str(export.steps)],
    ]
    row = row_of(config, export.stage)
    before = row.after if row else "sft" if export.stage == "grpo" else ""
    lines = [_describe_stage(export, stage) for stage in filter(None, (before, export.stage))]
    numbered = [f"{n}. {line}" for n, line in enumerate(filter(None, lines), 1)]
    return "\n\n".join(["## Recipe", markdown_table(["setting", "value"], rows, numbers=False), "\n".join(numbered)])


def _describe_stage(export: Export, stage: str) -> str:
    config = stage_config(export.config, stage)
    if _kind(export, stage) == "grpo":
        return _describe_grpo(config.grpo, stage) if config.grpo else ""
    if config.sft is None:
        return ""
    steps = export.steps if stage == export.stage else config.sft.steps  # those of a row may follow from a clock
    return _describe_sft(config.sft, stage, steps)


def _describe_sft(sft: SftConfig, stage: str, steps: int) -> str:
    optimizer = sft.optimizer
    return (
        f"{escape(stage_title(stage))}: {steps} steps of {sft.batch_clips} clips with {sft.references} references "
        f"each, {escape(optimizer.name)} at {optimizer.learning_rate:g}."
    )


def _describe_grpo(grpo: GrpoConfig, stage: str) -> str:
    # A term of one's own is "path/to/file.py:function".
    weights = [
        f"{escape(Path(spec.name).name)} {spec.weight:g}{_options(spec)}" for spec in grpo.reward.terms if spec.weight
    ]
    return (
        f"{escape(stage_title(stage))}: {grpo.steps} steps of {grpo.prompts} prompts with groups of {grpo.group_size}, "
        f"{escape(grpo.optimizer.name)} at {grpo.optimizer.learning_rate:g}; loss {escape(grpo.loss.name)}, advantage "
        f"{escape(grpo.advantage)}, KL weight {grpo.loss.beta:g}, weight of the references' likelihood "
        f"{grpo.loss.reference_likelihood:g}; reward weights: {', '.join(weights) or 'none'}."
    )


def _options(spec: RewardSpec) -> str:
    options = ", ".join(f"{escape(key)} {escape(str(value))}" for key, value in spec.options.items())
    return f" ({options})" if options else ""


def _data(export: Export) -> str:
    data = export.data
    if not data:
        return "## Data\n\nThe run left no record of its data."
    rows = [["source", escape(_source(data) or "not recorded")]]
    rows.append(["synthetic", "yes" if _synthetic(export) else "no"])
    counted = {
        "datasets": "corpora (clips)",
        "speech_languages": "languages of the speech (clips)",
        "caption_languages": "languages of the captions (clips)",
    }
    for key, title in counted.items():
        if data.get(key):
            rows.append([title, ", ".join(f"{escape(str(name))} ({count})" for name, count in data[key].items())])
    for split, counts in (data.get("splits") or {}).items():
        clips, speakers = (escape(str(counts.get(key, "?"))) for key in ("records", "speakers"))
        rows.append([f"clips, {escape(str(split))}", f"{clips} of {speakers} speakers"])
    for split, count in (data.get("used") or {}).items():
        rows.append([f"clips used, {escape(str(split))}", escape(str(count))])
    for key, title in (("sft_clips", "train clips that SFT saw"), ("held_out_from_sft", "train clips for RL only")):
        if key in data:
            rows.append([title, escape(str(data[key]))])
    if "quarantined" in data:
        rows.append(["quarantined clips", str(len(data["quarantined"]))])
    return "## Data\n\n" + markdown_table(["", "value"], rows, numbers=False)


def _metrics(export: Export) -> str:
    values = export.report.get("eval", {}).get(export.stage)
    if not values:
        return "## Metrics\n\nNot evaluated."
    intervals = export.report.get("confidence", {}).get(export.stage) or {}
    rows = [[metric_cell(key), format_value(key, values[key], intervals.get(key))] for key in ordered(values)]
    test, how = export.report.get("test", {}), export.report.get("intervals", {})
    clusters, split = str(how.get("clusters", "speakers")), str(export.data.get("evaluated_split", "test"))
    note = (
        f"On {escape(str(test.get('clips', '?')))} {escape(split)} clips of {escape(str(test.get(clusters, '?')))} "
        f"{escape(clusters)}; in brackets the bootstrap interval at level {escape(str(how.get('level', '?')))}."
    )
    return "\n\n".join(["## Metrics", note, markdown_table(["metric", "value"], rows)])


def _usage(export: Export) -> str:
    config, model = stage_config(export.config, export.stage), export.config.model
    data = dataclasses.replace(config.data, instruction=export.instruction)
    base = base_name(export.base) if export.adapters else ""
    code = transformers_usage(model, data, _seen(export), config.longest_answer, base)
    family = FAMILIES[model.family]
    parts = ["## Use with transformers", f"With version {family.versions}; the prompt is the one that was trained."]
    parts.append(_fenced(code))
    if family.limits_in_call and model.vision is not None:
        parts.append(
            "The processor of this family ignores the limits in `video_preprocessor_config.json`: without `size` in "
            "`videos_kwargs`, frames come out at another size than in training."
        )
    if model.features is not None:
        parts.append(
            "`feature_projector.safetensors` is no part of the `transformers` model: it turns precomputed features "
            "into embeddings that stand in the prompt, as above. Without them the model reads text only."
        )
    if not export.adapters:
        ours = 'from mecap_jax import Captioner\n\nmodel = Captioner.from_pretrained(".")  # this directory'
        shell = "python scripts/caption.py --checkpoint=DIRECTORY CLIP..."
        parts += ["## Use with mecap_jax", _fenced(ours), _fenced(shell, "sh")]
    return "\n\n".join(parts)


def _licences(export: Export) -> str:
    rows = []
    if export.base:
        known = [escape(name) for name in _base_licence(export.base) if name]
        rows.append([f"backbone {escape(base_name(export.base))}", " / ".join(known) or "see its publisher"])
    for name, count in (export.data.get("licences") or {"": ""}).items():
        clips = f"data, {escape(str(count))} clips" if count != "" else "data"
        rows.append([clips, escape(str(name)) or "not recorded"])
    return (
        "## Licences of the parts\n\n"
        + markdown_table(["part", "licence"], rows, numbers=False)
        + "\n\nThe header names a licence only where all parts have it; works without conditions (CC0) do not count."
    )


def _limitations(export: Export) -> str:
    lines = []
    if _synthetic(export):
        lines.append(
            "It has learnt from synthesised speech and drawn faces, with captions from a grammar. Nothing is known of "
            "how it does on recordings of people; do not use it on them to decide anything."
        )
    lines.append(
        "What it says is a guess about expression, not knowledge of what someone feels. Voices, faces, languages and "
        "cultures that the data do not have may be described wrongly."
    )
    lines += export.about.limits
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


# --- small things --------------------------------------------------------------------------------------------------


def _kind(export: Export, stage: str) -> str:
    """Which kind of stage one is, a row of comparison included: "sft" or "grpo"."""
    row = row_of(export.config, stage)
    return row.stage if row else "grpo" if stage == "grpo" else "sft"


def _seen(export: Export) -> tuple[str, ...]:
    return stage_config(export.config, export.stage).data.modalities


def _source(data: Mapping[str, Any]) -> str:
    """The importer's name: its other settings may hold paths."""
    source = data.get("source", "")
    return str(source.get("importer", "") if isinstance(source, Mapping) else source)


def _synthetic(export: Export) -> bool:
    return bool(export.data.get("synthetic"))


def _listed(names: Iterable[str]) -> str:
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```"
