"""MECap-R1's two stages on the embedded synthetic corpus: supervised fine-tuning, then Emo-GRPO."""

import dataclasses

from mecap_jax.config import (
    AugmentConfig,
    Bucket,
    Config,
    DataConfig,
    GrpoConfig,
    LossConfig,
    OptimizerConfig,
    RewardConfig,
    SftConfig,
)
from mecap_jax.model_config import ModelConfig


def get_config(arg: str = "") -> Config:
    del arg
    sft = SftConfig(
        steps=300,
        batch_clips=24,
        references=2,
        max_target_tokens=40,
        optimizer=OptimizerConfig(
            name="muon", learning_rate=2e-3, warmup_steps=50, schedule="cosine", weight_decay=0.05
        ),
        validate_every=100,
    )
    again = dataclasses.replace(sft.optimizer, learning_rate=1e-3, warmup_steps=10)
    return Config(
        name="grpo",
        model=ModelConfig.tiny(),
        data=DataConfig(
            max_seconds=2.4,
            fps=0,
            max_frames=8,
            min_pixels=56 * 56,
            max_pixels=56 * 56,
            buckets=(Bucket(prompt_tokens=104, audio_chunks=2, frames=4, windows=1),),
            sft_share=0.67,
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
            steps=120,
            prompts=12,
            micro_prompts=6,
            group_size=6,
            max_new_tokens=40,
            clips="held_out",
            # The likelihood of references keeps the language that a reward alone would wear down.
            loss=LossConfig(
                name="grpo", beta=0.05, clip_low=1.0, clip_high=1.0, reference_likelihood=1.0, references=4
            ),
            reward=RewardConfig(emotion=2.0, semantic=0.5, rouge_l=0.5),
            optimizer=OptimizerConfig(
                name="muon",
                learning_rate=1e-3,
                warmup_steps=10,
                schedule="linear",
                end_factor=0.2,
                weight_decay=0.05,
            ),
            validate_every=40,
        ),
        # What SFT makes of the time that Emo-GRPO takes, on all that both have seen; for the results table.
        control=dataclasses.replace(sft, clips="all", optimizer=again, validate_every=0),
    )
