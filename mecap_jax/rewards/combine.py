"""The reward of a batch: weighted terms, computed beside the device; one that fails is named and harms no other."""

from __future__ import annotations

import dataclasses
import logging
import reprlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, SupportsFloat

import numpy as np

from mecap_jax.config import ConfigError, RewardConfig
from mecap_jax.models.sentence_encoder import SentenceEncoder
from mecap_jax.rewards.anchors import Anchors
from mecap_jax.rewards.base import Reward, Sample
from mecap_jax.rewards.custom import load_custom
from mecap_jax.rewards.emotion import DistinctivenessReward, EmotionReward, SemanticReward
from mecap_jax.rewards.lexical import CiderDReward, RougeLReward
from mecap_jax.rewards.validity import is_degenerate

_log = logging.getLogger(__name__)

# Beyond it a value, by itself or with its weight, drowns all other terms in float32, and soon its square overflows.
MAX_MAGNITUDE = 1e6


@dataclasses.dataclass(frozen=True)
class RewardBatch:
    """Rewards of n samples.

    Attributes:
      total: float64 [n], weighted sum of the terms that have a value; NaN where none has.
      terms: float64 [n] by name, unweighted; NaN where a term has no value. Degenerate samples earn nothing here
        either: what would raise their total is 0.
      degenerate: n reasons why a sample earns nothing (see `is_degenerate`), None for proper text.
      failed: bool [n] by name, samples for which a term failed instead of having nothing to say.
      failures: what went wrong, by the name of the term.
    """

    total: np.ndarray
    terms: Mapping[str, np.ndarray]
    degenerate: tuple[str | None, ...]
    failed: Mapping[str, np.ndarray]
    failures: Mapping[str, str]


class RewardFunction:
    """Runs all terms over a batch at once, each in a thread of its own.

    A term that raises, takes longer than the time-out or returns something else than one number or None a sample fails
    for the whole batch; one that returns a number that is not finite or beyond `MAX_MAGNITUDE` fails for that sample.
    Failures are part of the batch, and a term's first one is logged.

    Attributes:
      weights: weight by term.
      reasons: the newest failure of each term that ever failed.
    """

    def __init__(self, terms: Sequence[tuple[Reward, float]], timeout_s: float):
        """Raises ValueError: no terms, or two of one name."""
        names = [reward.name for reward, _ in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"reward terms need different names, at least one: got {names}")
        self._terms, self._timeout_s = tuple(terms), timeout_s
        self._hanging: dict[str, Future] = {}
        self._lock = threading.Lock()
        self.weights = {reward.name: float(weight) for reward, weight in terms}
        self.reasons: dict[str, str] = {}

    def with_timeout(self, timeout_s: float) -> RewardFunction:
        """The same terms for another purpose: a call that hangs there does not count as hanging here."""
        return RewardFunction(self._terms, timeout_s)

    def __call__(self, samples: Sequence[Sample]) -> RewardBatch:
        """Computes the rewards of `samples`."""
        samples = tuple(samples)
        deadline = time.monotonic() + self._timeout_s
        running = [self._start(reward, samples) for reward, _ in self._terms]
        reasons = tuple(is_degenerate(sample.completion, sample.finished) for sample in samples)
        degenerate = np.array([reason is not None for reason in reasons], bool)
        total, valued = np.zeros(len(samples)), np.zeros(len(samples), bool)
        terms, failed, failures = {}, {}, {}
        for (name, weight), future in zip(self.weights.items(), running):
            try:
                values, failed[name] = _checked(self._collect(name, future, deadline), len(samples), weight)
                problem = _describe_refused(values[failed[name]], weight)
            except Exception as error:
                values, failed[name] = np.full(len(samples), np.nan), np.ones(len(samples), bool)
                problem = str(error)
            if problem:
                failures[name] = problem
                self._report(name, problem)
            values = np.where(failed[name], np.nan, values)
            values = np.where(degenerate & (weight * values > 0), 0.0, values)
            has_value = ~np.isnan(values)
            total += np.where(has_value, weight * values, 0.0)
            valued |= has_value
            terms[name] = values
        return RewardBatch(np.where(valued, total, np.nan), terms, reasons, failed, failures)

    def submit(self, samples: Sequence[Sample]) -> Future[RewardBatch]:
        """Starts computing the rewards of `samples` and returns at once, so that the device can go on."""
        return run_in_daemon(lambda: self(samples), "rewards")

    def _start(self, reward: Reward, samples: tuple[Sample, ...]) -> Future:
        earlier, future = self._hanging.get(reward.name), Future()
        if not samples:  # of which a term may not think
            future.set_result([])
            return future
        if earlier is not None and not earlier.done():
            # One more thread a batch, for as long as the run lasts, would help nobody.
            future.set_exception(TimeoutError("an earlier batch that timed out is still running"))
            return future
        return run_in_daemon(lambda: reward(samples), f"reward {reward.name}")

    def _collect(self, name: str, future: Future, deadline: float) -> Any:
        try:
            error = future.exception(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._hanging[name] = future
            raise TimeoutError(f"took longer than {self._timeout_s:g} s") from None
        if error is not None:
            message = " ".join(str(error).split())
            raise RuntimeError(f"{type(error).__name__}: {message[:300]}") from error
        return future.result()

    def _report(self, name: str, problem: str) -> None:
        with self._lock:
            first = name not in self.reasons
            self.reasons[name] = problem
        if first:
            _log.warning("reward term %r failed (logged once, counted in the metrics): %s", name, problem)


def _checked(values: Any, n: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """A term's answer as float64 [n], NaN for None, and bool [n], which numbers cannot be used.

    Truth values count as 0 and 1.

    Raises:
      TypeError, ValueError: it is no list (or array) of one number or None a sample.
    """
    if hasattr(values, "__array__"):
        values = np.asarray(values).tolist()
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"returned {reprlib.repr(values)}, expected a list of one number or None a sample")
    if len(values) != n:
        raise ValueError(f"returned {len(values)} values for {n} samples")
    for value in values:
        if value is not None and not isinstance(value, SupportsFloat):
            raise TypeError(f"returned {reprlib.repr(value)} for a sample, expected a number or None")
    array = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    usable = np.abs(array) <= MAX_MAGNITUDE / max(1.0, abs(weight))
    return array, ~usable & np.array([value is not None for value in values], bool)


def _describe_refused(values: np.ndarray, weight: float) -> str | None:
    if not len(values):
        return None
    bound = f"not finite or, with the weight {weight:g}, beyond {MAX_MAGNITUDE:g}"
    return f"numbers that cannot be used ({bound}) for {len(values)} samples, such as {values[0]:g}"


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
      train_references: the references of each training clip: document frequencies of CIDEr-D, and what distinctive
        captions differ from.

    Raises:
      AnchorsError: the anchors were built with another encoder.
      ConfigError: a custom term that cannot be loaded, or no term at all.
    """
    built_in = (
        (config.emotion, lambda: EmotionReward(encoder, anchors, config.form)),
        (config.semantic, lambda: SemanticReward(encoder)),
        (config.rouge_l, RougeLReward),
        (config.cider_d, lambda: CiderDReward(train_references)),
        (config.distinctiveness, lambda: DistinctivenessReward(encoder, anchors, train_references)),
    )
    terms = [(make(), weight) for weight, make in built_in if weight]
    terms += [load_custom(spec) for spec in config.custom]
    try:
        return RewardFunction(terms, config.timeout_s)
    except ValueError as error:
        raise ConfigError(f"config key 'grpo.reward': {error}") from error
