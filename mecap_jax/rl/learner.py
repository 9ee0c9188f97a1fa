"""One GRPO step: rollout, reference, rewards, advantages, update."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mecap_jax.batch import Array
from mecap_jax.config import GrpoConfig, schedule_factor
from mecap_jax.rl.advantages import group_advantages, whitened
from mecap_jax.rl.objective import Denominators, Sums, TrainExample, denominators, grpo_loss
from mecap_jax.rl.rollout import JudgedGroups, MicroBatch, Rollout, RolloutEngine, collect_rewards
from mecap_jax.sharding import all_items, all_rows, local_rows, put_batch
from mecap_jax.throughput import Counts, ModelFlops, add_up, count, work_metrics
from mecap_jax.train_state import TrainState, Updater

# A mini-batch: micro-batches, and their prompts' numbers within the step.
MiniBatch = list[tuple[TrainExample, Array]]
_NO_MORE = np.iinfo(np.int32).max  # above every prompt's number


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step leaves behind besides the new state.

    Attributes:
      metrics: numbers for the log, named as in TRL; `timing_s/*` are seconds. `rewards/NAME/failures` counts the
        samples for which a term failed, `rewards/NAME/missing` is the share of those without a value for any reason.
      groups: all processes' sampled groups with every reward term and advantage, for `completions.jsonl`.
    """

    metrics: dict[str, float]
    groups: list[dict[str, Any]]


