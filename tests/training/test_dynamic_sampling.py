"""Dynamic sampling: a step draws until enough groups are mixed, learns from those alone, and resumes where it was."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from mecap_jax.config import CheckpointConfig
from mecap_jax.interruption import Interrupted
from mecap_jax.rewards.combine import RewardFunction
from mecap_jax.rl.learner import _whitened
from mecap_jax.training.checkpointing import StageCheckpoints
from mecap_jax.training.logging import RunLogger, read_jsonl
from mecap_jax.training.loop import run_stage
from tests.training import harness

WANTED = 5
DYNAMIC = dataclasses.replace(harness.GRPO, prompts=WANTED, draws=3)


def learner(config):
    return harness.grpo_learner(harness.mesh(), harness.DESCENT, config, harness.EVERYTHING)


class Uneven(harness.Alphabetical):
    """Worth the same for all completions of a clip with an even number: such groups are not mixed."""

    def __call__(self, samples):
        odd = [int(sample.utterance_id.removeprefix("clip-")) % 2 for sample in samples]
        return [value * o for value, o in zip(super().__call__(samples), odd)]


def step_with(monkeypatch, reward):
    """(state, step function) of dynamic sampling under a reward."""
    monkeypatch.setattr(learner(DYNAMIC)._engine, "_reward", RewardFunction([(reward, 1.0)], 60))
    _, state, step = harness.grpo_step(harness.mesh(), 2, harness.DESCENT, DYNAMIC)
    return state, step


def test_the_first_mixed_groups_are_learnt_from_and_nothing_else(monkeypatch):
    state, step = step_with(monkeypatch, Uneven())
    start = jax.tree.map(lambda x: x.copy(), state)
    drawn = iter((1, 2))
    state, metrics, groups = step(state, 0, functools.partial(next, drawn))
    per_batch = sum(number % 2 and number != 3 for number in range(harness.BATCH))
    draws = -(-WANTED // per_batch)
    assert 1 < draws <= DYNAMIC.draws and len(list(drawn)) == DYNAMIC.draws - draws
    assert (metrics["draws"], metrics["mixed_groups"], metrics["kept_groups"]) == (draws, draws * per_batch, WANTED)
    assert len(groups) == draws * (harness.BATCH - 1)  # all that was sampled is logged

    # The same as a step that gets no other groups.
    numbers = [n + (b << 20) for b in range(draws) for n in range(harness.BATCH) if n % 2 and n != 3][:WANTED]
    plain = learner(harness.GRPO)
    monkeypatch.setattr(plain._engine, "_reward", RewardFunction([(Uneven(), 1.0)], 60))
    batches = [harness.grpo_batch(b, harness.mesh(), 2, b, only=numbers) for b in range(draws)]
    expected, result = plain.step(start, sum(batches, []))
    assert metrics["num_tokens"] == result.metrics["num_tokens"] and metrics["grad_norm"] > 0
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(expected.params), atol=1e-6)


def test_mini_batches_share_what_is_learnt_from(monkeypatch):
    """Every optimiser step has its part of the mixed groups, wherever they were drawn."""
    config = dataclasses.replace(DYNAMIC, minibatches=2)
    monkeypatch.setattr(learner(config)._engine, "_reward", RewardFunction([(Uneven(), 1.0)], 60))
    _, state, step = harness.grpo_step(harness.mesh(), 2, harness.DESCENT, config)
    taken = []
    optimise = learner(config)._optimise

    def watched(state, part, *rest):
        taken.append([np.asarray(rows)[np.asarray(example.valid)].tolist() for example, rows in part])
        return optimise(state, part, *rest)

    monkeypatch.setattr(learner(config), "_optimise", watched)
    state, metrics, _ = step(state, 0, functools.partial(next, iter((1, 2))))
    numbers = [n + (b << 20) for b in range(DYNAMIC.draws) for n in range(harness.BATCH) if n % 2 and n != 3][:WANTED]
    assert [sum(part, []) for part in taken] == [numbers[: WANTED // 2], numbers[WANTED // 2 :]]
    assert int(state.step) == 2 and metrics["kept_groups"] == WANTED and metrics["grad_norm"] > 0


def test_without_mixed_groups_a_step_ends_and_says_so(monkeypatch):
    state, step = step_with(
        monkeypatch, type("Same", (Uneven,), {"__call__": lambda self, samples: [1.0] * len(samples)})()
    )
    state, metrics, _ = step(state, 0, functools.partial(next, iter((1, 2))))
    assert (metrics["draws"], metrics["mixed_groups"], metrics["kept_groups"]) == (DYNAMIC.draws, 0, 0)
    assert metrics["frac_reward_zero_std"] == 1 and metrics["num_tokens"] == 0 and metrics["grad_norm"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))


def train(directory, monkeypatch, stop_after=None):
    state, step = step_with(monkeypatch, Uneven())
    with (
        RunLogger(directory) as logger,
        StageCheckpoints(directory / "checkpoints", CheckpointConfig(every=0), {}) as checkpoints,
    ):
        return run_stage(
            "grpo",
            harness.shapes(state),
            lambda: state,
            step,
            harness.batches(3 * DYNAMIC.draws),
            steps=3,
            checkpoints=checkpoints,
            logger=logger,
            max_nonfinite=2,
            should_stop=lambda done: done == stop_after,
        )


def test_a_resumed_run_draws_what_the_unbroken_one_drew(tmp_path, monkeypatch):
    expected = jax.device_get(train(tmp_path / "unbroken", monkeypatch))
    with pytest.raises(Interrupted):
        train(tmp_path / "broken", monkeypatch, stop_after=1)
    actual = jax.device_get(train(tmp_path / "broken", monkeypatch))
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)
    logs = [read_jsonl(tmp_path / name / "completions.jsonl") for name in ("unbroken", "broken")]
    texts = [[[c["text"] for c in group["completions"]] for group in log] for log in logs]
    assert texts[0] == texts[1]


def test_the_batch_is_whitened_over_what_is_learnt_from():
    """GDPO: a completion whose advantage happens to be 0 counts, one in a group that is left out does not."""
    advantages = [np.float32([[1.0, 0.0], [0.0, 0.0]]), np.float32([[-2.0, 5.0]])]
    totals = [np.float32([[1.0, 0.5], [1.0, 1.0]]), np.float32([[0.0, np.nan]])]
    kept = [np.array([True, False]), np.array([True])]
    counted = [np.isfinite(total) & rows[:, None] for total, rows in zip(totals, kept)]
    first, second = _whitened(advantages, counted)
    values = np.array([1.0, 0.0, -2.0])
    expected = (values - values.mean()) / (values.std(ddof=1) + 1e-4)
    np.testing.assert_allclose([*first[0], second[0, 0]], expected, rtol=1e-6)
    assert not first[1].any() and second[0, 1] == 0
    nobody = [np.zeros((2, 2), bool), np.zeros((1, 2), bool)]
    assert not any(part.any() for part in _whitened(advantages, nobody))
