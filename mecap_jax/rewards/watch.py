"""Stops a run whose reward goes on failing: a term without values teaches nothing, however well the step runs."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from mecap_jax.rewards.base import RewardError
from mecap_jax.rewards.combine import RewardFunction


class RewardWatch:
    """Counts by term the steps in a row in which it failed, or gave no sample a value.

    It reads `rewards/NAME/failures` and `rewards/NAME/missing` of a step's metrics. Every process has the same ones,
    so all of them stop at the same step.
    """

    def __init__(self, reward: RewardFunction, max_failures: int):
        self._reward, self._max_failures = reward, max_failures
        self._in_a_row: collections.Counter[str] = collections.Counter()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step.

        Raises:
          RewardError: a term has failed in so many steps in a row.
        """
        for name in self._reward.weights:
            if f"rewards/{name}/missing" not in metrics:  # no clip of the step could be decoded
                continue
            silent = metrics[f"rewards/{name}/missing"] == 1
            failing = silent or metrics[f"rewards/{name}/failures"] > 0
            self._in_a_row[name] = self._in_a_row[name] + 1 if failing else 0
            if self._in_a_row[name] >= self._max_failures:
                reason = self._reward.reasons.get(name, "it had no value for any sample" if silent else "")
                raise RewardError(
                    f"reward term {name!r} failed in {self._in_a_row[name]} steps in a row, the last one step {step} "
                    f"(config key 'grpo.max_reward_failures'): {reason or 'see the log of the other processes'}"
                )
