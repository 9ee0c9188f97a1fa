"""What the index tells before anything is trained: which clips can be used, and whether a run can work with them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from mecap_jax.config import Config, DataConfig
from mecap_jax.data.clips import joined_length
from mecap_jax.data.fitting import fit_to_data, has_modality, length
from mecap_jax.data.language import has_word
from mecap_jax.data.manifest import BadClip, ClipRecord
from mecap_jax.data.media import MediaError
from mecap_jax.data.questions import Questions
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


class Judgement(NamedTuple):
    """What a task has against the data as a whole: why a run cannot start, and what it does about all else."""

    problems: list[str]
    remarks: list[str]


def why_undecodable(record: ClipRecord, config: DataConfig, model: ModelConfig) -> str | None:
    """Why a clip has nothing that a model of this configuration can be shown, None if it has."""
    if config.modalities and not any(has_modality(record, name) for name in config.modalities):
        return f"has none of the modalities {config.modalities}"
    if "features" in config.modalities and record.features:
        try:
            joined_length(record.features, model.features)
        except MediaError as error:
            return str(error)
    return None


def references(record: ClipRecord | Utterance, target: str) -> tuple[str, ...]:
    """The captions of a kind that say something: "😢" is none."""
    return tuple(text for text in record.captions.get(target, ()) if has_word(text))


def in_sft_share(record: ClipRecord, share: float) -> bool:
    """Whether a training clip belongs to the share that SFT learns from; depends on its id only."""
    return int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:8], "big") / 2**64 < share


def too_many_bad(bad: Sequence[BadClip], total: int, allowed: float) -> str | None:
    """Says so where no clip is left, or more than the allowed share is left out; None where all is well."""
    if len(bad) < total and len(bad) <= allowed * total:
        return None
    return (
        f"{len(bad)} of {total} clips cannot be used, more than data.max_bad_fraction = {allowed:.1%} allows:\n"
        f"{summarise_bad(bad)}"
    )


def remark_on_length(records: Sequence[ClipRecord], max_seconds: float) -> str | None:
    """Says how many clips are cut to `max_seconds`; None where none is."""
    longer = [length(record) for record in records if length(record) > max_seconds]
    if not longer:
        return None
    return (
        f"{len(longer)} of {len(records)} clips last longer than {max_seconds:g} s (data.max_seconds) and are cut "
        f"there; the longest lasts {max(longer):.1f} s"
    )


class Checked(Questions, Protocol):
    """A task that also judges the data as a whole."""

    def check(
        self,
        config: Config,
        train: Sequence[ClipRecord],
        evaluated: Sequence[ClipRecord],
        records: Sequence[ClipRecord],
    ) -> Judgement:
        """What is wrong, and what is odd, about the clips that it can use: of the training split, of the split that the
        report is on, and all."""


def check_data(index: Sequence[ClipRecord], config: Config, task: Checked) -> Findings:
    """Checks that a run can work with its data: clips, splits, batches, and what its task wants of them.

    Args:
      index: all clips of the shards.
      config: of the run.
      task: what the model is asked.
    """
    problems, remarks = [], []
    bad = {
        record.id: reason
        for record in index
        if (reason := task.usable(record) or why_undecodable(record, config.data, config.model))
    }
    records = [record for record in index if record.id not in bad]
    left_out = [BadClip(*item) for item in bad.items()]
    if many := too_many_bad(left_out, len(index), config.data.max_bad_fraction):
        problems.append(many)
    splits = {
        split: [record for record in records if record.split == split] for split in ("train", "validation", "test")
    }
    evaluated = splits["test"] or splits["validation"]
    if not evaluated:
        problems.append("no clip is in split test or validation: put some speakers there, or nothing can be evaluated")
    elif not splits["test"]:
        remarks.append(f"no clip is in split test: the report is on the {len(evaluated)} validation clips")
    elif not splits["validation"]:
        remarks.append("no clip is in split validation: nothing is validated while training")
    shared = sorted({record.speaker for record in splits["train"]} & {record.speaker for record in evaluated})
    if shared:
        speakers = counted(shared, "speaker")
        remarks.append(f"{speakers} of the evaluated clips occur in training clips, too: {listed(shared)}")
    config = _share_clips(config, splits["train"], task, problems, remarks)
    _check_media(config.data, records, remarks)
    judged = task.check(config, splits["train"], evaluated, records)
    problems += judged.problems
    remarks += judged.remarks
    return Findings(config, tuple(problems), tuple(remarks))


def _share_clips(
    config: Config, train: Sequence[ClipRecord], task: Questions, problems: list[str], remarks: list[str]
) -> Config:
    """Gives a stage all training clips where its share does not fill a batch."""
    share = config.data.sft_share
    shares = {"all": train, "sft": [record for record in train if in_sft_share(record, share)]}
    shares["held_out"] = [record for record in train if not in_sft_share(record, share)]
    keys = {"sft": "batch_clips", "grpo": "prompts"}

    def clips(name: str) -> dict[str, int]:
        """How many clips a kind of stage learns from; reinforcement learning needs no answers."""
        return {
            part: sum(name == "grpo" or bool(task.targets(record)) for record in records)
            for part, records in shares.items()
        }

    for name, key in keys.items():
        stage = getattr(config, name)
        if stage is None:
            continue
        batch, sizes = getattr(stage, key), clips(name)
        if sizes["all"] < batch:
            silent = len(train) - sizes["all"]
            why = f" ({silent} more training clips have no answer that could be learnt)" if silent else "; lower it"
            problems.append(f"config key '{name}.{key}': {batch} clips a step, but only {sizes['all']} train{why}")
        elif sizes[stage.clips] < batch:
            part = {"sft": "the share of SFT (data.sft_share)", "held_out": "what is held out from SFT"}[stage.clips]
            remarks.append(
                f"{part} is {sizes[stage.clips]} clips, less than a batch ({name}.{key} = {batch}): "
                f"{name} learns from all {sizes['all']} training clips"
            )
            config = dataclasses.replace(config, **{name: dataclasses.replace(stage, clips="all")})
    return config


def _check_media(data: DataConfig, records: Sequence[ClipRecord], remarks: list[str]) -> None:
    fitted = fit_to_data(data, records)
    for name in data.modalities:
        if name not in fitted.modalities:
            rest = ", ".join(fitted.modalities) or "the transcript only"
            remarks.append(f"no clip has {name}: the model sees {rest}")
    if remark := remark_on_length(records, fitted.max_seconds):
        remarks.append(remark)


def counted(things: Iterable[object], name: str) -> str:
    """Returns "3 references" or "no reference", say."""
    count = len(list(things))
    return f"{count or 'no'} {name}{'' if count == 1 else 's'}"


def clip_counts(counts: Mapping[str, int]) -> str:
    """Returns "'de' (3 clips)" and so on, the most frequent first."""
    return ", ".join(f"{name!r} ({count} clips)" for name, count in Counter(counts).most_common())


def listed(names: Iterable[str], shown: int = 5) -> str:
    """Returns the first few different names."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
