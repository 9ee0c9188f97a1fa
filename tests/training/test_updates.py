"""What a step does with its rollout: mini-batches, a reference policy that moves, a KL weight that changes."""

import dataclasses
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mecap_jax.config import CheckpointConfig, ConfigError, LossConfig, load
from mecap_jax.interruption import Interrupted
from mecap_jax.rewards.combine import RewardFunction, Term
from mecap_jax.rewards.validity import is_degenerate
from mecap_jax.rl.learner import _only
from mecap_jax.training.checkpointing import StageCheckpoints
from mecap_jax.training.logging import RunLogger, read_jsonl
from mecap_jax.training.loop import run_stage
from tests.training import harness

replace = dataclasses.replace
MICRO = 2


def learner(config):
    return harness.grpo_learner(harness.mesh(), harness.DESCENT, config, harness.EVERYTHING)


def groups_of(config):
    return learner(config).step(start(), harness.grpo_batch(0, harness.mesh(), MICRO))[1].groups


@pytest.mark.parametrize("method", ["mean", "per_reward"])
def test_degenerate_completions_stay_out_of_the_statistics_and_are_charged(method):
    plain = replace(harness.GRPO, advantage=method)
    usual, apart = groups_of(plain), groups_of(replace(plain, degenerate_penalty=0.7))
    assert any(c["degenerate"] for group in apart for c in group["completions"])
    for group, before in zip(apart, usual):
        charged = [c["advantage"] for c in group["completions"] if c["degenerate"]]
        proper = [c["advantage"] for c in group["completions"] if not c["degenerate"]]
        assert set(charged) <= {-0.7}
        if method == "mean":
            assert sum(proper) == pytest.approx(0, abs=1e-5)
        assert [c["reward"] for c in group["completions"]] == [c["reward"] for c in before["completions"]]


def test_without_advantages_degenerate_completions_are_not_charged_either():
    groups = groups_of(replace(harness.GRPO, advantage="none", degenerate_penalty=0.7))
    assert {c["advantage"] for group in groups for c in group["completions"]} == {0}


def start():
    return harness.initial_state(harness.mesh(), harness.DESCENT)[1]


def one_step(config, state, number=0):
    state, result = learner(config).step(state, harness.grpo_batch(number, harness.mesh(), MICRO))
    return state, result.metrics


