"""Checks of a whole configuration: types, ranges and combinations, and whether it fits the devices."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mecap_jax.config.schema import AugmentConfig, Config, ConfigError
from mecap_jax.config.values import coerce

_CHOICES = {
    "data.target": ("emotion", "style", "speaker", "overall"),
    "data.synthetic.caption_language": ("en", "zh"),
    "sft.clips": ("sft", "all"),
    "sft.normalization": ("token", "sequence", "sum"),
    "sft.optimizer.name": ("adamw", "muon"),
    "grpo.optimizer.name": ("adamw", "muon"),
    "sft.optimizer.schedule": ("cosine", "linear", "constant"),
    "grpo.optimizer.schedule": ("cosine", "linear", "constant"),
    "grpo.advantage": ("group", "mean", "leave_one_out", "per_reward"),
    "grpo.clips": ("all", "held_out"),
    "grpo.loss.name": ("grpo", "dr_grpo", "dapo", "gspo", "cispo"),
    "grpo.loss.importance": ("token", "sequence"),
    "grpo.loss.kl": ("k1", "k2", "k3"),
    "grpo.reward.form": ("softmax", "centred", "raw", "text_centred"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.dtype": ("float32", "bfloat16"),
}
_POSITIVE = (
    "data.synthetic.clips", "data.max_seconds", "data.max_frames", "data.max_pixels", "data.min_pixels",
    "sft.steps", "sft.batch_clips", "sft.references", "sft.max_target_tokens", "sft.optimizer.learning_rate",
    "grpo.steps", "grpo.prompts", "grpo.updates", "grpo.max_new_tokens", "grpo.temperature",
    "grpo.optimizer.learning_rate", "grpo.reward.timeout_s", "grpo.loss.references",
    "evaluation.batch_clips", "evaluation.bootstrap", "checkpoint.keep", "mesh.fsdp", "mesh.tensor",
    "model.lora.rank", "model.lora.alpha",
)  # fmt: skip
_SHARES = (
    "data.max_bad_fraction", "data.sft_share", "data.synthetic.conflict_share", "data.augment.modality_dropout",
    "evaluation.confidence", "grpo.top_p", "model.lora.dropout",
)  # fmt: skip
_NON_NEGATIVE = (
    "data.fps", "data.workers", "data.cache_mb", "sft.micro_clips", "sft.validate_every", "sft.optimizer.warmup_steps",
    "sft.optimizer.weight_decay", "grpo.micro_prompts", "grpo.validate_every", "grpo.optimizer.warmup_steps",
    "grpo.optimizer.weight_decay", "grpo.loss.beta", "grpo.loss.clip_low", "grpo.loss.clip_high",
    "grpo.loss.clip_dual", "grpo.loss.entropy", "grpo.loss.reference_likelihood", "checkpoint.every",
)  # fmt: skip
MODALITIES = ("audio", "video", "features")
REWARD_TERMS = ("emotion", "semantic", "rouge_l", "cider_d", "distinctiveness")
EXTRA_ROWS = ("text_only", "sft_control", "grpo_semantic")


def lookup(config: Config, key: str) -> Any:
    """Returns the value at a dotted key, or None where a part of the path is None."""
    node: Any = config
    for name in key.split("."):
        if node is None:
            return None
        node = getattr(node, name)
    return node


def validate(config: Config) -> None:
    """Checks types, ranges and combinations of a whole configuration; needs no device and reads no data.

    Raises:
      ConfigError: names the key and what is wrong with it.
    """
    coerce(dataclasses.asdict(config), Config, "config")

    def require(ok: bool, key: str, problem: str):
        if not ok:
            raise ConfigError(f"config key {key!r}: {problem} (got {lookup(config, key)!r})")

    for key, choices in _CHOICES.items():
        value = lookup(config, key)
        require(value is None or value in choices, key, f"must be one of {choices}")
    for keys, holds, problem in (
        (_POSITIVE, lambda v: v > 0, "must be positive"),
        (_NON_NEGATIVE, lambda v: v >= 0, "must not be negative"),
        (_SHARES, lambda v: 0 <= v <= 1, "must lie in [0, 1]"),
    ):
        for key in keys:
            value = lookup(config, key)
            require(value is None or holds(value), key, problem)

    for key in ("trainable", "model.lora.targets"):
        for pattern in lookup(config, key) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"config key {key!r}: {pattern!r} is no regular expression ({error})") from error

    data, model, sft, grpo = config.data, config.model, config.sft, config.grpo
    require(bool(config.trainable) or model.lora is not None, "trainable", "nothing would train without 'model.lora'")
    require(model.lora is None or model.lora.dropout < 1, "model.lora.dropout", "must be below 1")
    require(sft is not None or grpo is not None, "sft", "a run needs an SFT stage, a GRPO stage or both")
    require(set(data.modalities) <= set(MODALITIES), "data.modalities", f"must be among {MODALITIES}")
    require(len(set(data.modalities)) == len(data.modalities), "data.modalities", "names a modality twice")
    for modality, part in (("audio", model.audio), ("video", model.vision), ("features", model.features)):
        require(
            modality not in data.modalities or part is not None,
            "data.modalities",
            f"the model has no part for {modality!r}",
        )
    require(
        bool(data.modalities) or data.include_transcript,
        "data.modalities",
        "a prompt without media needs data.include_transcript",
    )
    if data.tower_cache:
        require(
            bool({"audio", "video"} & set(data.modalities)), "data.modalities", "data.tower_cache needs audio or video"
        )
        for field in dataclasses.fields(AugmentConfig):
            # A modality can be left out of what was encoded; whatever changes media comes too late.
            key = f"data.augment.{field.name}"
            require(field.name == "modality_dropout" or not lookup(config, key), key, "must be 0 with data.tower_cache")
    require(bool(data.buckets), "data.buckets", "needs at least one bucket")
    sizes = [dataclasses.astuple(b) for b in data.buckets]
    require(sizes == sorted(sizes), "data.buckets", "must be listed smallest first")
    if model.decoder.mrope_section is not None:
        half = model.decoder.head_dim // 2
        require(
            sum(model.decoder.mrope_section) == half,
            "model.decoder.mrope_section",
            f"must sum to head_dim / 2 = {half}",
        )
    require(
        model.decoder.num_attention_heads % model.decoder.num_key_value_heads == 0,
        "model.decoder.num_key_value_heads",
        f"must divide num_attention_heads = {model.decoder.num_attention_heads}",
    )
    if sft is not None:
        require(
            sft.micro_clips == 0 or sft.batch_clips % sft.micro_clips == 0,
            "sft.micro_clips",
            f"must divide sft.batch_clips = {sft.batch_clips}",
        )
    if grpo is not None:
        require(
            grpo.group_size >= 2,
            "grpo.group_size",
            "a group needs at least 2 completions, or its advantages are all zero",
        )
        require(
            grpo.micro_prompts == 0 or grpo.prompts % grpo.micro_prompts == 0,
            "grpo.micro_prompts",
            f"must divide grpo.prompts = {grpo.prompts}",
        )
        require(grpo.top_p > 0, "grpo.top_p", "must be positive")
        require(grpo.clips == "all" or data.sft_share < 1, "grpo.clips", "held_out clips need data.sft_share below 1")
        weights = [getattr(grpo.reward, name) for name in REWARD_TERMS]
        require(any(weights) or bool(grpo.reward.custom), "grpo.reward", "every weight is 0, nothing would be learnt")
    require(
        set(data.synthetic.features) <= {"log_mel-UTT", "log_mel-FRA"},
        "data.synthetic.features",
        'must be among "log_mel-UTT", "log_mel-FRA"',
    )
    rows = config.evaluation.rows
    require(set(rows) <= set(EXTRA_ROWS), "evaluation.rows", f"must be among {EXTRA_ROWS}")
    require("text_only" not in rows or sft is not None, "evaluation.rows", "text_only needs an SFT stage")
    require(
        "sft_control" not in rows or None not in (sft, grpo, config.control),
        "evaluation.rows",
        "sft_control needs sft, grpo and control",
    )
    require("grpo_semantic" not in rows or grpo is not None, "evaluation.rows", "grpo_semantic needs a GRPO stage")
    require(bool(data.source) or not data.input, "data.input", "needs data.source, which says what the files are")


def validate_devices(config: Config, device_count: int) -> None:
    """Checks that the mesh fits `device_count` devices and that batches divide over them.

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
    shards = device_count // mesh.tensor
    batches = {"evaluation.batch_clips": config.evaluation.batch_clips}
    if config.sft is not None:
        batches["sft.micro_clips" if config.sft.micro_clips else "sft.batch_clips"] = (
            config.sft.micro_clips or config.sft.batch_clips
        )
    if config.grpo is not None:
        batches["grpo.micro_prompts" if config.grpo.micro_prompts else "grpo.prompts"] = (
            config.grpo.micro_prompts or config.grpo.prompts
        )
    for key, size in batches.items():
        if size % shards:
            raise ConfigError(
                f"config key {key!r}: {size} rows do not divide over {shards} devices (mesh axes data x fsdp)"
            )
