"""The stages of a run: each joins data, learner, loop, checkpoints and logs."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from mecap_jax.config import ConfigError, GrpoConfig, SftConfig
from mecap_jax.data.pipeline import ClipBatch
from mecap_jax.evaluation.decoding import greedy_captions, spread_evaluation
from mecap_jax.experiment.weights import RunModel, describe
from mecap_jax.experiment.workbench import Workbench
from mecap_jax.generation.weights import sampling_params
from mecap_jax.models.parameters import merge_params
from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.combine import RewardFunction
from mecap_jax.rewards.watch import RewardWatch
from mecap_jax.rl.learner import GrpoLearner, mean
from mecap_jax.rl.rollout import MicroBatch, RolloutEngine
from mecap_jax.sharding import Division, divide, local_shards, put_batch, shard_count
from mecap_jax.throughput import peak_flops
from mecap_jax.train_state import (
    TrainState,
    abstract_state,
    init_state,
    last_learning_rate,
    learning_rate_schedule,
    make_optimizer,
)
from mecap_jax.training.checkpointing import StageCheckpoints
from mecap_jax.training.loop import NextBatch, Step, ignore, run_stage
from mecap_jax.training.sft import SftBatch, SftLearner, token_nll

# Prompts of the n-th further batch of a step are numbered from n << this, whatever the mesh is.
_DRAWN_BITS = 20
# Whether to stop after the step of this number.
Stop = Callable[[int], bool]
# Makes the parameters that a stage starts from: the part that trains, fresh arrays at each call.
Start = Callable[[], Any]


def train_sft(bench: Workbench, name: str, config: SftConfig, model: RunModel, start: Start, should_stop: Stop) -> None:
    """Runs a supervised stage; what it learns is in its last checkpoint. A finished one is left alone."""
    with _checkpoints(bench, name) as checkpoints:
        if not _finished(name, checkpoints, config.steps):
            _sft(bench, name, config, model, start, should_stop, checkpoints)


def _sft(
    bench: Workbench,
    name: str,
    config: SftConfig,
    model: RunModel,
    start: Start,
    should_stop: Stop,
    checkpoints: StageCheckpoints,
) -> None:
    dataset, mesh, seed = bench.dataset, bench.mesh, _stage_seed(bench.config.seed, name)
    graphdef, frozen = model.graphdef, model.frozen
    optimizer = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(model.trainable, optimizer, mesh)
    learner = SftLearner(graphdef, abstract, frozen, optimizer, config, seed)
    division = divide(config.batch_clips, mesh, config.micro_clips)
    places = division.places(local_shards(mesh))
    _tell_filled(bench, name, division)

    def step(state: TrainState, batch: ClipBatch, draw: NextBatch):
        began = time.perf_counter()
        parts = [
            SftBatch(*put_batch((part.prompt, part.targets, np.int32(numbers)), mesh))
            for part, numbers in zip(batch.split(division.parts), places)
        ]
        transfer = time.perf_counter() - began
        state, metrics = learner.step(state, parts)
        return state, {**metrics, "timing_s/transfer": transfer}, ()

    validation = dataset.teaching("validation")

    def validate(state: TrainState, step: int) -> dict[str, float]:
        total = tokens = 0.0
        params = merge_params(state.params, frozen)
        for batch in spread_evaluation(
            dataset, validation, mesh, config.micro_clips, config.references, config.max_target_tokens
        ):
            nll, count = jax.device_get(token_nll(graphdef, params, *put_batch((batch.prompt, batch.targets), mesh)))
            total, tokens = total + float(nll), tokens + float(count)
        return {"validation/token_nll": total / tokens if tokens else float("nan")}

    numbers = dataset.teaching("train", config.clips)
    _tell_of_cut_references(bench, name, numbers, config.max_target_tokens)
    schedule = learning_rate_schedule(config.optimizer, config.steps)
    step = _with_progress(step, schedule, len(numbers) // config.batch_clips)
    batches = dataset.training_batches(
        numbers,
        batch_size=config.batch_clips,
        steps=config.steps,
        seed=seed,
        references=config.references,
        max_target_tokens=config.max_target_tokens,
        exercises=config.exercises,
        places=places.ravel(),
    )

    def initial() -> TrainState:
        return init_state(start(), optimizer, mesh)

    validate = validate if validation else None
    _run(bench, name, abstract, initial, step, batches, config, validate, should_stop, checkpoints)


def train_grpo(
    bench: Workbench, name: str, config: GrpoConfig, model: RunModel, start: Start, should_stop: Stop
) -> None:
    """Runs a reinforcement stage; what it starts from stays as the reference policy where `loss.beta` asks for one.

    What it learns is in its last checkpoint. A finished stage is left alone.
    """
    with _checkpoints(bench, name) as checkpoints:
        if not _finished(name, checkpoints, config.steps):
            _grpo(bench, name, config, model, start, should_stop, checkpoints)


def _grpo(
    bench: Workbench,
    name: str,
    config: GrpoConfig,
    model: RunModel,
    start: Start,
    should_stop: Stop,
    checkpoints: StageCheckpoints,
) -> None:
    # One seed for all stages of this kind: rows of comparison see the same clips in the same order.
    dataset, mesh, seed = bench.dataset, bench.mesh, _stage_seed(bench.config.seed, "grpo")
    graphdef, frozen = model.graphdef, model.frozen
    reward = bench.task.rewards(config.reward, bench.judges)
    validation_reward = reward.with_timeout(config.reward.validation_timeout_s)
    moving = bool(config.reference_sync_steps)  # then it is part of the state
    reference = None
    if config.loss.beta and not moving:  # in the dtype that it is used in, for as long as the stage lasts
        reference = sampling_params(start(), bench.config.model.dtype, gather=False)
    read = bench.task.read
    engine = RolloutEngine(
        graphdef, reference, frozen, config, bench.tokenizer, read, reward, mesh, seed, bench.sampling
    )
    optimizer = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
    abstract = abstract_state(model.trainable, optimizer, mesh)
    abstract = abstract._replace(reference=abstract.params) if moving else abstract
    learner = GrpoLearner(graphdef, abstract, frozen, engine, optimizer, config, mesh, seed)
    # Not more at a time than a mini-batch has, where that is possible: what is part of two is computed twice.
    each = -(-config.prompts // shard_count(mesh))
    division = divide(config.prompts, mesh, min(config.micro_prompts or each, max(1, each // config.minibatches)))
    places = division.places(local_shards(mesh))
    _tell_filled(bench, name, division)
    references = config.loss.references if config.loss.reference_likelihood else 0

    def micro_batches(batch: ClipBatch, drawn: int) -> list[MicroBatch]:
        return [
            MicroBatch(
                prompt=put_batch(part.prompt, mesh),
                rows=put_batch(np.int32(numbers + (drawn << _DRAWN_BITS)), mesh),
                valid=put_batch(part.valid, mesh),
                asked=part.asked,
                references=put_batch(part.targets, mesh) if references else None,
            )
            for part, numbers in zip(batch.split(division.parts), places)
        ]

    def step(state: TrainState, batch: ClipBatch, draw: NextBatch):
        transfers = []

        def transferred(batch: ClipBatch, drawn: int) -> list[MicroBatch]:
            began = time.perf_counter()
            made = micro_batches(batch, drawn)
            transfers.append(time.perf_counter() - began)
            return made

        state, result = learner.step(state, transferred(batch, 0), lambda drawn: transferred(draw(), drawn))
        return state, {**result.metrics, "timing_s/transfer": sum(transfers)}, result.groups

    validation = dataset.clips("validation")

    def validate(state: TrainState, step: int) -> dict[str, float]:
        params = merge_params(state.params, frozen)
        return validation_rewards(bench, graphdef, params, validation_reward, validation, config.max_new_tokens)

    numbers = dataset.clips("train", config.clips)
    if references:
        _tell_of_cut_references(bench, name, numbers, config.max_new_tokens)
    schedule = learning_rate_schedule(config.optimizer, config.steps * config.updates_per_step)
    step = _with_progress(step, schedule, len(numbers) // config.prompts * config.updates_per_step)
    batches = dataset.training_batches(
        numbers,
        batch_size=config.prompts,
        steps=config.steps * config.draws,
        seed=seed,
        references=references,
        augmented=config.augment,
        max_target_tokens=config.max_new_tokens,
        places=places.ravel(),
    )
    watch = RewardWatch(reward, config.max_reward_failures)

    def initial() -> TrainState:
        # The state is consumed by the first step: where the reference policy stays as exact, it starts as a copy.
        whole = [x.dtype for x in jax.tree.leaves(reference)] == [x.dtype for x in jax.tree.leaves(abstract.params)]
        params = jax.tree.map(lambda x: x.copy(), reference) if whole else start()
        state = init_state(params, optimizer, mesh)
        return state._replace(reference=start()) if moving else state

    validate = validate if validation else None
    _run(
        bench,
        name,
        abstract,
        initial,
        step,
        batches,
        config,
        validate,
        should_stop,
        checkpoints,
        watch,
        config.updates_per_step,
    )


def validation_rewards(
    bench: Workbench,
    graphdef: nnx.GraphDef,
    params: Any,
    reward: RewardFunction,
    numbers: list[int],
    max_new_tokens: int,
) -> dict[str, float]:
    """Mean rewards of greedy answers, and for how many of them a term failed."""
    captions = greedy_captions(
        graphdef,
        bench.sampling(params),
        bench.dataset,
        numbers,
        bench.tokenizer,
        bench.mesh,
        batch_clips=bench.config.evaluation.batch_clips,
        max_new_tokens=max_new_tokens,
    )
    samples = []
    for group, (number, caption) in enumerate(captions.items()):
        asked, fields = bench.dataset.ask(number), bench.task.read(caption.text)
        samples.append(Sample.of(asked, caption.text, caption.finished, group, fields, caption.tokens))
    judged = reward(samples)
    metrics = {"validation/reward": mean(judged.total)}
    for name, values in judged.terms.items():
        metrics[f"validation/rewards/{name}"] = mean(values)
        metrics[f"validation/rewards/{name}/failures"] = float(judged.failed[name].sum())
    return metrics


def _tell_of_cut_references(bench: Workbench, name: str, numbers: Sequence[int], max_tokens: int) -> None:
    """Says how many references are too long to be learnt to their end."""
    references = [text for number in numbers for text in bench.dataset.targets(number)]
    cut = sum(len(bench.tokenizer.encode(text)) >= max_tokens for text in references)
    if cut:
        bench.logger.say(
            f"{name}: {cut} of {len(references)} references are cut after {max_tokens} tokens and teach no ending"
        )


def _with_progress(step: Step, schedule: optax.Schedule, updates_per_epoch: int) -> Step:
    """The same step, whose metrics also say how far training is and at which rate."""

    def with_progress(state: TrainState, batch: ClipBatch, draw: NextBatch):
        state, metrics, groups = step(state, batch, draw)
        rate = last_learning_rate(schedule, state)
        return state, {**metrics, "learning_rate": rate, "epoch": int(state.step) / updates_per_epoch}, groups

    return with_progress


def _checkpoints(bench: Workbench, name: str) -> StageCheckpoints:
    directory = bench.workdir / "checkpoints" / name
    return StageCheckpoints(directory, bench.config.checkpoint, describe(bench.config), bench.logger.say)


def _finished(name: str, checkpoints: StageCheckpoints, steps: int) -> bool:
    done = checkpoints.latest_step or 0
    if done > steps:
        raise ConfigError(f"{name}: {done} steps were taken, {steps} asked; steps can only become more")
    return done == steps


def _run(
    bench: Workbench, name, abstract, initial, step, batches, config, validate, should_stop, checkpoints,
    watch=ignore, updates=1,
) -> None:  # fmt: skip
    run_stage(
        name,
        abstract,
        initial,
        step,
        batches,
        steps=config.steps,
        checkpoints=checkpoints,
        logger=bench.logger,
        max_nonfinite=bench.config.max_nonfinite_steps,
        updates_per_step=updates,
        peak=peak_flops(bench.mesh, bench.config.model.dtype),
        validate=validate,
        validate_every=config.validate_every,
        should_stop=should_stop,
        watch=watch,
    )


def _stage_seed(seed: int, name: str) -> int:
    """A seed by name: what goes on from another stage must not repeat its shuffles."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31


def _tell_filled(bench: Workbench, name: str, division: Division) -> None:
    if division.filled:
        sharing = bench.mesh.shape["tensor"]
        holders = f"{division.shards} {'devices' if sharing == 1 else f'groups of {sharing} devices'}"
        bench.logger.say(
            f"{name}: {division.rows} rows over {holders}, {division.parts} x {division.size} each: "
            f"{division.filled:.0%} of the work is filled up with rows that do not count"
        )
