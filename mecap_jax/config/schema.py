"""What can be asked of a run: frozen dataclasses with their defaults, and the error that names a wrong key."""

from __future__ import annotations

import dataclasses

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
      path: directory of shards, as `scripts/prepare_data.py` makes it; "" builds them in `cache/`, under a name derived
        from source and settings.
      source: importer that builds the shards where there are none yet; "" builds none in `path`, and the synthetic
        corpus without one.
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
    source: str = ""
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
