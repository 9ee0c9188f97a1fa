"""The configuration of a run: frozen dataclasses, loaded from a recipe file, overridden from the command line and
validated as a whole before anything expensive starts.

A recipe is a short Python file with `get_config(arg) -> Config`. `load("configs/grpo.py", ["seed=1"])` reads it and
applies overrides such as `grpo.group_size=4`; an unknown key, a value of the wrong type or an impossible combination
raises one `ConfigError` that names the key.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mecap_jax.model_config import ModelConfig


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key."""


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The embedded synthetic corpus.

    Attributes:
      clips: how many clips, over all splits.
      seed: seed of the corpus (not of the training run: all seeds train on one corpus).
      caption_language: "en" or "zh" (Chinese captions want a multilingual sentence encoder).
      speech_languages: languages that the voices speak.
      conflict_share: share of clips with a non-neutral emotion in which one modality is neutral or contradicts it.
      features: precomputed features that clips carry besides their media: "log_mel-UTT" (mean and deviation of 40 mel
        bands), "log_mel-FRA" (the bands, ten times a second); to try recipes that read features.
    """

    clips: int = 2000
    seed: int = 0
    caption_language: str = "en"
    speech_languages: tuple[str, ...] = ("en", "zh")
    conflict_share: float = 0.4
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static shape that batches are padded to.

    Attributes:
      prompt_tokens: prompt length in tokens, media placeholders included.
      audio_chunks: chunks of audio a row.
      frames: temporal patches (pairs of frames) of video a row.
      windows: attention windows in a frame.
      feature_frames: frames of precomputed features a row.
    """

    prompt_tokens: int
    audio_chunks: int = 0
    frames: int = 0
    windows: int = 0
    feature_frames: int = 0


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training media; never applied in evaluation.

    Attributes:
      modality_dropout: chance that one of two present modalities is masked out.
      gain_db: the waveform's level varies by up to this many decibels (added in the log-mel domain).
      time_mask_frames, frequency_mask_bins: longest SpecAugment masks (arXiv 1904.08779); one mask of each kind.
      brightness: frames are brightened or darkened by up to this share.
      shift_pixels: frames move by up to this many pixels.
    """

    modality_dropout: float = 0.0
    gain_db: float = 0.0
    time_mask_frames: int = 0
    frequency_mask_bins: int = 0
    brightness: float = 0.0
    shift_pixels: int = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes batches.

    Attributes:
      path: directory of shards; "" puts them into `cache/` under a name derived from source and settings.
      source: importer that builds the shards when `path` has none yet.
      input: the importer's input directory.
      target: which caption kind is learnt and generated.
      modalities: what the model gets to see, out of "audio", "video", "features"; () is the text-only model.
      include_transcript: whether the transcript is part of the prompt.
      instruction: the request in the prompt.
      max_seconds: longer clips are quarantined.
      max_bad_fraction: the run stops when more than this share of the clips is quarantined.
      fps: frames a second that are taken from a video; 0 takes `max_frames` evenly spaced ones.
      max_frames: most frames taken from one clip.
      min_pixels, max_pixels: area that frames are resized into, as in the family's image processor.
      buckets: static shapes, smallest first; a batch takes the smallest that holds all its rows.
      sft_share: share of the training clips that SFT learns from; the rest is seen by RL only.
      workers: reader processes; 0 reads in threads of the main process.
      cache_mb: decoded media, or the tokens of `tower_cache`, are kept in memory up to this size.
      tower_cache: encode every clip's sound and video once, before the first stage, and keep the decoder tokens in
        `cache/`: no media are decoded and no tower runs in the stages. Needs towers of which nothing trains, and media
        that are not augmented but for `augment.modality_dropout`. On disk a clip takes (audio tokens + video tokens) x
        decoder width x bytes of `model.dtype`: 5.2 MB for ten seconds (250 + 8 x 128 tokens) in Qwen2.5-Omni-3B.
    """

    path: str = ""
    source: str = "synthetic"
    input: str = ""
    synthetic: SyntheticConfig = SyntheticConfig()
    target: str = "overall"
    modalities: tuple[str, ...] = ("audio", "video")
    include_transcript: bool = True
    instruction: str = "Describe the speaker's emotion."
    max_seconds: float = 30.0
    max_bad_fraction: float = 0.02
    fps: float = 2.0
    max_frames: int = 16
    min_pixels: int = 56 * 56
    max_pixels: int = 224 * 224
    buckets: tuple[Bucket, ...] = ()
    sft_share: float = 1.0
    augment: AugmentConfig = AugmentConfig()
    workers: int = 0
    cache_mb: int = 2048
    tower_cache: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up, then cosine or linear decay to `end_factor`, or a constant rate.

    Attributes:
      name: "adamw", or "muon": Muon for the matrices of all layers, AdamW for embeddings, norms and biases.
      beta1, beta2: of AdamW; Muon has a momentum of 0.95.
    """

    name: str = "adamw"
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: str = "cosine"
    end_factor: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning by maximum likelihood (MECap-R1, stage 1).

    Attributes:
      references: references of one clip that are scored behind one shared prompt.
      normalization: "token" divides the summed negative log-likelihood by the number of target tokens, "sequence"
        averages per reference first, "sum" is the paper's formula (a plain sum, divided by the clips in the batch).
      micro_clips: clips a gradient micro-batch; 0 takes the whole batch at once.
      clips: train on the "sft" share of the training clips (see `data.sft_share`) or on "all".
      validate_every: steps between validations; 0 never. The best validation reward is kept.
    """

    steps: int = 1000
    batch_clips: int = 24
    references: int = 2
    micro_clips: int = 0
    clips: str = "sft"
    max_target_tokens: int = 64
    normalization: str = "token"
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_steps=50, weight_decay=0.05)
    validate_every: int = 0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The policy loss.

    Attributes:
      name: aggregation: "grpo", "dr_grpo", "dapo", "gspo" or "cispo".
      importance: ratio per "token" or per "sequence".
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      clip_dual: upper bound on the loss of tokens with negative advantage (0: off).
      kl: estimator of the KL divergence to the reference policy: "k1", "k2" or "k3".
      beta: its weight; 0 drops the reference policy altogether.
      entropy: weight of an entropy bonus.
      reference_likelihood: weight of the token-normalised log-likelihood of references of the same prompt.
      references: how many references of a prompt that term scores.
    """

    name: str = "grpo"
    importance: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float = 0.0
    kl: str = "k3"
    beta: float = 0.04
    entropy: float = 0.0
    reference_likelihood: float = 0.0
    references: int = 2


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward terms (0 leaves a term out) and how they are computed.

    Attributes:
      emotion: cosine in emotion coordinates (Emo-GRPO).
      semantic: Sentence-BERT cosine to the best reference.
      rouge_l: ROUGE-L against the best reference.
      cider_d: CIDEr-D against the references, document frequencies from the train captions.
      distinctiveness: how much closer a caption is to its own references than to those of the other prompts.
      form: emotion coordinates: "softmax", "centred", "raw" or "text_centred" (see `rewards.emotion`).
      custom: further terms, "path/to/file.py:function=weight".
      timeout_s: a term that takes longer earns nothing in this step and is counted.
    """

    emotion: float = 1.0
    semantic: float = 0.5
    rouge_l: float = 0.0
    cider_d: float = 0.0
    distinctiveness: float = 0.0
    form: str = "softmax"
    custom: tuple[str, ...] = ()
    timeout_s: float = 60.0


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimisation (MECap-R1, stage 2: Emo-GRPO).

    Attributes:
      prompts: prompts a step.
      micro_prompts: prompts a micro-group: rollout, rewards and gradients go by it; 0 takes all at once.
      group_size: completions a prompt.
      updates: optimiser steps on one rollout.
      advantage: "group" (mean and std), "mean" (mean only), "leave_one_out" or "per_reward" (each term normalised
        in its group before the weighted sum).
      mask_truncated: leave completions without an end out of the loss.
      clips: train on "all" clips or on the ones "held_out" from SFT.
      augment: sample from augmented media (`data.augment`); a reward that judges a caption of a clip whose sound was
        masked out is mostly noise.
    """

    steps: int = 100
    prompts: int = 8
    micro_prompts: int = 0
    group_size: int = 8
    updates: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    advantage: str = "group"
    mask_truncated: bool = False
    clips: str = "all"
    augment: bool = False
    loss: LossConfig = LossConfig()
    reward: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    validate_every: int = 0


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The sentence encoder behind reward and metrics.

    Attributes:
      path: its directory in the sentence-transformers layout; "" takes the packaged all-MiniLM-L6-v2.
      anchors: an anchors file written by `scripts/build_anchors.py`; "" builds them from the train captions.
    """

    path: str = ""
    anchors: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation and report.

    Attributes:
      batch_clips: clips decoded at once.
      bootstrap: resamples behind a confidence interval.
      confidence: its level.
      ablation: also caption from audio only and from video only.
      samples: captions shown in the report.
      rows: further rows, each trained beside the main ones: "text_only", "sft_control", "grpo_semantic".
    """

    batch_clips: int = 32
    bootstrap: int = 1000
    confidence: float = 0.95
    ablation: bool = True
    samples: int = 24
    rows: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; -1 gives an axis all devices that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: every so many steps (0: only at the end of a stage), the newest `keep` stay."""

    every: int = 50
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything about a run; `sft` or `grpo` set to None leaves that stage out.

    Attributes:
      control: settings of the "sft_control" row; its `steps` are ignored, they follow from the time that GRPO took.
      backbone: directory in the Hugging Face layout that weights, tokenizer and processor come from; "" trains a
        tokenizer on the data and starts from random weights.
      trainable: regular expressions; a parameter trains where one of them matches its whole dotted path, such as
        "visual.blocks.0.attn.q.kernel". What does not match is frozen. Adapters (`model.lora`) always train; () trains
        nothing else.
      max_nonfinite_steps: so many steps in a row without a finite gradient stop the run.
      compilation_cache: directory of the persistent compilation cache.
    """

    name: str
    model: ModelConfig
    seed: int = 0
    backbone: str = ""
    trainable: tuple[str, ...] = (".*",)
    data: DataConfig = DataConfig()
    sft: SftConfig | None = None
    grpo: GrpoConfig | None = None
    control: SftConfig | None = None
    encoder: EncoderConfig = EncoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    max_nonfinite_steps: int = 3
    compilation_cache: str = "cache/jax"


# --- loading ----------------------------------------------------------------------------------------------------


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Loads `path/to/recipe.py[:arg]` and applies `key.path=value` overrides.

    Raises:
      ConfigError: no such file, no `get_config`, an unknown key, a value of the wrong type, an impossible combination.
    """
    path, _, arg = recipe.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"--config: no such file: {path}")
    spec = importlib.util.spec_from_file_location("mecap_jax_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: {path} defines no get_config(arg)")
    config = module.get_config(arg)
    if not isinstance(config, Config):
        raise ConfigError(f"--config: get_config of {path} returned {type(config).__name__}, expected Config")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} must have the form key.path=value")
        config = _replace(config, key.split("."), value, key)
    validate(config)
    return config