def test_every_mini_batch_takes_a_step_of_its_own(monkeypatch):
    """As many smaller updates one after the other, on one rollout; what is logged is that of all of them."""
    plain, taken = learner(harness.GRPO), []
    update = plain._update

    def by_parts(state, parts, accumulate):
        (every,) = parts
        for numbers in ([0, 1, 2], [3, 4, 5, 6]):
            part = [(_only(example, jnp.isin(rows, jnp.array(numbers))), rows) for example, rows in every]
            state, *rest = update(state, [part], accumulate)
            taken.append(jax.device_get(rest))
        return state, *rest

    monkeypatch.setattr(plain, "_update", by_parts)
    expected, _ = plain.step(start(), harness.grpo_batch(0, harness.mesh(), MICRO))
    monkeypatch.undo()
    actual, metrics = one_step(replace(harness.GRPO, minibatches=2), start())
    chex.assert_trees_all_close(jax.device_get(actual.params), jax.device_get(expected.params), atol=1e-7)
    assert int(actual.step) == 2 == len(taken)
    (first, totals, norm), (second, others, other_norm) = taken
    tokens = totals.tokens + others.tokens
    assert metrics["num_tokens"] == tokens
    assert metrics["kl"] == pytest.approx((first.kl + second.kl) / tokens, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx((norm + other_norm) / 2, rel=1e-5)


def test_what_is_logged_is_the_mean_of_all_passes():
    once, twice = (one_step(replace(harness.GRPO, updates=n), start())[1] for n in (1, 2))
    assert twice["num_tokens"] == once["num_tokens"] and twice["reward"] == once["reward"]
    # The second pass begins behind the first update, so it is farther from the reference policy.
    assert once["kl"] == pytest.approx(0, abs=1e-6) and twice["kl"] > 10 * once["kl"]


@pytest.mark.parametrize("mesh, micro", [((1, 1), 3), ((1, 1), 0), ((2, 2), 1)])
def test_mini_batches_are_the_same_however_a_step_is_divided(mesh, micro):
    """A resumed run may have another mesh, and other micro-batches: prompts of one stay in their mini-batch."""
    config, mesh = replace(harness.GRPO, minibatches=3), harness.mesh(*mesh)
    expected, metrics = one_step(config, start())
    assert int(expected.step) == 3
    learner = harness.grpo_learner(mesh, harness.DESCENT, config, harness.EVERYTHING)
    actual, result = learner.step(harness.initial_state(mesh, harness.DESCENT)[1], harness.grpo_batch(0, mesh, micro))
    assert result.metrics["num_tokens"] == metrics["num_tokens"]
    chex.assert_trees_all_close(jax.device_get(actual.params), jax.device_get(expected.params), atol=1e-6)


def test_mini_batches_need_prompts():
    with pytest.raises(ConfigError, match="'grpo.minibatches': 5, but a step has only 4 prompts"):
        load("configs/grpo.py", ["grpo.minibatches=5", "grpo.prompts=4"])


class Odd(harness.Alphabetical):
    """Says nothing of clips with an even number."""

    def __call__(self, samples):
        odd = [int(sample.utterance_id.removeprefix("clip-")) % 2 for sample in samples]
        return [value * o for value, o in zip(super().__call__(samples), odd)]


class Long(harness.Alphabetical):
    """Of another scale; and of one even clip, neither term says anything."""

    name = "long"

    def __call__(self, samples):
        return [float(len(sample.completion)) * (sample.utterance_id != "clip-4") for sample in samples]


def test_gdpo_in_a_step_equals_its_formula(monkeypatch):
    """Written from the paper (arXiv 2601.05242): normalise each term in its group, add up by weight, then take mean and
    deviation of the whole batch out, whatever the groups are like."""
    one = learner(replace(harness.GRPO, advantage="per_reward"))
    weights = {"alphabetical": 1.0, "long": 0.5}
    monkeypatch.setattr(one._engine, "_reward", RewardFunction([(Odd(), 1.0), (Long(), 0.5)], 60))
    groups = one.step(start(), harness.grpo_batch(0, harness.mesh(), MICRO))[1].groups
    rewards = {name: np.array([[c["rewards"][name] for c in g["completions"]] for g in groups]) for name in weights}
    total = 0.0
    for name, weight in weights.items():
        values = rewards[name]
        spread = values.std(axis=1, ddof=1, keepdims=True)
        total = total + weight * (values - values.mean(axis=1, keepdims=True)) / (spread + 1e-4)
    expected = (total - total.mean()) / (total.std(ddof=1) + 1e-4)
    actual = np.array([[c["advantage"] for c in g["completions"]] for g in groups])
    assert any(not group.any() for group in actual.round(4))  # a group that says nothing counts in the deviation
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_completions_that_were_cut_may_stay_out_of_the_loss(monkeypatch):
    """Overlong masking (DAPO): as many tokens fewer count, and the others' gradient is that of a batch without them."""
    groups = groups_of(harness.GRPO)
    finished = [c["finished"] for group in groups for c in group["completions"]]
    assert 0 < sum(finished) < len(finished)
    whole, masked = (learner(replace(harness.GRPO, mask_truncated=on)) for on in (False, True))
    seen = []
    for one in (whole, masked):
        update = one._update

        def watched(state, parts, accumulate, update=update):
            seen.append([np.asarray(example.completions.mask) for example, _ in parts[0]])
            return update(state, parts, accumulate)

        monkeypatch.setattr(one, "_update", watched)
        one.step(start(), harness.grpo_batch(0, harness.mesh(), MICRO))
    every, kept = (np.concatenate(masks) for masks in seen)
    cut = every.any(axis=-1) & ~kept.any(axis=-1)
    assert cut.sum() == len(finished) - sum(finished)
    assert (every[cut].sum(axis=-1) == harness.LENGTH).all()  # what is masked is what has no end
    np.testing.assert_array_equal(kept[~cut], every[~cut])


def test_a_term_whose_questions_fail_is_counted_and_harms_no_other(monkeypatch):
    class Broken(harness.Curious):
        def questions(self, sample):
            return [1 / 0]

    curious = harness.grpo_learner(harness.mesh(), harness.DESCENT, harness.GRPO, harness.EVERYTHING, True)
    terms = [(harness.Alphabetical(), 1.0), (Broken(), 1.0)]
    monkeypatch.setattr(curious._engine, "_reward", RewardFunction(terms, 60))
    _, result = curious.step(start(), harness.grpo_batch(0, harness.mesh(), MICRO))
    metrics = result.metrics
    judged = (harness.BATCH - 1) * harness.GRPO.group_size
    assert metrics["rewards/curious/failures"] == judged and metrics["rewards/alphabetical/failures"] == 0
    assert metrics["reward"] == pytest.approx(metrics["rewards/alphabetical/mean"])
    assert "ZeroDivisionError" in curious._engine._reward.reasons["curious"]


def test_a_weight_follows_the_mean_of_all_that_was_sampled_together(monkeypatch):
    """Not of a micro-batch: how a step is divided changes nothing."""

    class Even(harness.Alphabetical):
        name = "even"

        def __call__(self, samples):
            return [float(sample.utterance_id.endswith(tuple("02468"))) for sample in samples]

    scheduled = Term(harness.Alphabetical(), 2.0, schedule=((0.0, 0.0), (1.0, 1.0)), schedule_over="even")
    one = learner(harness.GRPO)
    monkeypatch.setattr(one._engine, "_reward", RewardFunction([scheduled, (Even(), 1.0)], 60))
    for micro in (MICRO, 0):
        result = one.step(start(), harness.grpo_batch(0, harness.mesh(), micro))[1]
        completions = [c for group in result.groups for c in group["completions"]]
        mean = sum(c["rewards"]["even"] for c in completions) / len(completions)
        assert 0 < mean < 1
        for completion in completions:
            terms = completion["rewards"]
            assert completion["reward"] == pytest.approx(2 * mean * terms["alphabetical"] + terms["even"], abs=1e-5)
        assert all(result.metrics[f"timing_s/rewards/{name}"] > 0 for name in ("alphabetical", "even"))


class Together(harness.Alphabetical):
    """Judges a micro-batch only when another one is being judged, too."""

    def __init__(self, parties):
        self._barrier = threading.Barrier(parties)

    def __call__(self, samples):
        self._barrier.wait(timeout=60)
        return super().__call__(samples)


def test_rewards_are_computed_beside_the_next_micro_batch_and_change_nothing(monkeypatch):
    """All micro-batches are sampled before the rewards of any are there; one after the other, the step is the same."""
    plain = learner(harness.GRPO)
    micro_batches = harness.grpo_batch(0, harness.mesh(), MICRO)
    run, usual = plain._engine.run, plain._engine._reward

    def one_by_one(params, micro_batches, step, reference=None):
        rollouts = []
        for micro in micro_batches:
            (rollout,), timing = run(params, [micro], step, reference)
            rollout.rewards.result()
            rollouts.append(rollout)
        return rollouts, timing

    monkeypatch.setattr(plain._engine, "run", one_by_one)
    expected, result = plain.step(start(), micro_batches)
    monkeypatch.undo()
    reward = RewardFunction([(Together(len(micro_batches)), 1.0)], 60, is_degenerate)
    monkeypatch.setattr(plain._engine, "_reward", reward)
    actual, overlapped = plain.step(start(), micro_batches)
    monkeypatch.setattr(plain._engine, "_reward", usual)
    assert overlapped.metrics["rewards/alphabetical/failures"] == 0 and len(micro_batches) > 2
    assert overlapped.groups == result.groups
    chex.assert_trees_all_equal(jax.device_get(actual.params), jax.device_get(expected.params))


# --- the reference policy --------------------------------------------------------------------------------------------

MOVING = replace(harness.GRPO, reference_sync_steps=2, reference_mix=0.75)


def moving_state():
    state = start()
    return state._replace(reference=jax.tree.map(lambda x: x.copy(), state.params))


def test_the_reference_policy_moves_after_the_policy():
    state = moving_state()
    before = jax.device_get(state.params)
    state, first = one_step(MOVING, state)
    chex.assert_trees_all_equal(jax.device_get(state.reference), before)
    state, second = one_step(MOVING, state, 1)
    after, reference = jax.device_get((state.params, state.reference))
    expected = jax.tree.map(lambda new, old: 0.75 * new + 0.25 * old, after, before)
    chex.assert_trees_all_close(reference, expected, atol=1e-6)
    _, third = one_step(MOVING, state, 2)
    fixed = start()
    for number in range(3):
        fixed, still = one_step(harness.GRPO, fixed, number)
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 0
    assert third["kl"] < 0.5 * still["kl"]


def test_a_moving_reference_policy_is_part_of_a_resumed_run(tmp_path):
    def train(name, stop_after=None):
        state = moving_state()
        with (
            RunLogger(tmp_path / name) as logger,
            StageCheckpoints(tmp_path / name / "checkpoints", CheckpointConfig(every=0), {}) as checkpoints,
        ):
            return run_stage(
                "grpo",
                harness.shapes(state),
                lambda: state,
                lambda state, number, draw: (*one_step(MOVING, state, number), ()),
                harness.batches(5),
                steps=5,
                checkpoints=checkpoints,
                logger=logger,
                max_nonfinite=2,
                should_stop=lambda done: done == stop_after,
            )

    expected = jax.device_get(train("unbroken"))
    with pytest.raises(Interrupted):
        train("broken", stop_after=3)
    actual = jax.device_get(train("broken"))
    chex.assert_trees_all_equal((actual.params, actual.reference), (expected.params, expected.reference))
    logs = [[row["kl"] for row in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in ("unbroken", "broken")]
    assert logs[0] == logs[1]


def test_the_weight_of_the_divergence_may_change():
    """At a factor of 0 a step is one without the divergence, at 1/2 one with half the weight."""
    loss, schedule = harness.GRPO.loss, ((0, 0.0), (2, 1.0))
    changing = replace(harness.GRPO, loss=replace(loss, beta=2.0, beta_schedule=schedule))
    state, metrics = one_step(changing, start())
    without, _ = one_step(replace(harness.GRPO, loss=replace(loss, beta=0.0)), start())
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(without.params), atol=1e-7)
    assert metrics["beta"] == 0
    state, metrics = one_step(changing, state, 1)
    half, _ = one_step(replace(harness.GRPO, loss=replace(loss, beta=1.0)), without, 1)
    assert metrics["beta"] == 1
    chex.assert_trees_all_close(jax.device_get(state.params), jax.device_get(half.params), atol=1e-6)


def test_a_run_whose_reward_teaches_nothing_does_all_the_rest():
    off = replace(harness.GRPO, advantage="none", loss=LossConfig(beta=0.0))
    before = jax.device_get(start().params)
    state, metrics = one_step(off, start())
    chex.assert_trees_all_equal(jax.device_get(state.params), before)
    assert metrics["grad_norm"] == 0 and metrics["num_tokens"] > 0 and metrics["reward_std"] > 0
    assert metrics["frac_reward_zero_std"] < 1
