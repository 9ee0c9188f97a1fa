"""MECap-R1's two stages: supervised fine-tuning, then Emo-GRPO.

`configs/grpo.py` trains the tiny model on the embedded synthetic corpus. `configs/grpo.py:FAMILY[,lora][,smoke]` trains
a published backbone: `lora` trains adapters only, `smoke` takes two steps with a random miniature of the family.
"""

import dataclasses

from mecap_jax.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    GrpoConfig,
    LossConfig,
    OptimizerConfig,
    RewardConfig,
    RewardSpec,
    RowConfig,
    SftConfig,
    SyntheticConfig,
)
from mecap_jax.model_config import FeatureProjectorConfig, LoraConfig, ModelConfig

# EmotionTalk's features: HuBERT for the voice, CLIP for the face (arXiv 2505.23018).
_FEATURES = FeatureProjectorConfig(
    names=("chinese-hubert-large-UTT", "clip-vit-large-patch14-UTT"), dims=(1024, 768), hidden_size=1024
)
# Family: the model, where its published files are expected, what it gets to see.
_BACKBONES = {
    "qwen2_5_omni_3b": (ModelConfig.qwen2_5_omni_3b(), "checkpoints/Qwen2.5-Omni-3B", ("audio", "video")),
    "qwen2_5_omni_7b": (ModelConfig.qwen2_5_omni_7b(), "checkpoints/Qwen2.5-Omni-7B", ("audio", "video")),
    "qwen2_5_vl_3b": (ModelConfig.qwen2_5_vl_3b(), "checkpoints/Qwen2.5-VL-3B-Instruct", ("video",)),
    "qwen2_5_vl_7b": (ModelConfig.qwen2_5_vl_7b(), "checkpoints/Qwen2.5-VL-7B-Instruct", ("video",)),
    "features_qwen2_5_0_5b": (
        ModelConfig.features_qwen2_5_0_5b(_FEATURES),
        "checkpoints/Qwen2.5-0.5B-Instruct",
        ("features",),
    ),
    "features_qwen2_5_7b": (
        ModelConfig.features_qwen2_5_7b(_FEATURES),
        "checkpoints/Qwen2.5-7B-Instruct",
        ("features",),
    ),
    "features_gpt2": (ModelConfig.features_gpt2(_FEATURES), "checkpoints/gpt2", ("features",)),
    "features_bart_base": (ModelConfig.features_bart_base(_FEATURES), "checkpoints/bart-base", ("features",)),
}


ROWS = (
    # What can be had without listening and looking.
    RowConfig("text_only", "sft", changes=("data.modalities=()", "data.buckets=()")),
    # What more SFT makes of the same clips and floating-point operations (docs/protocol.md).
    RowConfig(
        "sft_control",
        "sft",
        after="sft",
        changes=("sft.optimizer.learning_rate=1e-3", "sft.optimizer.warmup_steps=10", "sft.validate_every=0"),
        steps_of="grpo",
        steps_each=2.0,
    ),
    # Emo-GRPO whose reward teaches nothing: what its rollouts, divergence and supervised share do by themselves.
    RowConfig("reward_off", "grpo", after="sft", changes=("grpo.advantage=none",)),
    # Emo-GRPO without the emotion term.
    RowConfig("grpo_semantic", "grpo", after="sft", changes=("grpo.reward.terms.emotion.weight=0",)),
    # The emotion term alone.
    RowConfig(
        "emotion_only",
        "grpo",
        after="sft",
        changes=tuple(f"grpo.reward.terms.{term}.weight=0" for term in ("distinctiveness", "fluency", "cider_d")),
    ),
    # Emo-GRPO with an emotion term of the same shape that means nothing.
    RowConfig("anchors_shuffled", "grpo", after="sft", changes=("grpo.reward.terms.emotion.options.shuffled=True",)),
)

# The paper's other captioners, in the place of the tiny decoder: of its width, its depth and its number of parameters,
# but for BART's attention to what its encoder says.
_GPT2 = (
    "model.decoder.mrope_section=None",
    "model.decoder.max_position_embeddings=512",
    "model.decoder.num_key_value_heads=4",
    "model.decoder.intermediate_size=320",
)
_ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 320}
_BART = (*_GPT2, "model.decoder.num_hidden_layers=2", f"model.decoder.encoder={_ENCODER}")
_CAPTIONERS = (
    RowConfig("qwen2_sft", "sft", changes=("model.decoder.mrope_section=None",)),
    RowConfig("gpt2_sft", "sft", changes=_GPT2),
    RowConfig("bart_sft", "sft", changes=_BART),
)


# The emotion, what is said of no other clip of the same emotion, and words as people put them. With these weights few
# of fifty kinds of adversarial captions earn more than an honest one (tests/rewards/test_caption_hacks.py).
_REWARD = (
    RewardSpec("emotion", 2.0, options={"over": "mean"}),
    RewardSpec("distinctiveness", 2.0, options={"among": "emotion"}),
    RewardSpec("fluency", 3.0),
    RewardSpec("cider_d", 0.4),
)


def get_config(arg: str = "") -> Config:
    family, *options = (arg or "tiny").split(",")
    if family == "tiny" and not options:
        return _tiny()
    if family not in _BACKBONES or not set(options) <= {"lora", "smoke"}:
        raise ConfigError(
            f"--config: unknown argument {arg!r}; expected FAMILY[,lora][,smoke] with one of {', '.join(_BACKBONES)}"
        )
    config = _backbone(family, "lora" in options)
    return _smoke(config) if "smoke" in options else config


