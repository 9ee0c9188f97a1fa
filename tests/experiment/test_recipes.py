"""Every recipe loads for every family, and its smoke mode takes two real steps."""

import dataclasses
import re

import pytest

from mecap_jax.config import ConfigError, chosen_rows, load, row_config, stage_config
from mecap_jax.experiment import story
from mecap_jax.training.checkpointing import latest_step
from mecap_jax.training.logging import read_jsonl
from tests import documented

SHOWN = documented.training("runs/smoke")[1].removeprefix("--config=configs/")
FAMILIES = (
    "qwen2_5_omni_3b",
    "qwen2_5_omni_7b",
    "qwen2_5_vl_3b",
    "qwen2_5_vl_7b",
    "features_qwen2_5_0_5b",
    "features_qwen2_5_7b",
    "features_gpt2",
    "features_bart_base",
)


@pytest.mark.parametrize("recipe", ["grpo", "sft", "r1_omni", "erv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_all_families_are_valid(recipe, family):
    for options in ("", ",lora", ",smoke", ",lora,smoke"):
        config = load(f"configs/{recipe}.py:{family}{options}")
        assert (config.grpo is None) == (recipe == "sft") and config.sft is not None
        assert (config.model.lora is not None) == ("lora" in options)
        assert bool(config.backbone) == ("smoke" not in options)
        patterns = " ".join(config.trainable)
        assert "audio_tower" not in patterns and "visual" not in patterns  # towers are frozen, as in R1-Omni
        assert ("language_model" in patterns) == ("lora" not in options)
        # Steps of one in a million are lost in bfloat16.
        assert config.model.param_dtype == ("bfloat16" if options == ",lora" else "float32")


def test_recipes_of_recognition_say_what_is_published():
    r1_omni, erv = (load(f"configs/{name}.py:qwen2_5_omni_3b") for name in ("r1_omni", "erv"))
    assert {spec.name: spec.weight for spec in r1_omni.grpo.reward.terms} == {"accuracy": 1, "format": 1}
    assert {spec.name: spec.weight for spec in erv.grpo.reward.terms} == {"accuracy": 1, "format": 1, "explanation": 1}
    for config, group in ((r1_omni, 8), (erv, 4)):
        assert (config.task.name, config.task.protocol) == ("recognition", "think_answer")
        assert (config.grpo.group_size, config.grpo.loss.beta, config.grpo.optimizer.learning_rate) == (
            group,
            0.04,
            1e-6,
        )
        assert config.grpo.max_new_tokens == 512 and config.sft.optimizer.learning_rate == 2e-5
        alone = stage_config(config, "sft_labels").sft  # one epoch of 15,306 clips
        assert (alone.batch_clips, alone.steps, alone.optimizer.learning_rate) == (128, 120, 2e-5)
        assert config.grpo.loss.reference_likelihood == 0  # clips of reinforcement learning have labels only
    # Without its third reward ERV is R1-Omni, on the same cold start.
    tiny = load("configs/erv.py", ["evaluation.rows=grpo_r1_omni"])
    (row,) = chosen_rows(tiny)
    weights = {spec.name: spec.weight for spec in row_config(tiny, row).grpo.reward.terms}
    assert row.after == "sft" and weights == {"accuracy": 1, "format": 1, "explanation": 0}
    assert tiny.sft == load("configs/r1_omni.py").sft


def test_the_recipe_of_emo_r3_says_what_is_published():
    config = load("configs/emo_r3.py:qwen2_5_vl_3b")
    assert {spec.name: spec.weight for spec in config.grpo.reward.terms} == {
        "accuracy": 0.8,
        "reflection": 0.1,
        "format": 0.1,
    }
    grpo = config.grpo
    assert (grpo.prompts, grpo.group_size, grpo.minibatches, grpo.updates) == (512, 8, 2, 1)
    assert (grpo.loss.name, grpo.loss.beta, grpo.loss.clip_low, grpo.loss.clip_high) == ("dapo", 0.01, 0.2, 0.3)
    assert (grpo.loss.clip_dual, grpo.optimizer.learning_rate, grpo.max_new_tokens) == (3.0, 2e-6, 2048)
    assert (config.task.protocol, config.task.labels, config.sft) == ("steps_boxed", "mikels", None)
    assert config.data.modalities == ("video",) and not config.data.include_transcript
    tiny = load("configs/emo_r3.py", ["evaluation.rows=grpo_steps,dapo_steps,reward_off"])
    for row in chosen_rows(tiny):
        changed = row_config(tiny, row).grpo
        asks = any(spec.name == "reflection" for spec in changed.reward.terms)
        assert row.after == "sft" and asks == (row.name == "reward_off") == (changed.advantage == "none")
    own = load("configs/emo_r3.py", ["evaluation.rows=grpo_own_target"])
    (reflection,) = [spec for spec in row_config(own, *chosen_rows(own)).grpo.reward.terms if spec.name == "reflection"]
    assert reflection.options == {"target": "own"} and reflection.weight == 0.1
    (row,) = chosen_rows(labels := load("configs/emo_r3.py", ["evaluation.rows=sft_labels"]))
    alone = row_config(labels, row)
    assert (row.after, alone.task.protocol, alone.sft.clips, alone.sft.exercises) == ("", "boxed", "all", 0)
    assert load("configs/emo_r3.py:qwen2_5_omni_3b,smoke").sft is not None
    with pytest.raises(ConfigError, match="EMO-R3 is about pictures, and features_qwen2_5_7b sees none"):
        load("configs/emo_r3.py:features_qwen2_5_7b")


@pytest.mark.parametrize("argument", ["qwen2_5_omni_9b", "qwen2_5_omni_3b,fast", "tiny,smoke", ","])
def test_an_unknown_argument_names_what_there_is(argument):
    with pytest.raises(ConfigError, match=re.escape(repr(argument)) + ".*qwen2_5_vl_3b"):
        load(f"configs/grpo.py:{argument}")


def test_the_vision_tower_trains_where_the_pattern_says_so():
    """EMO-R3 trains it; a pattern is all that takes."""
    trainable = (r"visual\..*", r"language_model\..*")
    config = load("configs/grpo.py:qwen2_5_vl_3b", [f"trainable={trainable!r}"])
    assert config.trainable == trainable


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        SHOWN,
        "grpo.py:qwen2_5_omni_7b,lora,smoke",
        "grpo.py:qwen2_5_vl_3b,smoke",
        "grpo.py:features_gpt2,smoke",
        "sft.py:qwen2_5_omni_3b,smoke",
    ],
)
@pytest.mark.usefixtures("one_meteor")
def test_smoke(recipe, common, shared, tmp_path):
    # On eight simulated devices; a step of Emo-GRPO has four prompts, and fills up the rest.
    shards = common / ("smoke-shards-features" if "features" in recipe else "smoke-shards")
    overrides = [f"data.path={shards}", "data.source=synthetic"]
    if recipe != SHOWN:  # one of them takes the whole sentence encoder
        overrides += [override for override in shared if override.startswith("encoder.")]
    config = dataclasses.replace(load(f"configs/{recipe}", overrides), checkpoint=load("configs/grpo.py").checkpoint)
    report = story.run(config, tmp_path / "run")
    stages = ("sft",) if config.grpo is None else ("sft", "grpo")
    assert set(report["eval"]) == set(stages)
    steps = {
        stage: [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if row["stage"] == stage]
        for stage in stages
    }
    for stage in stages:
        assert [row["step"] for row in steps[stage]] == [1, 2]
        assert all(row["grad_norm"] > 0 for row in steps[stage]) or stage == "grpo"
        assert latest_step(tmp_path / "run" / "checkpoints" / stage) == 2
