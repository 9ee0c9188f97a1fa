"""The training loop that all stages share: batches in, steps, logs, checkpoints, validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grain

from mecap_jax.interruption import Interrupted
from mecap_jax.throughput import throughput
from mecap_jax.train_state import TrainState
from mecap_jax.training.checkpointing import StageCheckpoints
from mecap_jax.training.logging import RunLogger
from mecap_jax.training.stopping import steps_under_way


class NonFiniteError(RuntimeError):
    """Several steps in a row had a gradient that is not finite."""


# Gives one batch more.
NextBatch = Callable[[], Any]
# (state, batch, draw) -> (state, metrics, sampled groups). A step that needs more than its batch draws the rest.
Step = Callable[[TrainState, Any, NextBatch], tuple[TrainState, Mapping[str, float], Iterable[Mapping[str, Any]]]]


def ignore(step: int, metrics: Mapping[str, float]) -> None:
    """Watches nothing."""


def run_stage(
    name: str,
    abstract: TrainState,
    initial: Callable[[], TrainState],
    step_function: Step,
    batches: grain.IterDataset,
    *,
    steps: int,
    checkpoints: StageCheckpoints,
    logger: RunLogger,
    max_nonfinite: int,
    updates_per_step: int = 1,
    peak: float = 0.0,
    validate: Callable[[TrainState, int], Mapping[str, float]] | None = None,
    validate_every: int = 0,
    should_stop: Callable[[int], bool] = lambda step: False,
    watch: Callable[[int, Mapping[str, float]], None] = ignore,
) -> TrainState:
    """Runs a stage from its newest checkpoint, or from `initial()`, to its last step.

    Args:
      abstract: shapes, dtypes and shardings of the state, which a checkpoint is restored into.
      initial: makes the state before the first step; not called where there is a checkpoint, so that memory holds one
        state and never two.
      batches: what the steps take one after the other; a checkpoint says how far they are.
      peak: FLOP/s of all devices; 0 where it is not known, and no utilisation logged.
      updates_per_step: how often a step updates the state; it counts as skipped where all its updates were.
      validate: called every `validate_every` steps and after the last one; its metrics are logged.
      should_stop: asked after every step; the state is saved before the loop ends.
      watch: given every step's metrics once they are logged; what it raises ends the run.

    Raises:
      Interrupted: `should_stop` said so; the state is saved.
      NonFiniteError: `max_nonfinite` steps in a row were skipped.
    """
    iterator = iter(batches)
    draw = _Draws(iterator)
    start = checkpoints.latest_step or 0
    if start:
        state = checkpoints.restore(abstract, iterator)
        logger.say(f"{name}: resumed after step {start} of {steps}")
    else:
        state = initial()
    logger.rewind(name, start)
    with (
        logger.progress(name, steps, start) as progress,
        steps_under_way() as begin_to_wait,
        logger.trace(name) as trace,
    ):
        for step in range(start + 1, steps + 1):
            began = time.perf_counter()
            with trace.step(step):
                state, metrics, groups = step_function(state, draw(), draw)
            timing = {"timing_s/data": draw.waited(), "timing_s/step": time.perf_counter() - began}
            metrics = {**metrics, **timing}
            metrics |= throughput(metrics, peak)
            skipped = int(state.skipped) // updates_per_step
            metrics["skipped_steps_in_a_row"] = float(skipped)
            if validate is not None and (step == steps or (validate_every and step % validate_every == 0)):
                metrics |= validate(state, step)
            logger.metrics(name, step, metrics)
            logger.completions(name, step, groups)
            progress(step, metrics)
            if skipped >= max_nonfinite:
                raise NonFiniteError(
                    f"{name}: the gradient was not finite in {skipped} steps in a row, the last one step {step} "
                    f"(config key 'max_nonfinite_steps'); the checkpoint of step {checkpoints.latest_step} is kept"
                )
            watch(step, metrics)
            if should_stop(step):
                checkpoints.save(step, state, iterator)
                raise Interrupted(f"{name}: stopped after step {step} of {steps}; the same command resumes")
            if step < steps:
                checkpoints.maybe_save(step, state, iterator)
            begin_to_wait()
        if start < steps:
            checkpoints.save(steps, state, iterator)
    return state


class _Draws:
    """Gives one batch more at each call, and knows how long it was waited for."""

    def __init__(self, iterator: Any):
        self._iterator, self._seconds = iterator, 0.0

    def __call__(self) -> Any:
        began = time.perf_counter()
        batch = next(self._iterator)
        self._seconds += time.perf_counter() - began
        return batch

    def waited(self) -> float:
        """Seconds since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
