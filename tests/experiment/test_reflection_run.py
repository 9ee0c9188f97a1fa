"""EMO-R3's recipe in small, from pictures to a report: the policy is asked about its own steps at every step."""

import numpy as np
import pytest

from mecap_jax.config import load
from mecap_jax.data.importers import prepare
from mecap_jax.experiment import story
from mecap_jax.training.logging import read_jsonl
from tests.experiment.test_story import SMALL

SETTINGS = (
    "sft.max_target_tokens=72",
    "sft.steps=4",
    "grpo.prompts=4",
    "grpo.micro_prompts=0",
    "grpo.group_size=2",
    "grpo.max_new_tokens=24",
    "grpo.validate_every=1",
    "evaluation.rows=",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared):
    root = tmp_path_factory.mktemp("reflection")
    small = [item for item in SMALL if not item.startswith(("evaluation.rows", "model.audio"))]
    config = load("configs/emo_r3.py", [*small, *SETTINGS, shared[1], f"data.path={root / 'shards'}"])
    prepare("synthetic", None, root / "shards", config.data.synthetic, progress=False)
    return root / "run", story.run(config, root / "run")


@pytest.mark.slow
def test_the_policy_is_asked_and_its_replies_are_kept(finished):
    workdir, report = finished
    lines = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "grpo"]
    for line in lines:
        assert line["timing_s/policy_judge"] > 0 and line["rewards/reflection/failures"] == 0
        assert line["rewards/reflection/missing"] == 0 and line["validation/rewards/reflection"] is None
        assert np.isfinite(line["validation/reward"])
    for group in read_jsonl(workdir / "completions.jsonl"):
        for completion in group["completions"]:
            said, read = completion["replies"]["reflection"], completion["rewards"]["format"] == 1
            assert all(isinstance(reply, str) if read else reply is None for reply in said) and len(said) == 2
            assert read or completion["rewards"]["reflection"] == 0
    assert {"war", "format", "eea", "claims_true"} <= report["eval"]["grpo"].keys()
    assert "the audio" not in (workdir / "report.md").read_text()
