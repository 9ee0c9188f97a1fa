"""What can be asked of a run: frozen dataclasses with their defaults, and the error that names a wrong key.

The type of a field says what it may hold: `Literal` its choices, pydantic's constrained types its range. What several
fields must fulfil together stands in `config.validation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from mecap_jax.field_types import FileName, Regex, Seconds, Seed, Share, ShareBelowOne
from mecap_jax.model_config import ModelConfig

Modality = Literal["audio", "video", "features"]
CaptionKind = Literal["emotion", "style", "speaker", "overall"]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Factor = Annotated[float, Field(ge=0, le=1e6)]

DEFAULT_ANSWER_TOKENS = 96  # of a model that no run trained: what the recipes of published models allow
# What `DataConfig` says of how sound and pictures are read.
MEDIA_SETTINGS = ("fps", "max_frames", "max_seconds", "max_pixels", "min_pixels")


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
      contradicting_share: share of clips whose rationale argues for another emotion than the label: a cold start that
        such rationales teach explains one thing and answers another, as models do that ERV is made for.
      captioned_share: share of the training speakers whose clips have captions; clips of the others have labels alone.
      stills: pictures of faces instead of clips: no sound, no words, and captions of none.
      domain: "other" has voices of another build and accent, and faces drawn in pencil: what a model does outside of
        what it was trained on.
      features: precomputed features that clips carry besides their media: "log_mel-UTT" (mean and deviation of 40 mel
        bands), "log_mel-FRA" (the bands, ten times a second); to try recipes that read features.
    """

    clips: PositiveInt = 2000
    seed: Seed = 0
    caption_language: Literal["en", "zh"] = "en"
    speech_languages: Annotated[tuple[Literal["en", "zh"], ...], Field(min_length=1)] = ("en", "zh")
    conflict_share: Share = 0.4
    contradicting_share: Share = 0.0
    captioned_share: Share = 1.0
    stills: bool = False
    domain: Literal["usual", "other"] = "usual"
    features: tuple[Literal["log_mel-UTT", "log_mel-FRA"], ...] = ()


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static shape that batches are padded to.

    Attributes:
      prompt_tokens: prompt length in tokens, media placeholders included.
      audio_chunks: chunks of audio a row.
      frames: temporal patches (pairs of frames) of video a row.
      windows: attention windows in a frame.
      feature_frames: frames of precomputed features a row.
      cells: merge cells in a frame, each one decoder token; 0 for as many as its windows hold.
    """

    prompt_tokens: PositiveInt
    audio_chunks: NonNegativeInt = 0
    frames: NonNegativeInt = 0
    windows: NonNegativeInt = 0
    feature_frames: NonNegativeInt = 0
    cells: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training media; never applied in evaluation.

    Attributes:
      modality_dropout: chance that one of two present modalities is masked out.
      gain_db: the waveform's level varies by up to this many decibels (added in the log-mel domain).
      time_mask_frames, frequency_mask_bins: longest SpecAugment masks (arXiv 1904.08779); one mask of each kind.
      brightness: frames are brightened or darkened by up to this share.
      shift_pixels: frames move by up to this many pixels.
      feature_noise: standard deviation of normal noise on precomputed features, in their own unit: a ridge penalty in
        effect (Bishop 1995, Neural Computation 7:108), without which few clips are learnt by heart.
    """

    modality_dropout: Share = 0.0
    gain_db: NonNegativeFloat = 0.0
    time_mask_frames: NonNegativeInt = 0
    frequency_mask_bins: NonNegativeInt = 0
    brightness: Share = 0.0
    shift_pixels: NonNegativeInt = 0
    feature_noise: NonNegativeFloat = 0.0


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
      label_captions: language of captions from templates that training clips learn which have a label and no caption of
        that kind, as `scripts/prepare_data.py --captions=templates` writes them; "" leaves such clips without.
      transcript_dropout: chance that a training prompt goes without its transcript, so that the model captions clips
        of which nobody knows what is said; in every stage, never in evaluation.
      instruction: the request in the prompt.
      max_seconds: of a longer clip the model gets to see this much from its beginning; 0 follows from the data: the
        longest clip, at most 30 s.
      max_bad_fraction: the run stops when more than this share of the clips in the shards cannot be used; what the
        import left out is not counted again.
      fps: frames a second that are taken from a video; 0 takes `max_frames` evenly spaced ones.
      max_frames: most frames taken from one clip.
      min_pixels, max_pixels: area that frames are resized into, as in the family's image processor.
      buckets: static shapes, smallest first; a batch takes the smallest that holds all its rows. () follows from the
        data, see `data.fitting`.
      sft_share: share of the training clips that SFT learns from; the rest is seen by RL only.
      workers: reader processes; 0 reads in threads of the main process.
      cache_mb: decoded media, or the tokens of `tower_cache`, are kept in memory up to this size, and once more up to
        it by all reader processes together.
      tower_cache: encode every clip's sound and video once, before the first stage, and keep the decoder tokens in
        `cache/`: no media are decoded and no tower runs in the stages. Needs towers of which nothing trains, and media
        that are not augmented but for `augment.modality_dropout`. On disk a clip takes (audio tokens + video tokens) x
        decoder width x bytes of `model.dtype`: 5.2 MB for ten seconds (250 + 8 x 128 tokens) in Qwen2.5-Omni-3B.
    """

    path: str = ""
    source: str = ""
    input: str = ""
    synthetic: SyntheticConfig = SyntheticConfig()
    target: CaptionKind = "overall"
    label_captions: Literal["", "en", "zh"] = ""
    modalities: tuple[Modality, ...] = ("audio", "video")
    include_transcript: bool = True
    transcript_dropout: Share = 0.0
    instruction: str = "Describe the speaker's emotion."
    max_seconds: NonNegativeFloat = 0.0
    max_bad_fraction: Share = 0.02
    fps: NonNegativeFloat = 2.0
    max_frames: PositiveInt = 16
    min_pixels: PositiveInt = 56 * 56
    max_pixels: PositiveInt = 224 * 224
    buckets: tuple[Bucket, ...] = ()
    sft_share: Share = 1.0
    augment: AugmentConfig = AugmentConfig()
    workers: NonNegativeInt = 0
    cache_mb: NonNegativeInt = 2048
    tower_cache: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Linear warm-up, then cosine or linear decay to `end_factor`, or a constant rate.

    Attributes:
      name: "adamw", or "muon": Muon for the matrices of all layers, AdamW for embeddings, output weights, norms
        and biases.
      learning_rate: the highest.
      warmup_steps: updates until it is reached, the first of them included.
      schedule, end_factor: what follows, down to this share of the highest at the last step.
      weight_decay: of matrices.
      beta1, beta2: of AdamW; Muon has a momentum of 0.95.
      clip_norm: most that the gradient's norm may be, over all parameters; a larger one is scaled down.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-5
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    end_factor: Share = 0.0
    weight_decay: NonNegativeFloat = 0.0
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.999
    clip_norm: PositiveFloat = 1.0


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is asked of the model, and how its answers are judged.

    Attributes:
      name: "captioning": to put the emotion into words, as `data.target` and `data.instruction` say; "recognition": to
        name it, and to say why. All else here is of recognition.
      protocol: the form of an answer (`tasks.protocols`): "think_answer", "answer", ...
      labels: which answers there are: the set of a known corpus (`tasks/labels.toml`), a file (.toml), or "open": any
        words, of which a clip's label holds one or several between commas.
      language: of request and answers.
      places: where the labels lie among each other (`tasks.coordinates`), for an error by degrees; "" leaves it out.
      wheels: a file of emotion wheels (`rewards.wheels`), by which words are compared in evaluation; "" leaves it out.
      judge: which emotion an explanation speaks for, in evaluation: a directory of a text classifier (`./DIR`),
        "endpoint" for the OpenAI-compatible one of the environment (`OPENAI_BASE_URL`, `OPENAI_API_KEY`), or "" for the
        nearest emotion anchor.
      judge_model: which model of the endpoint.
      judge_timeout_s: how long the endpoint may take for one explanation.
    """

    name: Literal["captioning", "recognition"] = "captioning"
    protocol: str = "think_answer"
    labels: str = "emotiontalk"
    language: Literal["en", "zh"] = "en"
    places: str = ""
    wheels: str = ""
    judge: str = ""
    judge_model: str = ""
    judge_timeout_s: Seconds = 30.0


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning by maximum likelihood (MECap-R1, stage 1).

    Attributes:
      references: references of one clip that are scored behind one shared prompt.
      max_target_tokens: longest target; of a longer one the beginning is learnt, without an end.
      normalization: "token" divides the summed negative log-likelihood by the number of target tokens, "sequence"
        averages per reference first, "sum" is the paper's formula (a plain sum, divided by the clips in the batch).
      batch_clips: clips a step, over all devices; where they do not divide evenly, rows that do not count fill up.
      micro_clips: most clips on a device at a time; 0 takes its whole share of the batch.
      steps: more of them continue a finished stage. The learning rate follows the longer schedule from there, so a rate
        that had decayed rises again.
      clips: train on the "sft" share of the training clips (see `data.sft_share`) or on "all".
      exercises: chance that a clip comes with one of the task's exercises in place of what the task asks: questions
        that rewards will ask the policy (EMO-R3), for a model that could not answer them yet.
      validate_every: steps between validations; 0: only after the last step.
    """

    steps: PositiveInt = 1000
    batch_clips: PositiveInt = 24
    references: PositiveInt = 2
    micro_clips: NonNegativeInt = 0
    clips: Literal["sft", "all"] = "sft"
    exercises: Share = 0.0
    max_target_tokens: PositiveInt = 64
    normalization: Literal["token", "sequence", "sum"] = "token"
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_steps=50, weight_decay=0.05)
    validate_every: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The policy loss.

    Attributes:
      name: the variant: "grpo", "dr_grpo", "dapo", "gspo", "cispo" or "sapo".
      importance: ratio per "token" or per "sequence".
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; in "cispo" from above only.
      clip_dual: upper bound on the loss of tokens with negative advantage, in units of it; above 1, or 0 for none.
      kl: estimator of the KL divergence to the reference policy: "k2", "k3", or "k3_corrected", which is "k3" times the
        importance ratio (as TRL has it from 1.16 on). "k1", the plain log-ratio, is none of them: as a loss its
        expected gradient is zero.
      beta: its weight; 0 drops the reference policy altogether.
      beta_schedule: (step, factor) as in `RewardSpec.schedule`: what `beta` is multiplied with.
      sapo_positive, sapo_negative: temperatures of "sapo"'s gate for tokens with positive and with negative advantage.
      entropy: weight of an entropy bonus.
      reference_likelihood: weight of the token-normalised log-likelihood of references of the same prompt, at
        temperature 1.
      references: how many references of a prompt that term scores.
    """

    name: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo"] = "grpo"
    importance: Literal["token", "sequence"] = "token"
    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.2
    clip_dual: NonNegativeFloat = 0.0
    kl: Literal["k2", "k3", "k3_corrected"] = "k3"
    beta: NonNegativeFloat = 0.04
    beta_schedule: tuple[tuple[NonNegativeInt, Factor], ...] = ()
    sapo_positive: PositiveFloat = 1.0
    sapo_negative: PositiveFloat = 1.05
    entropy: NonNegativeFloat = 0.0
    reference_likelihood: NonNegativeFloat = 0.0
    references: PositiveInt = 2


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One term of the reward. On the command line "NAME=WEIGHT" is one.

    Attributes:
      name: a term of the task (`tasks/`), or one of a user's own: "path/to/file.py:function".
      weight: what its value is multiplied with; 0 leaves it out.
      gate: another term that must be above `gate_above`: where it is not, this one earns 0.
      schedule: (step, factor): what the weight is multiplied with, linearly between the steps that are named, constant
        before the first and behind the last; () is 1 throughout. The first step has the number 0. Validation takes the
        factor of the last step.
      schedule_over: a term that takes the place of the step: its mean over the completions that were sampled together,
        so that a weight may grow, or fade, with accuracy. A term without a value counts as 0 there.
      options: the term's own settings. One that may name a directory takes a path with a "/" in it ("./roberta").
    """

    name: str
    weight: Weight = 1.0
    gate: str = ""
    gate_above: Weight = 0.0
    schedule: tuple[tuple[NonNegativeFloat, Factor], ...] = ()
    schedule_over: str = ""
    options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict, hash=False)


def schedule_factor(schedule: Sequence[tuple[float, float]], step: float | None) -> float:
    """The factor of a `RewardSpec.schedule` at a step (or a mean); None: behind the last one that is named."""
    if not schedule:
        return 1.0
    steps, factors = zip(*schedule)
    return float(np.interp(steps[-1] if step is None else step, steps, factors))


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What the policy is rewarded for.

    Attributes:
      terms: what is judged; each is logged by itself.
      combine: "sum" of the weighted terms, or their "product", which is negative where any of them is: two faults are
        no merit.
      timeout_s: a term that takes longer for a micro-group has failed for it.
      validation_timeout_s: the same for the answers to all validation clips.
    """

    terms: tuple[RewardSpec, ...] = (RewardSpec("emotion"), RewardSpec("semantic", 0.5))
    combine: Literal["sum", "product"] = "sum"
    timeout_s: Seconds = 60.0
    validation_timeout_s: Seconds = 600.0


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimisation (MECap-R1, stage 2: Emo-GRPO).

    Attributes:
      steps: rollouts, each with its updates; more of them continue a finished stage.
      temperature: of sampling; log-probabilities of completions are taken at the same.
      max_new_tokens: longest completion.
      validate_every: steps between validations; 0: only after the last step.
      prompts: prompts a step, over all devices; where they do not divide evenly, rows that do not count fill up.
      micro_prompts: most prompts on a device at a time, in rollout and gradient; 0 takes its whole share.
      group_size: completions a prompt.
      top_k, top_p, min_p: which tokens are drawn from: the k most likely ones (0: all), of those the smallest set with
        this much probability (1: all), of those that are at least `min_p` times as likely as the likeliest (0: all).
        Log-probabilities are those before that, in rollout, reference and gradient.
      updates: passes over one rollout.
      minibatches: parts that a pass divides the prompts that are learnt from into, in their order and of one size as
        far as they go, with an optimiser step each; the same parts on any mesh and in any micro-batches.
      advantage: "group" (mean and std), "mean" (mean only), "leave_one_out", "per_reward" (each term normalised
        in its group before the weighted sum, and that in its batch: GDPO), or "none": 0 for all, so that everything
        happens but for what the reward teaches.
      degenerate_penalty: above 0, degenerate completions (that the task lets earn nothing) stay out of their group's
        statistics and get minus this as advantage: a reward of 0 among rewards of about 2 is most of a group's
        variance. 0: they count in their group with what they earn.
      draws: most batches of prompts that a step samples from until `prompts` groups are mixed, that is, differ in their
        rewards; only mixed groups are learnt from, and the first `prompts` of them (dynamic sampling, DAPO, arXiv
        2503.14476). Where the bound is reached, the step makes do with those that there are. 1: one batch, and all of
        it.
      mask_truncated: leave completions without an end out of the loss.
      reference_sync_steps, reference_mix: every so many steps (0: never) the reference policy becomes a mean of the
        policy, with the weight `reference_mix`, and itself.
      clips: train on "all" clips or on the ones "held_out" from SFT.
      augment: sample from augmented media (`data.augment`); a reward that judges a caption of a clip whose sound was
        masked out is mostly noise.
      max_reward_failures: so many steps in a row in which a reward term failed, or had no value at all, stop the run.
    """

    steps: PositiveInt = 100
    prompts: PositiveInt = 8
    micro_prompts: NonNegativeInt = 0
    group_size: Annotated[int, Field(ge=2)] = 8
    updates: PositiveInt = 1
    minibatches: PositiveInt = 1
    temperature: PositiveFloat = 1.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: ShareBelowOne = 0.0
    max_new_tokens: PositiveInt = 64
    advantage: Literal["group", "mean", "leave_one_out", "per_reward", "none"] = "group"
    degenerate_penalty: NonNegativeFloat = 0.0
    draws: Annotated[int, Field(ge=1, le=1024)] = 1
    mask_truncated: bool = False
    reference_sync_steps: NonNegativeInt = 0
    reference_mix: Annotated[float, Field(gt=0, le=1)] = 0.6
    clips: Literal["all", "held_out"] = "all"
    augment: bool = False
    loss: LossConfig = LossConfig()
    reward: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    validate_every: NonNegativeInt = 0
    max_reward_failures: PositiveInt = 3

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on one rollout."""
        return self.updates * self.minibatches


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
      batch_clips: most clips on a device at a time; 0 takes its whole share.
      bootstrap: resamples behind a confidence interval.
      confidence: its level.
      ablation: also caption from audio only and from video only.
      samples: captions shown in the report.
      rows: which of the recipe's rows of comparison (`Config.rows`) are trained beside the main ones.
      others: directories of further shards that every stage is evaluated on: another corpus, another domain.
    """

    batch_clips: NonNegativeInt = 32
    bootstrap: PositiveInt = 1000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    ablation: bool = True
    samples: NonNegativeInt = 24
    rows: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """A row of comparison: a stage of the run that is trained once more, with small changes.

    Attributes:
      name: what checkpoints, report and command line call it.
      stage: which stage.
      after: "sft" starts where SFT ended; "" where the run starts, as does "sft" in a run that leaves SFT out.
      changes: "key=value" as on the command line, over the run's own configuration; keys of `task`, `data`, `sft` and
        `grpo`, but for the task's name and what says which clips there are: a row must be comparable. Keys of
        `model.decoder` put another network in its place, towers in front of it and all, which begins at random.
      time_of: a stage whose time its steps are to take, by the median step of both; "" takes as many steps as the
        stage does.
      steps_of, steps_each: a stage for each step of which it takes `steps_each`: as many floating-point operations, on
        any machine.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    stage: Literal["sft", "grpo"]
    after: Literal["", "sft"] = ""
    changes: tuple[str, ...] = ()
    time_of: Literal["", "sft", "grpo"] = ""
    steps_of: Literal["", "sft", "grpo"] = ""
    steps_each: PositiveFloat = 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; -1 gives an axis all devices that the others leave.

    Attributes:
      data, fsdp, tensor: devices along an axis: copies, parameters divided, heads and layers divided.
      gather: while completions are sampled, every device (with `tensor`: every group of them) holds all weights, in
        the dtype of products. False leaves them divided and gathers them layer by layer at every token, for models of
        which a device has no room for two copies: the policy's and the reference policy's.
    """

    data: Annotated[int, Field(ge=-1)] = -1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1
    gather: bool = True


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of a stage.

    Attributes:
      every: steps between them; 0: only at the end.
      keep: so many of the newest stay.
    """

    every: NonNegativeInt = 50
    keep: PositiveInt = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything about a run; `sft` or `grpo` set to None leaves that stage out.

    Attributes:
      name: what reports call the run, and its workdir below `runs` where no other is named.
      model: the network; presets are class methods of `ModelConfig`.
      sft, grpo: the stages; None leaves one out.
      seed: of initial weights, order, augmentation and sampling.
      rows: what the recipe offers to hold the result against; `evaluation.rows` says which ones are trained.
      backbone: directory in the Hugging Face layout that weights, tokenizer and processor come from; "" trains a
        tokenizer on the data and starts from random weights.
      init_from: RUN/checkpoints/STAGE whose weights and tokenizer the run starts from, in place of the backbone's; the
        model must be the same. With `sft` set to None it branches reinforcement learning from a finished SFT.
      trainable: regular expressions; a parameter trains where one of them matches its whole dotted path, such as
        "visual.blocks.0.attn.q.kernel". What does not match is frozen. Adapters (`model.lora`) always train; () trains
        nothing else.
      max_nonfinite_steps: so many steps in a row without a finite gradient stop the run.
      compilation_cache: directory of the persistent compilation cache; `JAX_COMPILATION_CACHE_DIR` goes before it.
      trackers: where the log goes beside TensorBoard: "wandb", "trackio". Both are extras, and are set up by their own
        variables; they get numbers, configuration, captions and labels, no media.
    """

    name: FileName
    model: ModelConfig
    seed: Seed = 0
    backbone: str = ""
    init_from: str = ""
    trainable: tuple[Regex, ...] = (".*",)
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig | None = None
    grpo: GrpoConfig | None = None
    rows: tuple[RowConfig, ...] = ()
    encoder: EncoderConfig = EncoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    max_nonfinite_steps: PositiveInt = 3
    compilation_cache: str = "cache/jax"
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()

    @property
    def longest_answer(self) -> int:
        """Most tokens of an answer in evaluation: as many as the last stage was trained for."""
        if self.grpo is not None:
            return self.grpo.max_new_tokens
        return self.sft.max_target_tokens if self.sft is not None else DEFAULT_ANSWER_TOKENS

    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer in any stage or in evaluation, for which prompts must leave room."""
        return max(self.sft.max_target_tokens if self.sft is not None else 0, self.longest_answer)

    # For the whole tree: no unknown key, no number in place of a truth value, no infinity and no NaN.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
