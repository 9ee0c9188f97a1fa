"""ERV (arXiv 2510.23506): R1-Omni's rewards, and a third one for explanations that speak for the right emotion.

Takes the arguments of `grpo.py`, as `r1_omni.py` does.
"""

import dataclasses
from pathlib import Path

from mecap_jax.config import Config, RewardConfig, RewardSpec, RowConfig, load


def get_config(arg: str = "") -> Config:
    whole = load(f"{Path(__file__).with_name('r1_omni.py')}:{arg}")
    tiny, smoke = whole.model.name == "tiny", whole.name.endswith("_smoke")
    replace = dataclasses.replace
    rewards = (
        RewardSpec("format"),
        RewardSpec("accuracy"),
        # As in the paper, but that a lone sentence does not earn everything: published, one on-label sentence is worth
        # as much as a whole rationale. The verifier is the emotion anchors; `verifier` names a classifier's directory.
        RewardSpec("explanation", options={"least": 2}),
    )
    return replace(
        whole,
        name=whole.name.replace("r1_omni", "erv", 1),
        sft=whole.sft if tiny or smoke else replace(whole.sft, **_COLD_START),
        grpo=replace(
            whole.grpo,
            reward=RewardConfig(rewards),  # added up without weights (the authors' run_grpo_ERV.sh)
            **({} if tiny or smoke else _RL),
        ),
        rows=(
            # The ablation that the paper makes: without the verifier this is R1-Omni.
            RowConfig("grpo_r1_omni", "grpo", "sft", ("grpo.reward.terms.explanation.weight=0",)),
            *whole.rows,
        ),
    )


# The authors' finetune_omni_add_reasoning.sh: 331 rationales, 10 epochs, batches of 32; rates as in R1-Omni's.
_COLD_START = dict(steps=105, batch_clips=32)
# Their run_grpo_ERV.sh: groups of 4, two epochs; of their checkpoints the 1,044th step ends one, at 16 prompts a step.
_RL = dict(group_size=4, steps=2088)
