"""What the index tells before anything is trained: which clips can be used, and whether a run can work with them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mecap_jax.config import Config, DataConfig
from mecap_jax.data.clips import joined_length
from mecap_jax.data.fitting import fit_to_data, has_modality, length
from mecap_jax.data.language import has_word
from mecap_jax.data.manifest import BadClip, IndexRow
from mecap_jax.data.media import MediaError
from mecap_jax.data.shards import summarise_bad
from mecap_jax.data.utterance import Utterance
from mecap_jax.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `check_data` found.

    Attributes:
      config: the configuration with what could be worked around.
      problems: why the run cannot start.
      remarks: what the run does about everything else that is not as it should be.
    """

    config: Config
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def why_unusable(row: IndexRow, config: DataConfig, model: ModelConfig) -> str | None:
    """Why a run cannot use a clip, None if it can."""
    if not references(row, config.target):
        wordless = " with a word in it" if row.captions.get(config.target) else ""
        return f"has no {config.target!r} caption{wordless}"
    if config.modalities and not any(has_modality(row, name) for name in config.modalities):
        return f"has none of the modalities {config.modalities}"
    if "features" in config.modalities and row.features:
        try:
            joined_length(row.features, model.features)
        except MediaError as error:
            return str(error)
    return None


def references(row: IndexRow | Utterance, target: str) -> tuple[str, ...]:
    """The captions of a kind that say something: "😢" is none."""
    return tuple(text for text in row.captions.get(target, ()) if has_word(text))


def in_sft_share(row: IndexRow, share: float) -> bool:
    """Whether a training clip belongs to the share that SFT learns from; depends on its id only."""
    return int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big") / 2**64 < share


def too_many_bad(bad: Sequence[BadClip], total: int, allowed: float) -> str | None:
    """Says so where no clip is left, or more than the allowed share is left out; None where all is well."""
    if len(bad) < total and len(bad) <= allowed * total:
        return None
    return (
        f"{len(bad)} of {total} clips cannot be used, more than data.max_bad_fraction = {allowed:.1%} allows:\n"
        f"{summarise_bad(bad)}"
    )


def remark_on_length(rows: Sequence[IndexRow], max_seconds: float) -> str | None:
    """Says how many clips are cut to `max_seconds`; None where none is."""
    longer = [length(row) for row in rows if length(row) > max_seconds]
    if not longer:
        return None
    return (
        f"{len(longer)} of {len(rows)} clips last longer than {max_seconds:g} s (data.max_seconds) and are cut there; "
        f"the longest lasts {max(longer):.1f} s"
    )


def check_data(
    index: Sequence[IndexRow],
    config: Config,
    quarantined: Sequence[BadClip] = (),
    anchor_labels: Sequence[str] | None = None,
) -> Findings:
    """Checks that a run can work with its data: clips, splits, batches, labels, references, languages.

    Args:
      index: all clips of the shards.
      config: of the run.
      quarantined: clips that are not in the index.
      anchor_labels: the labels of an anchors file; None where anchors come from the train captions.
    """
    problems, remarks = [], []
    bad = {row.id: reason for row in index if (reason := why_unusable(row, config.data, config.model))}
    rows = [row for row in index if row.id not in bad]
    left_out = [*quarantined, *(BadClip(*item) for item in bad.items())]
    if many := too_many_bad(left_out, len(index) + len(quarantined), config.data.max_bad_fraction):
        problems.append(many)
    splits = {split: [row for row in rows if row.split == split] for split in ("train", "validation", "test")}
    evaluated = splits["test"] or splits["validation"]
    if not evaluated:
        problems.append("no clip is in split test or validation: put some speakers there, or nothing can be evaluated")
    elif not splits["test"]:
        remarks.append(f"no clip is in split test: the report is on the {len(evaluated)} validation clips")
    elif not splits["validation"]:
        remarks.append("no clip is in split validation: nothing is validated while training")
    shared = sorted({row.speaker for row in splits["train"]} & {row.speaker for row in evaluated})
    if shared:
        speakers = _counted(shared, "speaker")
        remarks.append(f"{speakers} of the evaluated clips occur in training clips, too: {_list(shared)}")
    config = _share_clips(config, splits["train"], problems, remarks)
    _check_media(config.data, rows, remarks)
    _check_labels(splits["train"], evaluated, anchor_labels, remarks)
    _check_references(config, rows, problems, remarks)
    return Findings(config, tuple(problems), tuple(remarks))


