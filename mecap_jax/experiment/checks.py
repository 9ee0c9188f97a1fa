"""What would end a run late is tried early: patterns, data, rewards, and what every row of comparison asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mecap_jax.config import Config, ConfigError, GrpoConfig, SftConfig, chosen_rows
from mecap_jax.data.checks import check_data
from mecap_jax.data.pipeline import DataError
from mecap_jax.data.shards import ShardError, ShardReader, summarise_bad
from mecap_jax.experiment.workbench import Workbench, common_clips
from mecap_jax.model_config import LoraConfig
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.lora import ADAPTER_LEAVES
from mecap_jax.models.multimodal_lm import TOWERS
from mecap_jax.models.parameters import split_params
from mecap_jax.rl.policy_judge import question_room
from mecap_jax.sharding import make_mesh
from mecap_jax.tasks.registry import make_task
from mecap_jax.train_state import abstract_model
from mecap_jax.training.logging import RunLogger


def check_trainable(config: Config) -> list[str]:
    """Tries the patterns of `trainable` and `model.lora.targets` on the model's shapes, before any data is made.

    Returns remarks on what adapters leave out that a user may not expect.

    Raises:
      ConfigError: one of them matches nothing, nothing trains, or part of a tower does that `data.tower_cache` needs
        frozen.
    """
    _, abstract = abstract_model(config.model, make_mesh(config.mesh))
    trainable = flatten(split_params(abstract, config.trainable)[0])
    if config.data.tower_cache:
        _check_frozen_towers(config, trainable)
    return _unadapted(config, trainable)


def _unadapted(config: Config, trainable: Mapping[str, Any]) -> list[str]:
    if config.model.lora is None or config.model.decoder.encoder is None:
        return []
    parts = {"the encoder": "language_model.encoder.layers.", "the attention to the encoder": ".encoder_attn."}
    idle = [name for name, part in parts.items() if not any(part in path for path in trainable)]
    if not idle:
        return []
    (whole,) = LoraConfig.of_text(config.model.decoder).targets
    return [f"config key 'model.lora.targets': nothing trains in {' and in '.join(idle)}; {whole!r} is all of the text"]


def _check_frozen_towers(config: Config, trainable: Mapping[str, Any]) -> None:
    towers = [name for modality, name in TOWERS.items() if modality in config.data.modalities]
    for path in trainable:
        if path.split(".")[0] in towers:
            adapter = path.rpartition(".")[2] in ADAPTER_LEAVES
            raise ConfigError(
                f"config key 'data.tower_cache': towers must be frozen, but {path!r} trains "
                f"(see config key {'model.lora.targets' if adapter else 'trainable'!r})"
            )


def checked_against(reader: ShardReader, config: Config, logger: RunLogger) -> Config:
    """The configuration with what could be worked around in the data; says what that is.

    Raises:
      DataError: the data cannot be used; names everything that is wrong with them.
    """
    found = check_data(reader.index, config, make_task(config))
    for remark in found.remarks:
        logger.say(remark)
    if found.problems:
        raise DataError("\n".join([f"{reader.directory} cannot be trained on:", *found.problems]))
    return found.config


def check_stages(bench: Workbench) -> None:
    """Tries what stages and rows of comparison will ask for, while nothing has been trained that could be lost.

    Raises:
      ConfigError, DataError: a reward that cannot be made as it is spelt, a row that its data do not suffice for, or
        shapes or questions that are too long for the network.
    """
    _check_positions(bench)
    if bench.config.grpo is not None:
        _check_rewards(bench, bench.config.grpo)
    if bench.config.sft is not None:
        _check_exercises(bench, bench.config.sft)
    stages = {"": bench}
    for row in chosen_rows(bench.config):
        stages[row.name] = bench.for_row(row)
        _tell_left_out(stages[row.name], f"row {row.name!r}", bench)
        try:
            _check_positions(stages[row.name])
            _check_row(stages[row.name], row.stage)
            _check_common(stages, row.name)
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error
    for directory in bench.config.evaluation.others:
        _check_other(stages, Path(directory))


def _check_other(stages: Mapping[str, Workbench], directory: Path) -> None:
    """Refuses further shards that not every stage, by name, can be evaluated on; the run itself has no name."""
    try:
        reader = ShardReader(directory)
    except ShardError as error:
        raise ConfigError(f"config key 'evaluation.others': {error}") from error
    over: dict[str, Workbench] = {}
    for name, stage in stages.items():
        try:
            over[name] = stage.over(reader)
            _check_common(over, name)
        except (ConfigError, DataError) as error:
            row = f"row {name!r}: " if name else ""
            raise ConfigError(f"config key 'evaluation.others': {directory}: {row}{error}") from error
    for name, stage in over.items():
        _tell_left_out(stage, f"{directory}, row {name!r}" if name else str(directory), over[""])


def _tell_left_out(bench: Workbench, name: str, run: Workbench) -> None:
    """Says which clips a bench leaves out, other than what the import left out, and what the run leaves out anyway."""
    known = {clip["id"] for clip in bench.reader.manifest["quarantined"]}
    known |= {clip.id for clip in run.dataset.quarantined} if bench is not run else set()
    if left_out := [clip for clip in bench.dataset.quarantined if clip.id not in known]:
        bench.logger.say(f"{name}: {len(left_out)} clips are left out:\n{summarise_bad(left_out)}")


def _check_row(bench: Workbench, stage: str) -> None:
    """Tries what a row of comparison will ask for; `bench` is the row's."""
    settings = getattr(bench.config, stage)
    if stage == "sft":
        key, clips = "batch_clips", bench.dataset.teaching("train", settings.clips)
        _check_exercises(bench, settings)
    else:
        key, clips = "prompts", bench.dataset.clips("train", settings.clips)
        _check_rewards(bench, settings)
    if len(clips) < (batch := getattr(settings, key)):
        raise ConfigError(f"'{stage}.{key}': {batch} clips a step, but only {len(clips)} train")