def _tiny() -> Config:
    sft = SftConfig(
        steps=450,  # reinforcement learning comes last, where more SFT is hardly told from less
        batch_clips=24,
        references=2,
        max_target_tokens=40,
        optimizer=OptimizerConfig(
            name="muon", learning_rate=2e-3, warmup_steps=50, schedule="cosine", weight_decay=0.05
        ),
        validate_every=150,
    )
    return Config(
        name="grpo",
        model=ModelConfig.tiny(),
        data=DataConfig(
            transcript_dropout=0.3,
            fps=0,
            max_frames=8,
            min_pixels=56 * 56,
            max_pixels=56 * 56,
            augment=AugmentConfig(
                modality_dropout=0.3,
                gain_db=3.0,
                time_mask_frames=20,
                frequency_mask_bins=8,
                brightness=0.1,
                shift_pixels=1,
            ),
        ),
        sft=sft,
        grpo=GrpoConfig(
            steps=50,
            prompts=12,
            micro_prompts=6,
            group_size=6,
            temperature=0.7,  # at 1, a sixth of what is sampled has words that are none
            max_new_tokens=40,
            degenerate_penalty=0.5,
            # The likelihood of references keeps the language that a reward alone would wear down.
            loss=LossConfig(
                name="grpo", beta=0.05, clip_low=1.0, clip_high=1.0, reference_likelihood=1.0, references=4
            ),
            reward=RewardConfig(_REWARD),
            optimizer=OptimizerConfig(
                name="muon",
                learning_rate=1e-3,
                warmup_steps=10,
                schedule="linear",
                end_factor=0.2,
                weight_decay=0.05,
            ),
            validate_every=25,
        ),
        rows=ROWS + _CAPTIONERS,
    )


def _backbone(family: str, lora: bool) -> Config:
    """Full fine-tuning of the decoder, towers frozen as in R1-Omni (arXiv 2503.05379); or adapters in the
    decoder, and in BART's encoder.

    MECap-R1's own settings are not public: learning rates, group size and KL weight are those usual for this size.
    """
    model, directory, modalities = _BACKBONES[family]
    # Steps of 1e-6 are lost in bfloat16's eight bits: what is trained is stored in float32.
    model = dataclasses.replace(model, remat=True, param_dtype="bfloat16" if lora else "float32")
    model = dataclasses.replace(model, lora=LoraConfig.of_text(model.decoder) if lora else None)
    trainable = () if lora else (r"language_model\..*",)
    if model.features:
        trainable += (r"feature_projector\..*",)  # it begins at random
    return Config(
        name=f"grpo_{family}{'_lora' if lora else ''}",
        model=model,
        backbone=directory,
        trainable=trainable,
        data=DataConfig(
            modalities=modalities,
            min_pixels=64 * 28 * 28,
            max_pixels=128 * 28 * 28,  # at most 128 decoder tokens a pair of frames
            transcript_dropout=0.3,
            sft_share=0.5,
            workers=4,
        ),
        sft=SftConfig(
            steps=1000,
            batch_clips=32,
            micro_clips=1,
            references=2,
            max_target_tokens=96,
            optimizer=OptimizerConfig(learning_rate=1e-4 if lora else 1e-5, warmup_steps=30, clip_norm=1.0),
            validate_every=200,
        ),
        grpo=GrpoConfig(
            steps=500,
            prompts=16,
            micro_prompts=1,
            group_size=8,
            max_new_tokens=96,
            clips="held_out",
            loss=LossConfig(name="grpo", beta=0.04),
            reward=RewardConfig((RewardSpec("emotion", 1.0), RewardSpec("semantic", 0.5))),
            optimizer=OptimizerConfig(learning_rate=1e-5 if lora else 1e-6, warmup_steps=10, schedule="constant"),
            validate_every=100,
        ),
        evaluation=EvaluationConfig(batch_clips=8),
        checkpoint=CheckpointConfig(every=100),
        rows=tuple(row for row in ROWS if row.name != "sft_control"),
    )


def _smoke(config: Config) -> Config:
    """Two real steps of every stage on a CPU, on a few synthetic clips; nothing is read from disk."""
    replace = dataclasses.replace
    model = config.model.miniature()
    features = ()
    if model.features:
        features = ("log_mel-UTT", "log_mel-FRA")
        model = replace(model, features=FeatureProjectorConfig(names=features, dims=(80, 40), hidden_size=64))
    quick = dict(warmup_steps=0)
    return replace(
        config,
        name=f"{config.name}_smoke",
        model=model,
        backbone="",
        data=replace(
            config.data,
            synthetic=SyntheticConfig(clips=60, features=features),
            fps=0,
            max_frames=4,
            min_pixels=56 * 56,
            max_pixels=56 * 56,
            max_bad_fraction=0.3,  # some synthetic clips have no face
            workers=0,
        ),
        sft=replace(
            config.sft,
            steps=2,
            batch_clips=8,
            micro_clips=4,
            max_target_tokens=32,
            optimizer=replace(config.sft.optimizer, **quick),
            validate_every=0,
        ),
        grpo=replace(
            config.grpo,
            steps=2,
            prompts=4,
            micro_prompts=2,
            group_size=3,
            max_new_tokens=16,
            optimizer=replace(config.grpo.optimizer, **quick),
            validate_every=0,
        ),
        evaluation=EvaluationConfig(batch_clips=8, bootstrap=100, ablation=False, samples=4),
    )