class GrpoLearner:
    """Runs steps; holds no state that a checkpoint would miss."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        state: TrainState,
        frozen: Any,
        engine: RolloutEngine,
        optimizer: optax.GradientTransformation,
        config: GrpoConfig,
        mesh: Mesh,
        seed: int,
    ):
        """`state` shows shapes and shardings; it is not consumed. `frozen` holds the parameters that do not train."""
        self._engine, self._config, self._mesh = engine, config, mesh
        self._flops = ModelFlops(graphdef, state.params, frozen)
        loss = functools.partial(grpo_loss, config=config)
        self._optimise = Updater(graphdef, state._replace(reference=None), frozen, optimizer, loss, seed)

    def step(
        self,
        state: TrainState,
        micro_batches: list[MicroBatch],
        draw: Callable[[int], list[MicroBatch]] | None = None,
    ) -> tuple[TrainState, StepResult]:
        """Samples, judges and learns from `micro_batches`; the given state is consumed.

        With `config.draws` above 1 it goes on with what `draw` gives (called with how many batches there were before),
        until there are enough mixed groups; `draw` is the same on every process.
        """
        step = int(state.step)
        sampled, draws = self._sample(state, micro_batches, step), 1
        while draws < self._config.draws and np.sum(all_rows(np.concatenate(sampled.mixed))) < self._config.prompts:
            sampled, draws = sampled + self._sample(state, draw(draws), step), draws + 1
        rollouts, judged, advantages, zero_variance, timing = sampled
        numbers = [np.asarray(local_rows(rollout.micro.rows)) for rollout in rollouts]
        kept, drawing, minibatches = sampled.mixed, {}, self._config.minibatches
        bounds = np.arange(1, minibatches) * self._config.prompts // minibatches
        if self._config.draws > 1:
            chosen, drawing = self._choose(sampled, numbers)
            drawing["draws"] = float(draws)
            kept = [mixed & np.isin(n, chosen) for mixed, n in zip(kept, numbers)]
            bounds = np.append(chosen, _NO_MORE)[np.arange(1, minibatches) * len(chosen) // minibatches]
        apart = [self._apart(groups) for groups in judged]
        counted = kept if self._config.draws > 1 else [np.ones_like(part) for part in kept]
        if self._config.advantage == "per_reward":
            own = [np.isfinite(groups.total) & ~out for groups, out in zip(judged, apart)]
            advantages = _whitened(advantages, [part & rows[:, None] for part, rows in zip(own, counted)])
        if self._config.advantage != "none":
            penalty = np.float32(self._config.degenerate_penalty)
            advantages = [np.where(out, -penalty, values) for out, values in zip(apart, advantages)]
        examples = [
            TrainExample(
                rollout.micro.prompt,
                rollout.micro.valid,
                rollout.completions,
                rollout.generation.logprobs,
                rollout.reference_logprobs,
                put_batch(advantage, self._mesh),
                rollout.micro.references,
            )
            for rollout, advantage in zip(rollouts, advantages)
        ]
        updating = time.perf_counter()
        number = step // self._config.updates_per_step + 1
        micro_batches = [(example, rollout.micro.rows) for example, rollout in zip(examples, rollouts)]
        parts = self._mini_batches(micro_batches, numbers, counted, bounds)
        # Before the update, which the host would wait for.
        work = (
            [rollout.encoded for rollout in rollouts if rollout.encoded is not None],
            [_sampled_work(rollout) for rollout in rollouts],
            [_learnt_work(example) for part in parts for example, _ in part],
        )
        state, sums, totals, norm = self._update(state, parts, len(examples) > 1)
        state = self._with_reference(state, number)
        jax.block_until_ready(norm)
        timing["update"] = time.perf_counter() - updating
        seen = _observe(rollouts, judged, np.concatenate(zero_variance))
        metrics = {
            **_loss_metrics(sums, totals, norm, self._config.updates),
            **({"beta": float(self._beta(number - 1))} if self._config.loss.beta_schedule else {}),
            **(_completion_metrics(seen) | _reward_metrics(seen) if len(seen.rewards) else {}),
            **drawing,
            **self._work_metrics(*jax.device_get(work)),
            **{f"timing_s/{name}": seconds for name, seconds in timing.items()},
        }
        return state, StepResult(metrics, _describe_groups(rollouts, judged, advantages))

    def _sample(self, state: TrainState, micro_batches: list[MicroBatch], step: int) -> _Sampled:
        rollouts, timing = self._engine.run(state.params, micro_batches, step, state.reference)
        waiting = time.perf_counter()
        judged = [collect_rewards(rollout) for rollout in rollouts]
        timing["reward_wait"] = time.perf_counter() - waiting
        for name in self._engine.reward.weights:
            timing[f"rewards/{name}"] = sum(groups.seconds[name] for groups in judged)
        weights, judged = self._weighted(judged, step // self._config.updates_per_step)
        return _Sampled(rollouts, judged, *self._advantages(judged, weights), timing)

    def _work_metrics(self, encoded: list[Counts], sampled: list[Counts], learnt: list[Counts]) -> dict[str, float]:
        """What a step did: everything that was sampled is sampled and, with a reference policy, scored once."""
        work = add_up(sampled)
        update = self._config.updates * self._flops.gradient(add_up(learnt))
        passes = 2 if self._config.loss.beta else 1
        flops = passes * self._flops.forward(work) + update
        if encoded:
            flops += self._flops.encoding(add_up(encoded))
        return work_metrics(work, flops) | {"flops/update": update}

    def _weighted(self, judged: list[JudgedGroups], step: int) -> tuple[dict[str, float], list[JudgedGroups]]:
        """The weights of the terms, and the groups with their totals by them.

        Where weights follow the mean of a term, it is that of all that was sampled together, on all processes and in
        all micro-batches.
        """
        reward = self._engine.reward
        if not reward.followed:
            return reward.weights_at(step), judged
        every = all_rows({n: np.concatenate([groups.terms[n] for groups in judged]) for n in reward.followed})
        weights = reward.weights_at(step, every)
        totals = [reward.total(groups.terms, weights).astype(np.float32) for groups in judged]
        return weights, [dataclasses.replace(groups, total=total) for groups, total in zip(judged, totals)]

    def _choose(self, sampled: _Sampled, numbers: list[np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
        """The numbers of the groups that are learnt from, the first `prompts` mixed ones; and how many there were."""
        every, among = all_rows((np.concatenate(numbers), np.concatenate(sampled.mixed)))
        chosen = np.sort(every[among])[: self._config.prompts]
        return chosen, {"mixed_groups": float(among.sum()), "kept_groups": float(len(chosen))}

    def _advantages(
        self, judged: list[JudgedGroups], weights: Mapping[str, float]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        by_term = jnp.array(list(weights.values()), jnp.float32)
        advantages, zero_variance = [], []
        for groups in judged:
            apart = self._apart(groups)
            total, *terms = (np.where(apart, np.nan, x) for x in (groups.total, *(groups.terms[n] for n in weights)))
            values, flat = _jitted_advantages(total, np.stack(terms), by_term, method=self._config.advantage)
            advantages.append(np.asarray(values))
            zero_variance.append(np.asarray(flat))
        return advantages, zero_variance

    def _apart(self, groups: JudgedGroups) -> np.ndarray:
        """Which completions stay out of their group's statistics, because they are charged apart: bool [B_local, G]."""
        return np.not_equal(groups.degenerate, None) & (self._config.degenerate_penalty > 0)

    def _mini_batches(
        self, micro_batches: MiniBatch, numbers: list[np.ndarray], counted: list[np.ndarray], bounds: np.ndarray
    ) -> list[MiniBatch]:
        """Divides what counts of a step by the prompts' numbers, at `bounds`, however it was sampled.

        A micro-batch that holds prompts of two mini-batches is part of both, each with its own prompts only. `numbers`
        and `counted` are of this process's prompts, by micro-batch.
        """
        every, counts = (x.T for x in all_rows((np.stack(numbers, axis=1), np.stack(counted, axis=1))))
        parts = []
        for low, high in itertools.pairwise([0, *bounds, _NO_MORE]):
            inside = counts & (low <= every) & (every < high)
            part = []
            for i in np.flatnonzero(inside.any(axis=1)) if inside.any() else [0]:
                example, rows = micro_batches[i]
                if not inside[i].all():
                    mine = counted[i] & (low <= numbers[i]) & (numbers[i] < high)
                    example = _only(example, put_batch(mine, self._mesh))
                part.append((example, rows))
            parts.append(part)
        return parts

    def _update(self, state: TrainState, parts: list[MiniBatch], accumulate: bool):
        """Takes the optimiser steps; what is logged of them is summed over all, the gradient's norm their mean."""
        loss, beta = self._config.loss, self._beta(int(state.step) // self._config.updates_per_step)
        reference, state = state.reference, state._replace(reference=None)
        totals = [_add_up([_jitted_denominators(example, loss=loss) for example, _ in part]) for part in parts]
        shares, done, norms = [], [], []
        for part, whole in list(zip(parts, totals)) * self._config.updates:
            state, sums, norm = self._optimise(state, part, (whole, beta), accumulate)
            shares += sums
            done.append(whole)
            norms.append(norm)
        # The state counts updates: no two rollouts begin at the same count, so none repeats another's random numbers.
        return state._replace(reference=reference), _add_up(shares), _add_up(done), sum(norms) / len(norms)

    def _beta(self, step: int) -> np.float32:
        loss = self._config.loss
        return np.float32(loss.beta * schedule_factor(loss.beta_schedule, step))

    def _with_reference(self, state: TrainState, step: int) -> TrainState:
        """The state behind a step (counted from 1): the reference policy moves after the policy where it is time."""
        if state.reference is None or step % self._config.reference_sync_steps:
            return state
        return state._replace(reference=_mixed(state.params, state.reference, np.float32(self._config.reference_mix)))


class _Sampled(NamedTuple):
    """What became of a step's prompts, by micro-batch; this process's rows."""

    rollouts: list[Rollout]
    judged: list[JudgedGroups]
    advantages: list[np.ndarray]
    zero_variance: list[np.ndarray]
    timing: dict[str, float]

    def __add__(self, more: _Sampled) -> _Sampled:
        timing = {name: seconds + more.timing[name] for name, seconds in self.timing.items()}
        return _Sampled(*(mine + theirs for mine, theirs in zip(self[:-1], more[:-1])), timing)

    @property
    def mixed(self) -> list[np.ndarray]:
        """Which groups differ in their rewards."""
        return [rollout.valid & ~flat for rollout, flat in zip(self.rollouts, self.zero_variance)]


def _whitened(advantages: list[np.ndarray], counted: list[np.ndarray]) -> list[np.ndarray]:
    """GDPO's last step: mean and deviation are those of all advantages of the step that count, on all processes: of
    judged completions of the whole batch, or of the groups that dynamic sampling chose."""
    values, which = all_rows((np.concatenate(advantages), np.concatenate(counted)))
    if not which.any():
        return [np.zeros_like(advantage) for advantage in advantages]
    mean = float(values[which].mean())
    deviation = float(values[which].std(ddof=1)) if which.sum() > 1 else 1.0
    return [whitened(advantage, c, mean, deviation) for advantage, c in zip(advantages, counted)]


@functools.partial(jax.jit, donate_argnums=1)
def _mixed(params: Any, reference: Any, weight: Array) -> Any:
    """The mean of two trees, in float32, as the second one is kept."""

    def mix(new, old):
        return (weight * new.astype(jnp.float32) + (1 - weight) * old.astype(jnp.float32)).astype(old.dtype)

    return jax.tree.map(mix, params, reference)


@jax.jit
def _only(example: TrainExample, kept: Array) -> TrainExample:
    """The example without the groups that are not kept: no token of theirs, and none of their references, counts."""
    completions = example.completions._replace(mask=example.completions.mask & kept[:, None, None])
    references = example.references
    if references is not None:
        references = references._replace(mask=references.mask & kept[:, None, None])
    return example._replace(valid=example.valid & kept, completions=completions, references=references)


def _sampled_work(rollout: Rollout) -> Counts:
    return count(rollout.micro.prompt, rollout.micro.valid, (rollout.generation.mask(),))


def _learnt_work(example: TrainExample) -> Counts:
    references = () if example.references is None else (example.references.mask,)
    return count(example.prompt, example.valid, (example.completions.mask, *references))


_jitted_denominators = jax.jit(denominators, static_argnames="loss")
_add_up = jax.jit(lambda items: jax.tree.map(lambda *x: sum(x), *items))


def _advantage_values(total, terms, weights, *, method):
    return group_advantages(total, method, terms=terms, weights=weights)


_jitted_advantages = jax.jit(_advantage_values, static_argnames="method")


def _loss_metrics(sums: Sums, totals: Denominators, norm, passes: int) -> dict[str, float]:
    sums, totals, norm = jax.device_get((sums, totals, norm))
    tokens = max(float(totals.tokens), 1.0)
    metrics = {
        "policy_loss": float(sums.policy_loss) / max(float(totals.policy), 1.0),
        "kl": float(sums.kl) / tokens,
        "entropy": float(sums.entropy) / tokens,
        "clip_ratio/low_mean": float(sums.clipped_low) / tokens,
        "clip_ratio/high_mean": float(sums.clipped_high) / tokens,
        "clip_ratio/region_mean": float(sums.clipped_low + sums.clipped_high) / tokens,
        "sampling/sampling_logp_difference/mean": float(sums.logprob_difference) / tokens,
        "grad_norm": float(norm),
        "num_tokens": float(totals.tokens) / passes,
    }
    if totals.reference_tokens:
        metrics["reference_nll"] = float(sums.reference_nll) / float(totals.reference_tokens)
    return metrics


class Observations(NamedTuple):
    """What a step's groups look like; arrays over all valid prompts of all processes, [N, G] or [N]."""

    lengths: np.ndarray
    finished: np.ndarray
    rewards: np.ndarray
    terms: dict[str, np.ndarray]
    failed: dict[str, np.ndarray]
    degenerate: np.ndarray
    zero_variance: np.ndarray


def _observe(rollouts: list[Rollout], judged: list[JudgedGroups], zero_variance: np.ndarray) -> Observations:
    local = [
        (
            rollout.valid,
            rollout.lengths,
            rollout.finished,
            groups.total,
            groups.terms,
            groups.failed,
            np.not_equal(groups.degenerate, None),
        )
        for rollout, groups in zip(rollouts, judged)
    ]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *local)
    valid, *arrays = all_rows((*joined, zero_variance))
    return Observations(*jax.tree.map(lambda x: x[valid], arrays))