def _check_rewards(bench: Workbench, settings: GrpoConfig) -> None:
    """Makes the rewards; refuses those that ask the policy where it cannot answer, or has no room to."""
    asking = bench.task.rewards(settings.reward, bench.judges).asking
    if asking and bench.config.model.decoder.encoder:
        raise ConfigError(
            f"config key 'grpo.reward.terms': {asking[0].name!r} asks the policy about its own answers: prompts that "
            "differ at their ends, and an encoder (model.decoder.encoder) reads whole ones only"
        )
    for term in asking:
        prompt = bench.config.data.buckets[-1].prompt_tokens if any(term.asks) else 1
        behind = question_room(settings.max_new_tokens) + term.reply_tokens
        if problem := bench.config.model.decoder.lacks_room(prompt, behind):
            raise ConfigError(
                f"config key 'grpo.reward.terms': {term.name!r} asks the policy about its own answers (grpo."
                f"max_new_tokens = {settings.max_new_tokens}), which with a reply may take {behind} tokens: {problem}"
            )


def _check_positions(bench: Workbench) -> None:
    """Refuses shapes that leave no room for answers among the positions that the decoder has learned.

    Where shapes follow from the data, they are within these, and clips that are not have been left out.
    """
    config = bench.config
    if problem := config.model.decoder.lacks_room(config.data.buckets[-1].prompt_tokens, config.answer_tokens):
        raise ConfigError(f"config key 'data.buckets': the largest holds {problem}")


def _check_exercises(bench: Workbench, settings: SftConfig) -> None:
    """Refuses exercises where there are none: nothing would be said of a lesson that is never taught."""
    if not settings.exercises:
        return
    dataset, rng = bench.dataset, np.random.default_rng(0)
    taught = (dataset.index[number] for number in dataset.teaching("train", settings.clips))
    if not any(bench.task.exercise(record, record, rng) for record in taught):
        raise ConfigError(
            f"config key 'sft.exercises': {settings.exercises:g}, but the task (task.protocol = "
            f"{bench.config.task.protocol!r}) has no exercise on any training clip; set it to 0"
        )


def _check_common(stages: Mapping[str, Workbench], name: str) -> None:
    """Refuses the newest stage, of this name, where no clip is left that all can be evaluated on."""
    if not common_clips(stages):
        split = next(iter(stages.values())).dataset.evaluated_split
        shared = f"it shares no {split} clip with those before it: nothing compares them"
        raise ConfigError(shared if name else "no clip in split test or validation")