def _share_clips(config: Config, train: Sequence[IndexRow], problems: list[str], remarks: list[str]) -> Config:
    """Gives a stage all training clips where its share does not fill a batch."""
    share = config.data.sft_share
    sizes = {"all": len(train), "sft": sum(in_sft_share(row, share) for row in train)}
    sizes["held_out"] = sizes["all"] - sizes["sft"]
    stages = {"sft": ("batch_clips", config.sft), "grpo": ("prompts", config.grpo)}
    if "sft_control" in config.evaluation.rows:
        stages["control"] = ("batch_clips", config.control)
    for name, (key, stage) in stages.items():
        if stage is None:
            continue
        batch = getattr(stage, key)
        if sizes["all"] < batch:
            problems.append(f"config key '{name}.{key}': {batch} clips a step, but only {sizes['all']} train; lower it")
        elif sizes[stage.clips] < batch:
            part = {"sft": "the share of SFT (data.sft_share)", "held_out": "what is held out from SFT"}[stage.clips]
            remarks.append(
                f"{part} is {sizes[stage.clips]} clips, less than a batch ({name}.{key} = {batch}): "
                f"{name} learns from all {sizes['all']} training clips"
            )
            config = dataclasses.replace(config, **{name: dataclasses.replace(stage, clips="all")})
    return config


def _check_media(data: DataConfig, rows: Sequence[IndexRow], remarks: list[str]) -> None:
    fitted = fit_to_data(data, rows)
    for name in data.modalities:
        if name not in fitted.modalities:
            rest = ", ".join(fitted.modalities) or "the transcript only"
            remarks.append(f"no clip has {name}: the model sees {rest}")
    if remark := remark_on_length(rows, fitted.max_seconds):
        remarks.append(remark)


def _check_labels(
    train: Sequence[IndexRow], evaluated: Sequence[IndexRow], anchor_labels: Sequence[str] | None, remarks: list[str]
) -> None:
    known = {row.label for row in train if row.label}
    if anchor_labels is not None:
        if lacking := sorted(known - set(anchor_labels)):
            remarks.append(f"the anchors of config key 'encoder.anchors' lack labels of the clips: {_list(lacking)}")
        known = set(anchor_labels)
    elif len(known) < 2:
        remarks.append(
            f"training clips have {_counted(known, 'emotion label')}, too few for anchors of their own: anchors come "
            "from template phrases"
        )
        return
    unseen = Counter(row.label for row in evaluated if row.label and row.label not in known)
    if unseen:
        remarks.append(f"labels that training never sees count as missed in evaluation: {_clips(unseen)}")


def _check_references(config: Config, rows: Sequence[IndexRow], problems: list[str], remarks: list[str]) -> None:
    target = config.data.target
    wordless = [text for row in rows for text in row.captions[target] if not has_word(text)]
    if wordless:
        remarks.append(f"{_counted(wordless, 'reference')} without a word left out: {_list(map(repr, wordless))}")
    foreign = Counter(row.caption_language for row in rows if not row.caption_language.startswith("en"))
    if foreign and not config.encoder.path:
        reward = config.grpo.reward if config.grpo else None
        needed = reward and (reward.emotion or reward.semantic or reward.distinctiveness)
        refused = needed and sum(foreign.values()) > config.data.max_bad_fraction * len(rows)
        says = "the reward would be noise" if refused else "figures that rest on it say nothing of these clips"
        (problems if refused else remarks).append(
            f"captions are in {_clips(foreign)}, and the packaged sentence encoder reads English only: {says}; name a "
            "multilingual one (config key 'encoder.path')"
        )


def _counted(things: Iterable[object], name: str) -> str:
    count = len(list(things))
    return f"{count or 'no'} {name}{'' if count == 1 else 's'}"


def _clips(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} ({count} clips)" for name, count in Counter(counts).most_common())


def _list(names: Iterable[str], shown: int = 5) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
