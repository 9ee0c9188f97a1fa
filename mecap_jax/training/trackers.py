"""A run's numbers and completions at Weights & Biases or Trackio, under the names that TensorBoard has them by.

Off unless the configuration names one (`trackers`); each is an extra of the package. What they are sent leaves the
machine where they are set up so: numbers, configuration, sampled captions and labels, no media.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.config import Config, ConfigError

_PROJECT = "mecap_jax"


def open_trackers(config: Config, workdir: Path, say: Callable[[str], None]) -> list[Tracker]:
    """Opens what `config.trackers` names; a run that goes on in its workdir goes on there.

    Raises:
      ConfigError: one is not installed, or does not open.
    """
    return [Tracker(name, config, workdir, say) for name in config.trackers]


class Tracker:
    """A run at one of them. Whatever fails once the run has begun is said, once, and harms nothing else."""

    def __init__(self, name: str, config: Config, workdir: Path, say: Callable[[str], None]):
        self._name, self._say = name, say
        try:
            self._module = importlib.import_module(name)
        except ImportError as error:
            extra = f"pip install 'mecap_jax[{name}]'"
            raise ConfigError(f"config key 'trackers': {name} is not installed ({extra}): {error}") from error
        place = str(workdir.absolute())
        run = f"{workdir.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        options = {"project": _PROJECT, "name": run, "resume": "allow", "config": dataclasses.asdict(config)}
        if name == "wandb":
            options |= {"id": run, "dir": place}
        try:
            self._run = self._module.init(**options)
        except Exception as error:
            raise ConfigError(f"config key 'trackers': {name} did not open: {error}") from error
        self._stages: set[str] = set()

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a step, those that are finite."""
        self._log(stage, step, {name: value for name, value in values.items() if math.isfinite(value)})

    def completions(self, stage: str, step: int, groups: Iterable[Mapping[str, Any]]) -> None:
        """Logs the sampled groups of a step as a table, a row a completion."""
        rows = [
            {"step": step, "clip": group["utterance_id"], "label": group["label"], "completion": one["text"],
             "reward": one["reward"], "advantage": one["advantage"], **one["rewards"]}
            for group in groups for one in group["completions"]
        ]  # fmt: skip
        if rows:
            self._log(stage, step, lambda: {"completions": self._table(rows)})

    def close(self) -> None:
        """Ends the run there."""
        self._attempt(lambda: self._run.finish())

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        return self._module.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])

    def _log(self, stage: str, step: int, values: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        def log() -> None:
            # A stage begins at step 1 again, where W&B wants steps to rise: each has its own.
            if self._name == "wandb" and stage not in self._stages:
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
                self._stages.add(stage)
            named = values() if callable(values) else values
            self._run.log({f"{stage}/step": step} | {f"{stage}/{name}": value for name, value in named.items()})

        self._attempt(log)

    def _attempt(self, do: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            do()
        except Exception as error:  # theirs, of any kind; a run is worth more than its mirror
            self._run = None
            self._say(f"{self._name} failed and is left out from here: {type(error).__name__}: {error}")
