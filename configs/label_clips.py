"""Emo-GRPO where most clips have a label and no caption: what the reward teaches of them.

Many corpora label emotions, few put them into words. Here a third of the training speakers of the embedded synthetic
corpus has captions, and SFT learns from those alone; the reward of Emo-GRPO also judges captions of the other clips, by
their label.
"""

import dataclasses
from pathlib import Path

from mecap_jax.config import Config, ConfigError, RowConfig, load

_SFT = ("sft.optimizer.learning_rate=1e-3", "sft.optimizer.warmup_steps=10", "sft.validate_every=0")


def get_config(arg: str = "") -> Config:
    if arg:
        raise ConfigError(f"--config: label_clips.py takes no argument, got {arg!r}")
    whole = load(str(Path(__file__).with_name("grpo.py")))
    replace = dataclasses.replace
    emotion, *others = whole.grpo.reward.terms
    terms = (replace(emotion, options={"against": "label"}), *others)
    return replace(
        whole,
        name="label_clips",
        data=replace(whole.data, synthetic=replace(whole.data.synthetic, captioned_share=1 / 3)),
        grpo=replace(whole.grpo, steps=200, reward=replace(whole.grpo.reward, terms=terms)),
        evaluation=replace(whole.evaluation, ablation=False),  # asked of the reward, not of modalities
        rows=(
            # The same clips with captions that name the label: what supervision makes of the same knowledge.
            RowConfig(
                "sft_labels",
                "sft",
                after="sft",
                changes=("data.label_captions=en", *_SFT),
                steps_of="grpo",
                steps_each=2.0,
            ),
            *(row for row in whole.rows if row.name in ("sft_control", "reward_off")),
        ),
    )
