"""The reward of a batch: weighted terms, computed beside the device; one that fails is named and harms no other."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import reprlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, NamedTuple, SupportsFloat

import numpy as np

from mecap_jax.config import ConfigError, RewardConfig, is_custom, schedule_factor
from mecap_jax.rewards.base import PolicyReward, Reward, Sample, described
from mecap_jax.rewards.custom import load_custom
from mecap_jax.text_files import printable

_log = logging.getLogger(__name__)

# Beyond it a value, by itself or with its weight, drowns all other terms in float32, and soon its square overflows.
MAX_MAGNITUDE = 1e6


class Term(NamedTuple):
    """A term and how it counts, as in `config.RewardSpec`; `gate` is the name of another term."""

    reward: Reward
    weight: float
    gate: str = ""
    gate_above: float = 0.0
    schedule: tuple[tuple[float, float], ...] = ()
    schedule_over: str = ""


@dataclasses.dataclass(frozen=True)
class RewardBatch:
    """Rewards of n samples.

    Attributes:
      total: float64 [n], the weighted terms that have a value, combined; NaN where none has.
      terms: float64 [n] by name, unweighted, behind their gates; NaN where a term has no value. Samples that are
        refused earn nothing here either: what would raise their total is 0.
      degenerate: n reasons why a sample is refused, None for proper text.
      failed: bool [n] by name, samples for which a term failed instead of having nothing to say.
      failures: what went wrong, by the name of the term.
      seconds: how long each term took, beside the others and the device; 0 for one that failed.
    """

    total: np.ndarray
    terms: Mapping[str, np.ndarray]
    degenerate: tuple[str | None, ...]
    failed: Mapping[str, np.ndarray]
    failures: Mapping[str, str]
    seconds: Mapping[str, float]


class RewardFunction:
    """Runs all terms over a batch at once, each in a thread of its own.

    A term that raises, takes longer than the time-out or returns something else than one number or None a sample fails
    for the whole batch; one that returns a number that is not finite or beyond `MAX_MAGNITUDE` fails for that sample.
    Failures are part of the batch, and a term's first one is logged.

    Attributes:
      weights: weight by term, at the last step of its schedule.
      followed: the terms whose means weights follow.
      reasons: the newest failure of each term that ever failed.
    """

    def __init__(
        self,
        terms: Sequence[Term | tuple[Reward, float]],
        timeout_s: float,
        refuse: Callable[[str, bool], str | None] | None = None,
        how: str = "sum",
    ):
        """Makes the function.

        Args:
          terms: at least one.
          timeout_s: how long a batch may take.
          refuse: says of a completion, and whether it ended by itself, why it earns nothing; None where it may.
          how: "sum" or "product" of the terms, each times its weight.

        Raises:
          ValueError: no terms, two of one name, a gate or what a schedule goes over is no term, or gates in a circle.
        """
        names = [reward.name for reward, *_ in terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"reward terms need different names, at least one: got {names}")
        self._terms = {name: Term(*term) for name, term in zip(names, terms)}
        self._order = _behind_gates({name: term.gate for name, term in self._terms.items()})
        self.followed = tuple(sorted({term.schedule_over for term in self._terms.values()} - {""}))
        if missing := set(self.followed) - set(names):
            raise ValueError(f"schedules over what is no term: {sorted(missing)}")
        self._timeout_s, self._refuse, self._how = timeout_s, refuse, how
        self._hanging: dict[str, Future] = {}
        self._lock = threading.Lock()
        self.weights = self.weights_at(None)
        self.reasons: dict[str, str] = {}

    @property
    def asking(self) -> tuple[PolicyReward, ...]:
        """The terms that want the policy asked before they judge."""
        return tuple(term.reward for term in self._terms.values() if getattr(term.reward, "needs_policy", False))

    def with_timeout(self, timeout_s: float) -> RewardFunction:
        """The same terms for another purpose: a call that hangs there does not count as hanging here."""
        return RewardFunction(tuple(self._terms.values()), timeout_s, self._refuse, self._how)

    def weights_at(self, step: int | None, terms: Mapping[str, np.ndarray] = MappingProxyType({})) -> dict[str, float]:
        """Weight by term at a step; None: behind the last one of every schedule.

        Args:
          terms: values of the `followed` terms; without them their schedules are at their end.
        """
        means = {name: _mean(terms[name]) if name in terms and step is not None else None for name in self.followed}
        return {
            name: float(term.weight) * schedule_factor(term.schedule, means.get(term.schedule_over, step))
            for name, term in self._terms.items()
        }

    def total(self, terms: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
        """What samples earn together with these values by term and these weights: `combine`."""
        return combine(terms, weights, self._how)

    def __call__(
        self, samples: Sequence[Sample], step: int | None = None, unasked: Mapping[str, str] = MappingProxyType({})
    ) -> RewardBatch:
        """Computes the rewards of `samples`, with the weights of a step.

        Args:
          unasked: terms that could not ask the policy what they wanted to, and why: they fail for the whole batch.
        """
        samples = tuple(samples)
        deadline = time.monotonic() + self._timeout_s
        running = [self._start(term.reward, samples, unasked.get(name)) for name, term in self._terms.items()]
        reasons = tuple(self._refuse and self._refuse(sample.completion, sample.finished) for sample in samples)
        degenerate = np.array([reason is not None for reason in reasons], bool)
        terms, failed, failures, seconds = {}, {}, {}, dict.fromkeys(self._terms, 0.0)
        weights = self.weights_at(step)
        for (name, weight), future in zip(weights.items(), running):
            try:
                said, seconds[name] = self._collect(name, future, deadline)
                values, failed[name] = _checked(said, len(samples), weight)
                problem = _describe_refused(values[failed[name]], weight)
            except Exception as error:
                values, failed[name] = np.full(len(samples), np.nan), np.ones(len(samples), bool)
                problem = str(error)
            if problem:
                failures[name] = problem
                self._report(name, problem)
            values = np.where(failed[name], np.nan, values)
            terms[name] = np.where(degenerate & (weight * values > 0), 0.0, values)
        for name in self._order:
            if gate := self._terms[name].gate:
                terms[name] = _gated(terms[name], terms[gate], self._terms[name].gate_above)
        total = self.total(terms, self.weights_at(step, terms))
        return RewardBatch(total, terms, reasons, failed, failures, seconds)

    def submit(
        self, samples: Sequence[Sample], step: int | None = None, unasked: Mapping[str, str] = MappingProxyType({})
    ) -> Future[RewardBatch]:
        """Starts computing the rewards of `samples` and returns at once, so that the device can go on."""
        return run_in_daemon(lambda: self(samples, step, unasked), "rewards")

    def _start(self, reward: Reward, samples: tuple[Sample, ...], problem: str | None) -> Future:
        earlier, future = self._hanging.get(reward.name), Future()
        if problem:
            future.set_exception(RuntimeError(problem))
            return future
        if not samples:  # of which a term may not think
            future.set_result(([], 0.0))
            return future
        if earlier is not None and not earlier.done():
            # One more thread a batch, for as long as the run lasts, would help nobody.
            future.set_exception(TimeoutError("an earlier batch that timed out is still running"))
            return future
        return run_in_daemon(lambda: _timed(reward, samples), f"reward {reward.name}")

    def _collect(self, name: str, future: Future, deadline: float) -> tuple[Any, float]:
        try:
            error = future.exception(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._hanging[name] = future
            raise TimeoutError(f"took longer than {self._timeout_s:g} s") from None
        if error is not None:
            raise RuntimeError(described(error)) from error
        return future.result()

    def _report(self, name: str, problem: str) -> None:
        with self._lock:
            first = name not in self.reasons
            self.reasons[name] = problem
        if first:
            _log.warning("reward term %r failed (logged once, counted in the metrics): %s", name, printable(problem))


def combine(terms: Mapping[str, np.ndarray], weights: Mapping[str, float], how: str = "sum") -> np.ndarray:
    """Sum or product of the weighted terms that have a value; NaN where none has. A term of weight 0 is left out.

    A product with a negative factor is negative: of two of them none makes up for the other.

    Args:
      terms: float [...] by name, of one shape.

    Returns:
      float64 [...].
    """
    counted = [weights[name] * np.asarray(values, np.float64) for name, values in terms.items() if weights[name]]
    if not counted:
        return np.full(next(iter(terms.values())).shape, np.nan)
    if how == "sum":
        total = np.zeros(counted[0].shape)
        for values in counted:
            total += np.where(np.isnan(values), 0.0, values)
    else:
        size, fault = np.abs(np.nanprod(counted, axis=0)), np.any(np.less(counted, 0), axis=0)
        total = np.where(fault, -size, size)
    return np.where(np.isnan(counted).all(axis=0), np.nan, total)


def _mean(values: np.ndarray) -> float:
    """The mean of what is there; 0 where nothing is."""
    present = np.asarray(values, np.float64)[np.isfinite(values)]
    return float(present.mean()) if present.size else 0.0


def _timed(reward: Reward, samples: Sequence[Sample]) -> tuple[Any, float]:
    began = time.perf_counter()
    return reward(samples), time.perf_counter() - began


def _behind_gates(gates: Mapping[str, str]) -> list[str]:
    """The terms in an order in which each comes behind its gate: one that is shut shuts those behind it."""
    if missing := {gate for gate in gates.values() if gate} - set(gates):
        raise ValueError(f"gates that are no terms: {sorted(missing)}")
    order: list[str] = []
    while len(order) < len(gates):
        ready = [name for name, gate in gates.items() if name not in order and (not gate or gate in order)]
        if not ready:
            raise ValueError(f"gates in a circle: {sorted(set(gates) - set(order))}")
        order += ready
    return order


def _gated(values: np.ndarray, gate: np.ndarray, above: float) -> np.ndarray:
    """0 where the gate is not above its threshold; no value where the gate has none."""
    return np.where(np.isnan(gate), np.nan, np.where(gate > above, values, np.where(np.isnan(values), np.nan, 0.0)))


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

# Makes a term: from what the task hands over, and the term's own options by name.
Maker = Callable[..., Reward]


def check_terms(config: RewardConfig, makers: Mapping[str, Maker]) -> None:
    """Checks that every term of a configuration can be made, as far as that can be told without data.

    Args:
      makers: what makes each term of the task by name; the first parameter is not an option.

    Raises:
      ConfigError: names the term: it is unknown, has an option that it does not know, or is a user's own that cannot be
        loaded.
    """
    for spec in config.terms:
        if is_custom(spec.name):
            load_custom(spec.name)
            known = []
        elif spec.name not in makers:
            raise ConfigError(
                f"config key 'grpo.reward.terms': the task has no term {spec.name!r}; it has {', '.join(makers)}, and "
                "'path/to/file.py:function' is one of your own"
            )
        else:
            known = list(inspect.signature(makers[spec.name]).parameters)[1:]
        for option in spec.options:
            if option not in known:
                offered = f"it has {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"config key 'grpo.reward.terms': {spec.name!r} has no option {option!r}; {offered}")


def build_reward(
    config: RewardConfig,
    makers: Mapping[str, Maker],
    context: Any,
    refuse: Callable[[str, bool], str | None] | None = None,
) -> RewardFunction:
    """Returns the reward that `config` describes; terms of weight 0 are left out, unless another one depends on them.

    Args:
      makers: as in `check_terms`.
      context: what every maker is handed.
      refuse: as in `RewardFunction`.

    Raises:
      ConfigError: a term that cannot be made, or no term at all.
    """
    check_terms(config, makers)
    needed = {name for spec in config.terms for name in (spec.gate, spec.schedule_over)}
    terms = []
    for spec in config.terms:
        if not spec.weight and spec.name not in needed:
            continue
        try:
            made = load_custom(spec.name) if is_custom(spec.name) else makers[spec.name](context, **spec.options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config key 'grpo.reward.terms': {spec.name!r}: {error}") from error
        over = _short(spec.schedule_over)
        terms.append(Term(made, spec.weight, _short(spec.gate), spec.gate_above, spec.schedule, over))
    try:
        return RewardFunction(terms, config.timeout_s, refuse, config.combine)
    except ValueError as error:
        raise ConfigError(f"config key 'grpo.reward.terms': {error}") from error


def _short(name: str) -> str:
    """What a term is called in metrics: of a user's own, the function's name."""
    return name.rpartition(":")[2]