def _completion_metrics(seen: Observations) -> dict[str, float]:
    lengths, finished = seen.lengths, seen.finished
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - finished.mean()),
    }
    if finished.any():
        metrics["completions/mean_terminated_length"] = float(lengths[finished].mean())
    return metrics


def _reward_metrics(seen: Observations) -> dict[str, float]:
    metrics = {
        "reward": mean(seen.rewards),
        "reward_std": mean([_spread(group) for group in seen.rewards]),
        "frac_reward_zero_std": float(seen.zero_variance.mean()),
        "frac_degenerate": float(seen.degenerate.mean()),
        "frac_reward_missing": float(np.isnan(seen.rewards).mean()),
    }
    for name, term in seen.terms.items():
        metrics[f"rewards/{name}/mean"] = mean(term)
        metrics[f"rewards/{name}/std"] = _spread(term.ravel())
        metrics[f"rewards/{name}/missing"] = float(np.isnan(term).mean())
        metrics[f"rewards/{name}/failures"] = float(seen.failed[name].sum())
    return metrics


def mean(values) -> float:
    """The mean of what is there; NaN where nothing is."""
    values = np.asarray(values, np.float64)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _spread(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.std()) if len(values) else float("nan")


def _as_lists(replies: Mapping[str, tuple[str | None, ...]]) -> dict[str, list[str | None]]:
    return {name: list(said) for name, said in replies.items()}


