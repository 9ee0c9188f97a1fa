"""EMO-R3's recipe in small, from pictures to a report: the policy is asked about its own steps at every step."""

import dataclasses

import numpy as np
import pytest

from mecap_jax.config import ConfigError, load
from mecap_jax.data.importers import prepare
from mecap_jax.data.shards import ShardReader
from mecap_jax.experiment import story
from mecap_jax.experiment.setup import set_up
from mecap_jax.training.logging import RunLogger, read_jsonl
from tests import documented
from tests.experiment.test_story import SMALL

SETTINGS = (
    "sft.max_target_tokens=72",
    "sft.steps=4",
    "grpo.prompts=4",
    "grpo.micro_prompts=0",
    "grpo.group_size=2",
    "grpo.max_new_tokens=24",
    "grpo.validate_every=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared):
    root = tmp_path_factory.mktemp("reflection")
    small = [item for item in SMALL if not item.startswith(("evaluation.rows", "model.audio"))]
    paths = (shared[1], f"data.path={root / 'shards'}", f"evaluation.others={root / 'pencil'}")
    config = load("configs/emo_r3.py", [*documented.overrides("runs/emo_r3"), *small, *SETTINGS, *paths])
    prepare("synthetic", None, root / "shards", config.data.synthetic, progress=False)
    other = dataclasses.replace(config.data.synthetic, clips=20, domain="other")
    prepare("synthetic", None, root / "pencil", other, progress=False)
    return root / "run", story.run(config, root / "run")


@pytest.mark.slow
def test_the_policy_is_asked_and_its_replies_are_kept(finished):
    workdir, report = finished
    lines = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "grpo"]
    for line in lines:
        assert line["timing_s/policy_judge"] > 0 and line["rewards/reflection/failures"] == 0
        assert line["rewards/reflection/missing"] == 0 and line["validation/rewards/reflection"] is None
        assert np.isfinite(line["validation/reward"])
    groups = read_jsonl(workdir / "completions.jsonl")
    assert {group["stage"] for group in groups} == {"grpo", "grpo_steps", "reward_off"}
    for group in (group for group in groups if group["stage"] == "grpo"):  # the rows do not ask, or teach nothing
        for completion in group["completions"]:
            said, read = completion["replies"]["reflection"], completion["rewards"]["format"] == 1
            assert all(isinstance(reply, str) if read else reply is None for reply in said) and len(said) == 2
            assert read or completion["rewards"]["reflection"] == 0
    assert {"war", "format", "eea", "claims_true"} <= report["eval"]["grpo"].keys()


@pytest.mark.slow
def test_other_clips_are_part_of_the_report(finished):
    workdir, report = finished
    found = report["others"]["pencil"]
    assert found["test"]["clips"] == 4 and found["test"]["ids_sha256"] != report["test"]["ids_sha256"]
    assert found["eval"].keys() == report["eval"].keys() == {"sft", "grpo", "grpo_steps", "reward_off"}
    assert found["differences"].keys() == report["differences"].keys() > {"grpo - sft"}
    assert {"war", "format"} <= found["eval"]["grpo"].keys() == found["confidence"]["grpo"].keys()
    text = (workdir / "report.md").read_text()
    assert "## On other clips: pencil\n\n4 clips of " in text
    with RunLogger(None, enabled=False) as logger:
        again = story.report_again(workdir, logger)  # nothing is captioned
    assert {**again, "made": None} == {**report, "made": None}


@pytest.mark.slow
def test_other_clips_that_have_changed_are_not_judged_by_what_was_said_of_the_old_ones(finished, monkeypatch):
    """Ids and the name of the directory are the same."""
    workdir, _ = finished
    with RunLogger(None, enabled=False) as logger:
        monkeypatch.setattr(ShardReader, "checksum", property(lambda reader: "0" * 64))
        with pytest.raises(ConfigError, match="keeps no captions of sft on pencil"):
            story.report_again(workdir, logger)


def test_other_clips_are_looked_for_before_anything_is_trained(tmp_path, shared):
    config = load("configs/grpo.py", [*SMALL, *shared, f"evaluation.others={tmp_path / 'absent'}"])
    with RunLogger(None, enabled=False) as logger, pytest.raises(ConfigError, match="'evaluation.others': .*absent"):
        set_up(config, tmp_path, logger)
    with pytest.raises(ConfigError, match="'evaluation.others': the directories need different names"):
        load("configs/emo_r3.py", ["evaluation.others=a/test,b/test"])
