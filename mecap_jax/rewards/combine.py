"""The reward of a batch: weighted terms, computed beside the device, none of which can stop a run."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from mecap_jax.config import ConfigError, RewardConfig
from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.anchors import Anchors
from mecap_jax.rewards.base import Reward, Sample
from mecap_jax.rewards.emotion import DistinctivenessReward, EmotionReward, SemanticReward
from mecap_jax.rewards.lexical import CiderDReward, RougeLReward
from mecap_jax.rewards.validity import is_degenerate

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RewardBatch:
    """Rewards of n samples.

    Attributes:
      total: float64 [n], weighted sum of the terms that have a value; NaN where none has.
      terms: float64 [n] by name, unweighted; NaN where a term has no value. Degenerate samples earn nothing here
        either: what would raise their total is 0.
      degenerate: bool [n].
      failures: what went wrong, by the name of the term.
    """

    total: np.ndarray
    terms: Mapping[str, np.ndarray]
    degenerate: np.ndarray
    failures: Mapping[str, str]


class RewardFunction:
    """Runs all terms over a batch at once, each in a thread of its own.

    A term that raises, takes longer than the time-out or returns something else than one number or None a sample has
    no value for the batch; the failure is reported in the batch and counted, and a term's first one is logged. Values
    that are not finite are skipped like None.

    Attributes:
      weights: weight by term.
      failure_counts: failed batches by term.
    """

    def __init__(self, terms: Sequence[tuple[Reward, float]], timeout_s: float):
        """Raises ValueError: no terms, or two of one name."""
        names = [reward.name for reward, _ in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"reward terms need different names, at least one: got {names}")
        self._rewards = {reward.name: reward for reward, _ in terms}
        self._timeout_s = timeout_s
        self._hanging: dict[str, Future] = {}
        self._lock = threading.Lock()
        self.weights = {reward.name: float(weight) for reward, weight in terms}
        self.failure_counts: collections.Counter[str] = collections.Counter()

    def __call__(self, samples: Sequence[Sample]) -> RewardBatch:
        """Computes the rewards of `samples`."""
        samples = tuple(samples)
        deadline = time.monotonic() + self._timeout_s
        running = {name: self._start(name, samples) for name in self._rewards}
        degenerate = np.array([is_degenerate(s.completion, s.finished) is not None for s in samples], bool)
        total, valued = np.zeros(len(samples)), np.zeros(len(samples), bool)
        terms, failures = {}, {}
        for name, future in running.items():
            try:
                values, problem = self._collect(name, future, deadline, len(samples))
            except Exception as error:
                values, problem = np.full(len(samples), np.nan), str(error)
            if problem:
                failures[name] = problem
                self._report(name, problem)
            weight = self.weights[name]
            values = np.where(degenerate & (weight * values > 0), 0.0, values)
            has_value = ~np.isnan(values)
            total += np.where(has_value, weight * values, 0.0)
            valued |= has_value
            terms[name] = values
        return RewardBatch(np.where(valued, total, np.nan), terms, degenerate, failures)

    def submit(self, samples: Sequence[Sample]) -> Future[RewardBatch]:
        """Starts computing the rewards of `samples` and returns at once, so that the device can go on."""
        return run_in_daemon(lambda: self(samples), "rewards")

    def _start(self, name: str, samples: tuple[Sample, ...]) -> Future:
        earlier = self._hanging.get(name)
        if earlier is not None and not earlier.done():
            # One more thread a batch, for as long as the run lasts, would help nobody.
            future: Future = Future()
            future.set_exception(TimeoutError("an earlier batch that timed out is still running"))
            return future
        return run_in_daemon(lambda: self._rewards[name](samples), f"reward {name}")

    def _collect(self, name: str, future: Future, deadline: float, n: int) -> tuple[np.ndarray, str | None]:
        try:
            error = future.exception(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._hanging[name] = future
            raise TimeoutError(f"took longer than {self._timeout_s:g} s") from None
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        values = future.result()
        if len(values) != n:
            raise ValueError(f"returned {len(values)} values for {n} samples")
        array = np.array([np.nan if value is None else float(value) for value in values], np.float64)
        bad = [value for value in values if value is not None and not math.isfinite(value)]
        problem = f"{len(bad)} of {n} values are not finite, such as {bad[0]}" if bad else None
        return np.where(np.isfinite(array), array, np.nan), problem

    def _report(self, name: str, problem: str) -> None:
        with self._lock:
            self.failure_counts[name] += 1
            first = self.failure_counts[name] == 1
        if first:
            _log.warning("reward term %r failed (logged once, counted from now on): %s", name, problem)


def run_in_daemon(function: Callable, name: str) -> Future:
    """Runs `function` in a daemon thread: a pool's threads would keep the interpreter from exiting while one hangs."""
    future: Future = Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


# --- from the configuration ---------------------------------------------------------------------------------------


def build_reward(
    config: RewardConfig, encoder: SentenceEncoder, anchors: Anchors, train_references: Sequence[Sequence[str]]
) -> RewardFunction:
    """Returns the reward that `config` describes; terms of weight 0 are left out.

    Args:
      config: weights, form, custom terms and time-out.
      encoder: the sentence encoder.
      anchors: emotion anchors, built with that encoder.
      train_references: the references of each training clip: CIDEr-D's document frequencies.

    Raises:
      AnchorsError: the anchors were built with another encoder.
      ConfigError: a custom term that cannot be loaded, or no term at all.
    """
    built_in = (
        (config.emotion, lambda: EmotionReward(encoder, anchors, config.form)),
        (config.semantic, lambda: SemanticReward(encoder)),
        (config.rouge_l, RougeLReward),
        (config.cider_d, lambda: CiderDReward(train_references)),
        (config.distinctiveness, lambda: DistinctivenessReward(encoder, anchors)),
    )
    terms = [(make(), weight) for weight, make in built_in if weight]
    terms += [load_custom(spec) for spec in config.custom]
    try:
        return RewardFunction(terms, config.timeout_s)
    except ValueError as error:
        raise ConfigError(f"config key 'grpo.reward': {error}") from error


@dataclasses.dataclass(frozen=True)
class CustomReward:
    """A function over samples, under its own name."""

    name: str
    function: Callable[[Sequence[Sample]], Sequence[float | None]]

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return self.function(samples)


def load_custom(spec: str) -> tuple[CustomReward, float]:
    """Loads `path/to/file.py:function=weight`; the function maps samples to one float or None each.

    Raises:
      ConfigError: names the spec and what is wrong with it.
    """

    def problem(what: str) -> ConfigError:
        return ConfigError(f"config key 'grpo.reward.custom': {spec!r}: {what}")

    target, equals, weight = spec.rpartition("=")
    path, colon, name = target.rpartition(":")
    if not (equals and colon and path and name.isidentifier()):
        raise problem("expected path/to/file.py:function=weight")
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise problem(f"the weight {weight!r} is no finite number")
    if not Path(path).is_file():
        raise problem(f"no such file: {path}")
    function = getattr(_import_file(Path(path), problem), name, None)
    if not callable(function):
        raise problem(f"{path} defines no function {name!r}")
    return CustomReward(name, function), value


def _import_file(path: Path, problem: Callable[[str], ConfigError]):
    name = f"mecap_jax_custom_reward_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None:
        raise problem(f"{path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise problem(f"importing {path} raised {type(error).__name__}: {error}") from error
    return module