def _describe_groups(
    rollouts: list[Rollout], judged: list[JudgedGroups], advantages: list[np.ndarray]
) -> list[dict[str, Any]]:
    """One record a valid prompt of all processes, by number; not-a-number becomes None, which JSON has."""

    def number(value) -> float | None:
        return round(float(value), 6) if np.isfinite(value) else None

    local = [
        (
            int(row),
            {
                "utterance_id": asked.record.id,
                "label": asked.record.label,
                "prompt": asked.prompt,
                "transcript": asked.transcript,
                "references": list(asked.targets),
                "completions": [
                    {
                        "text": text,
                        "finished": bool(rollout.finished[b, g]),
                        "degenerate": groups.degenerate[b, g],
                        "reward": number(groups.total[b, g]),
                        "rewards": {name: number(term[b, g]) for name, term in groups.terms.items()},
                        "advantage": number(advantage[b, g]),
                        **({"replies": said} if (said := _as_lists(rollout.replies[b][g])) else {}),
                    }
                    for g, text in enumerate(rollout.texts[b])
                ],
            },
        )
        for rollout, groups, advantage in zip(rollouts, judged, advantages)
        for b, (row, asked) in enumerate(zip(local_rows(rollout.micro.rows), rollout.micro.asked))
        if rollout.valid[b]
    ]
    return [group for _, group in sorted(all_items(local), key=lambda numbered: numbered[0])]
