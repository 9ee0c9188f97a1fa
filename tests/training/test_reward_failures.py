"""A reward term that fails is in every step's metrics by name, and ends the run when it goes on failing."""

import pytest

from mecap_jax.config import CheckpointConfig
from mecap_jax.rewards.base import RewardError
from mecap_jax.rewards.combine import RewardFunction
from mecap_jax.rewards.validity import is_degenerate
from mecap_jax.rewards.watch import RewardWatch
from mecap_jax.training.checkpointing import StageCheckpoints
from mecap_jax.training.logging import RunLogger, read_jsonl
from mecap_jax.training.loop import run_stage
from tests.training import harness

# One clip of the batch cannot be decoded and has no samples.
PROMPTS = harness.BATCH - 1
SAMPLES = PROMPTS * harness.GRPO.group_size


class Broken(harness.Alphabetical):
    """Gives proper values twice, as many as there are micro-batches in a step, and fails from then on."""

    def __init__(self, failure):
        self._calls, self._failure = 0, failure

    def __call__(self, samples):
        self._calls += 1
        return super().__call__(samples) if self._calls <= 2 else self._failure(samples)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs GRPO steps of two micro-batches under a reward; returns the directory."""

    def with_reward(term, max_failures):
        reward = RewardFunction([(term, 1.0)], 60, is_degenerate)
        learner = harness.grpo_learner(harness.mesh(), harness.GRPO_OPTIMIZER, harness.GRPO, harness.EVERYTHING)
        monkeypatch.setattr(learner._engine, "_reward", reward)
        _, state, step = harness.grpo_step(harness.mesh(), micro=4)
        with (
            RunLogger(tmp_path) as logger,
            StageCheckpoints(tmp_path / "checkpoints", CheckpointConfig(every=0), {}) as checkpoints,
        ):
            run_stage(
                "grpo",
                harness.shapes(state),
                lambda: state,
                step,
                harness.batches(),
                steps=harness.STEPS,
                checkpoints=checkpoints,
                logger=logger,
                max_nonfinite=3,
                watch=RewardWatch(reward, max_failures),
            )

    return with_reward


@pytest.mark.parametrize(
    "failure, count, missing, reason",
    [
        (lambda samples: 1 / 0, SAMPLES, 1.0, "ZeroDivisionError"),
        (lambda samples: [None] * len(samples), 0, 1.0, "no value for any sample"),
        (lambda samples: [1e308] + [0.5] * (len(samples) - 1), 2, 2 / SAMPLES, "such as 1e\\+308"),
    ],
)
def test_a_run_whose_reward_goes_on_failing_stops(run, tmp_path, failure, count, missing, reason):
    with pytest.raises(RewardError, match=f"'alphabetical' failed in 2 steps in a row, the last one step 3.*{reason}"):
        run(Broken(failure), max_failures=2)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["rewards/alphabetical/failures"] for row in rows] == [0, count, count]
    assert [row["rewards/alphabetical/missing"] for row in rows] == pytest.approx([0, missing, missing])
    assert rows[0]["grad_norm"] > 0  # the references' likelihood trains on, which alone hides a dead reward
    groups = read_jsonl(tmp_path / "completions.jsonl")
    dead = [sample["rewards"]["alphabetical"] is None for group in groups for sample in group["completions"]]
    assert sum(dead) == sum(round(row["rewards/alphabetical/missing"] * SAMPLES) for row in rows)


def test_groups_tell_what_was_asked_and_why_a_completion_earns_nothing(run, tmp_path):
    run(harness.Alphabetical(), max_failures=1)
    groups = read_jsonl(tmp_path / "completions.jsonl")
    assert len(groups) == harness.STEPS * PROMPTS
    assert {(group["prompt"], group["transcript"]) for group in groups} == {("describe", "so they say")}
    samples = [sample for group in groups for sample in group["completions"]]
    assert {sample["degenerate"] for sample in samples} >= {None, "endless"}
    for sample in samples:
        assert (sample["degenerate"] == "endless") <= (not sample["finished"])