def _replace(node: Any, path: list[str], text: str, key: str) -> Any:
    """Returns a copy of dataclass `node` with the field at `path` set to the parsed `text`."""
    hints = typing.get_type_hints(type(node))
    name = path[0]
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(hints)}"
        raise ConfigError(f"unknown config key {key!r}: {type(node).__name__} has no {name!r}{hint}")
    if len(path) == 1:
        return dataclasses.replace(node, **{name: _parse(text, hints[name], key)})
    child = getattr(node, name)
    if not dataclasses.is_dataclass(child):
        reason = "is not set in this recipe" if child is None else f"has no fields (it is a {type(child).__name__})"
        raise ConfigError(f"config key {key!r}: {name!r} {reason}")
    return dataclasses.replace(node, **{name: _replace(child, path[1:], text, key)})


def _parse(text: str, hint: Any, key: str) -> Any:
    if hint is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return _coerce(value, hint, key)


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """Checks `value` against a type hint, turning lists into tuples, dicts into dataclasses and ints into floats."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        (hint,) = [option for option in options if option is not type(None)]
        return _coerce(value, hint, key)
    if origin is tuple:
        items = typing.get_args(hint)
        if isinstance(value, str) and items[0] is str:
            value = [part for part in value.split(",") if part]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"config key {key!r}: expected a tuple, got {value!r}")
        if items[-1] is Ellipsis:
            return tuple(_coerce(v, items[0], f"{key}[{i}]") for i, v in enumerate(value))
        if len(items) != len(value):
            raise ConfigError(f"config key {key!r}: expected {len(items)} values, got {len(value)}")
        return tuple(_coerce(v, t, f"{key}[{i}]") for i, (v, t) in enumerate(zip(value, items)))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _from_mapping(value, hint, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"config key {key!r}: expected {hint.__name__}, got {value!r}")
    return value


def _from_mapping(value: Any, cls: type, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"config key {key!r}: expected the fields of {cls.__name__}, got {value!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ConfigError(f"config key {key!r}: {cls.__name__} has no {unknown}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in value and _required(f)]
    if missing:
        raise ConfigError(f"config key {key!r}: {cls.__name__} lacks {missing}")
    return cls(**{name: _coerce(v, hints[name], f"{key}.{name}") for name, v in value.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def to_json(config: Config) -> str:
    """Writes a configuration as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote; unknown or ill-typed keys raise `ConfigError`."""
    return _from_mapping(json.loads(text), Config, "config")


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, old value, new value) for every leaf in which two JSON trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new


# --- validation -------------------------------------------------------------------------------------------------

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
    _coerce(dataclasses.asdict(config), Config, "config")

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
    if data.synthetic.caption_language != "en" and data.source == "synthetic":
        require(
            bool(config.encoder.path),
            "encoder.path",
            f"captions in {data.synthetic.caption_language!r} need a multilingual sentence encoder",
        )


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
