"""R1-Omni (arXiv 2503.05379): a cold start on rationales, then GRPO on whether the answer is right and well formed.

`configs/r1_omni.py` trains the tiny model on the embedded synthetic corpus. `configs/r1_omni.py:FAMILY[,lora][,smoke]`
trains a published backbone, with the arguments of `grpo.py`.
"""

import dataclasses
from pathlib import Path

from mecap_jax.config import (
    Config,
    LossConfig,
    OptimizerConfig,
    RewardConfig,
    RewardSpec,
    RowConfig,
    TaskConfig,
    load,
)


def get_config(arg: str = "") -> Config:
    whole = load(f"{Path(__file__).with_name('grpo.py')}:{arg}")
    tiny, smoke = whole.model.name == "tiny", whole.name.endswith("_smoke")
    replace = dataclasses.replace
    return replace(
        whole,
        name=whole.name.replace("grpo", "r1_omni", 1),
        task=TaskConfig("recognition", protocol="think_answer"),
        data=replace(whole.data, sft_share=0.3 if tiny else whole.data.sft_share),
        sft=whole.sft if smoke else replace(whole.sft, **(_TINY_COLD_START if tiny else _COLD_START)),
        grpo=replace(
            whole.grpo,
            # Both 0 or 1, added up without weights (section 3.2; the authors' grpo.py).
            reward=RewardConfig((RewardSpec("accuracy"), RewardSpec("format"))),
            # KL weight: TRL 0.14's default, which the authors' script leaves as it is. One update a batch, so that
            # nothing is ever clipped.
            loss=LossConfig(name="grpo", beta=0.04),
            **({} if smoke else _TINY_RL if tiny else _RL),
        ),
        rows=(_REWARD_OFF, _labels(() if tiny or smoke else _ONE_EPOCH), *((_CONTROL,) if tiny else ())),
    )


# The authors' finetune_omni_emer.sh: 580 rationales, 5 epochs, batches of 16, 2e-5 with a cosine.
_COLD_START = dict(
    steps=180,
    batch_clips=16,
    references=1,
    max_target_tokens=512,
    optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=6, schedule="cosine"),
)
# Their run_grpo_humanomni.sh: groups of 8, 16 prompts a step on 8 devices, 2 epochs of 15,306 clips, 512 tokens,
# temperature 1, and TRL 0.14's rate of 1e-6.
_RL = dict(
    steps=1900,
    prompts=16,
    group_size=8,
    max_new_tokens=512,
    optimizer=OptimizerConfig(learning_rate=1e-6, schedule="linear"),
)
# All that reinforcement learning does but for what its reward teaches.
_REWARD_OFF = RowConfig("reward_off", "grpo", after="sft", changes=("grpo.advantage=none",))
# What the cold start makes of the time that reinforcement learning takes; its rates are the tiny model's.
_CONTROL = RowConfig(
    "sft_control",
    "sft",
    after="sft",
    changes=("sft.optimizer.learning_rate=1e-3", "sft.optimizer.warmup_steps=10", "sft.validate_every=0"),
    time_of="grpo",
)
# The authors' finetune_omni_small_sftonMAFWDFEW.sh: one epoch of 15,306 clips in batches of 128.
_ONE_EPOCH = ("sft.batch_clips=128", "sft.steps=120")


def _labels(epoch: tuple[str, ...]) -> RowConfig:
    """The paper's baseline: labels alone, of all clips."""
    changes = ("task.protocol=answer", "sft.clips=all", "sft.validate_every=0", *epoch)
    return RowConfig("sft_labels", "sft", changes=changes)


_MUON = dict(name="muon", weight_decay=0.05)
_TINY_COLD_START = dict(
    steps=250,
    references=1,
    max_target_tokens=72,
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, schedule="cosine", **_MUON),
)
_TINY_RL = dict(
    steps=100,
    prompts=12,
    micro_prompts=6,
    group_size=8,
    temperature=1.0,  # this and the next two: not as captioning has them
    degenerate_penalty=0.0,
    clips="held_out",
    max_new_tokens=72,
    optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=10, schedule="linear", **_MUON),
)
