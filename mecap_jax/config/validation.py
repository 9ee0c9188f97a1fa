"""What the fields of a configuration must fulfil together, and whether it fits the devices.

What one field may hold by itself stands at the field, in `config.schema`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from mecap_jax.config.paths import addresses, lookup
from mecap_jax.config.schema import AugmentConfig, Config, ConfigError, Modality, RewardSpec, schedule_factor
from mecap_jax.config.values import build

MODALITIES: tuple[str, ...] = typing.get_args(Modality)

# (dotted key, what is wrong with it)
Problems = Iterator[tuple[str, str]]


def validate(config: Config) -> Config:
    """Checks types, ranges and combinations of a whole configuration; needs no device and reads no data.

    Returns the configuration with every value of its field's type (a recipe's `1` where a float belongs is 1.0).

    Raises:
      ConfigError: names the key and what is wrong with it.
    """
    config = build(dataclasses.asdict(config))
    for check in _CHECKS:
        for key, problem in check(config):
            raise ConfigError(f"config key {key!r}: {problem} (got {lookup(config, key)!r})")
    return config


def _paths(config: Config) -> Problems:
    for key, _ in addresses(config):
        yield key, "is an address; a local path is needed, or a bucket that is mounted as one"


def _stages(config: Config) -> Problems:
    if config.sft is None and config.grpo is None:
        yield "sft", "a run needs an SFT stage, a GRPO stage or both"
    if config.grpo is not None and config.grpo.clips == "held_out" and config.data.sft_share == 1:
        yield "grpo.clips", "held_out clips need data.sft_share below 1"


def _trainable(config: Config) -> Problems:
    if not config.trainable and config.model.lora is None:
        yield "trainable", "nothing would train without 'model.lora'"


def _modalities(config: Config) -> Problems:
    used, model = config.data.modalities, config.model
    parts = {"audio": model.audio, "video": model.vision, "features": model.features}
    if len(set(used)) < len(used):
        yield "data.modalities", "names a modality twice"
    if model.features is not None and (misfit := model.features.misfit()):
        yield "model.features", misfit
    for name in used:
        if parts[name] is None:
            yield "data.modalities", f"the model has no part for {name!r}"
    if not used and not config.data.include_transcript:
        yield (
            "data.modalities",
            "without media a prompt needs a transcript: data.include_transcript, and clips with one",
        )


def _tower_cache(config: Config) -> Problems:
    if not config.data.tower_cache:
        return
    if not {"audio", "video"} & set(config.data.modalities):
        yield "data.modalities", "data.tower_cache needs audio or video"
    for field in dataclasses.fields(AugmentConfig):
        # A modality can be left out of what was encoded; whatever changes media comes too late.
        if field.name not in ("modality_dropout", "feature_noise") and getattr(config.data.augment, field.name):
            yield f"data.augment.{field.name}", "must be 0 with data.tower_cache"


def _pixels(config: Config) -> Problems:
    if config.data.min_pixels > config.data.max_pixels:
        yield "data.min_pixels", f"must not exceed data.max_pixels = {config.data.max_pixels}"


def _buckets(config: Config) -> Problems:
    sizes = [dataclasses.astuple(bucket) for bucket in config.data.buckets]
    if sizes != sorted(sizes):
        yield "data.buckets", "must be listed smallest first"


def _heads(config: Config) -> Problems:
    decoder = config.model.decoder
    if decoder.mrope_section is not None and sum(decoder.mrope_section) != decoder.head_dim // 2:
        yield "model.decoder.mrope_section", f"must sum to head_dim / 2 = {decoder.head_dim // 2}"
    if decoder.num_attention_heads % decoder.num_key_value_heads:
        yield "model.decoder.num_key_value_heads", f"must divide num_attention_heads = {decoder.num_attention_heads}"
    if decoder.has_learned_positions:
        if decoder.num_attention_heads != decoder.num_key_value_heads:
            yield "model.decoder.num_key_value_heads", f"GPT-2 and BART have one a head, {decoder.num_attention_heads}"
        if decoder.mrope_section is not None:
            yield "model.decoder.mrope_section", "must be None where positions are learned"
    if (encoder := decoder.encoder) is not None:
        if not decoder.has_learned_positions:
            yield "model.decoder.max_position_embeddings", "an encoder has learned positions, and so has its decoder"
        if not decoder.tie_word_embeddings:
            yield "model.decoder.tie_word_embeddings", "BART has one table of embeddings for all"
        if decoder.hidden_size % encoder.num_attention_heads:
            yield "model.decoder.encoder.num_attention_heads", f"must divide hidden_size = {decoder.hidden_size}"
        if max(encoder.start_ids) >= decoder.vocab_size:
            yield "model.decoder.encoder.start_ids", f"must be below vocab_size = {decoder.vocab_size}"


def _positions(config: Config) -> Problems:
    learned = config.model.decoder.max_position_embeddings
    for key in ("sft.max_target_tokens", "grpo.max_new_tokens"):
        room = config.model.decoder.prompt_room(lookup(config, key) or 0)
        if room is not None and room < 1:
            yield key, f"leaves no room for a prompt: model.decoder.max_position_embeddings is {learned}"


def _objective(config: Config) -> Problems:
    if config.grpo is None:
        return
    reward = config.grpo.reward
    names = [spec.name for spec in reward.terms]
    if not any(spec.weight for spec in reward.terms):
        yield "grpo.reward.terms", "every weight is 0, nothing would be learnt"
    elif (idle := _idle_step(reward.terms)) is not None:
        yield "grpo.reward.terms", f"at step {idle:g} every weight is 0, and nothing would be learnt"
    if reward.combine == "product" and config.grpo.advantage == "per_reward":
        yield "grpo.advantage", "per_reward normalises terms before they are added up; grpo.reward.combine must be sum"
    for spec in reward.terms:
        if names.count(spec.name) > 1:
            yield "grpo.reward.terms", f"{spec.name!r} is there twice"
        if spec.gate and (spec.gate == spec.name or spec.gate not in names):
            yield "grpo.reward.terms", f"the gate {spec.gate!r} of {spec.name!r} is no other term"
        if not _is_ordered(spec.schedule):
            yield "grpo.reward.terms", f"the schedule of {spec.name!r} must name later and later steps"
        if spec.schedule_over and (spec.schedule_over not in names or not spec.schedule):
            yield (
                "grpo.reward.terms",
                f"{spec.name!r} has no schedule, or over {spec.schedule_over!r}, which is no term",
            )
    if config.grpo.minibatches > config.grpo.prompts:
        yield "grpo.minibatches", f"{config.grpo.minibatches}, but a step has only {config.grpo.prompts} prompts"
    if config.grpo.reference_sync_steps and not config.grpo.loss.beta:
        yield "grpo.reference_sync_steps", "without grpo.loss.beta there is no reference policy"
    if not _is_ordered(config.grpo.loss.beta_schedule):
        yield "grpo.loss.beta_schedule", "must name later and later steps"
    if config.grpo.loss.name in ("cispo", "sapo") and config.grpo.loss.clip_dual:
        yield "grpo.loss.clip_dual", f"{config.grpo.loss.name} does not clip the objective; must be 0"
    if 0 < config.grpo.loss.clip_dual <= 1:
        yield "grpo.loss.clip_dual", "must be above 1, or 0 for none"


def _is_ordered(schedule: Sequence[tuple[float, float]]) -> bool:
    steps = [step for step, _ in schedule]
    return steps == sorted(set(steps))


def _idle_step(terms: Sequence[RewardSpec]) -> float | None:
    """The first step that some schedule names at which no term counts; between two of them factors are linear.

    A term whose schedule goes over another one's mean may have the smallest of its factors at any step.
    """

    def counts(spec: RewardSpec, step: float) -> bool:
        factors = [factor for _, factor in spec.schedule] if spec.schedule_over else []
        return bool(spec.weight * min([*factors, schedule_factor(() if factors else spec.schedule, step)]))

    named = sorted({0, *(step for spec in terms if not spec.schedule_over for step, _ in spec.schedule)})
    return next((step for step in named if not any(counts(spec, step) for spec in terms)), None)


def _rows(config: Config) -> Problems:
    offered = {row.name: row for row in config.rows}
    if len(offered) < len(config.rows) or {"sft", "grpo", "untrained"} & set(offered):
        yield "rows", "every row needs a name of its own, other than 'sft', 'grpo' and 'untrained'"
    for name in config.evaluation.rows:
        if name not in offered:
            yield "evaluation.rows", f"this recipe has no row {name!r}; it has {', '.join(offered) or 'none'}"
            continue
        row = offered[name]
        # Where a run leaves SFT out, what comes after it begins where the run does.
        for stage in (row.stage, row.time_of, row.steps_of):
            if stage and getattr(config, stage) is None:
                yield "evaluation.rows", f"{name} needs {stage}, which this run leaves out"


def _others(config: Config) -> Problems:
    names = [PurePath(directory).name for directory in config.evaluation.others]
    if len(set(names)) < len(names) or "" in names:
        yield "evaluation.others", "the directories need different names"


def _input(config: Config) -> Problems:
    if config.data.input and not config.data.source:
        yield "data.input", "needs data.source, which says what the files are"


_CHECKS = (
    _paths, _stages, _trainable, _modalities, _tower_cache, _pixels, _buckets, _heads, _positions, _objective, _rows,
    _others, _input
)  # fmt: skip


# What is divided over `mesh.tensor`, by the part of the model that has it.
_TENSOR_DIVIDED = {
    "decoder": ("num_attention_heads", "num_key_value_heads", "intermediate_size"),
    "audio": ("encoder_attention_heads", "encoder_ffn_dim"),
    "vision": ("num_heads", "intermediate_size"),
    "features": ("hidden_size",),
}


def validate_devices(config: Config, device_count: int) -> None:
    """Checks that the mesh fits `device_count` devices, and the model the mesh.

    Raises:
      ConfigError: names the key.
    """
    mesh = config.mesh
    fixed = mesh.fsdp * mesh.tensor
    if device_count % fixed or (mesh.data != -1 and mesh.data * fixed != device_count):
        raise ConfigError(
            f"config key 'mesh': data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} "
            f"does not fit {device_count} devices"
        )
    for part, names in _TENSOR_DIVIDED.items():
        for name in names:
            key = f"model.{part}.{name}"
            if (size := lookup(config, key)) and size % mesh.tensor:
                raise ConfigError(f"config key 'mesh.tensor': {mesh.tensor} does not divide {key} = {size}")
