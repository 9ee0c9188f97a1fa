"""A run's numbers and completions at Weights & Biases or Trackio, under the names that TensorBoard has them by.

Off unless the configuration names one (`trackers`); each is an extra of the package. What they are sent leaves the
machine where they are set up so: numbers, configuration, sampled captions and labels, no media.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.config import Config, ConfigError
from mecap_jax.interruption import Interrupted
from mecap_jax.json_files import read_json_object, write_json

METRICS, COMPLETIONS = "metrics.jsonl", "completions.jsonl"  # logs of a run, in its workdir
KNOWN_AS = "trackers.json"  # in a workdir: what each tracker knows the run by
_PROJECT = "mecap_jax"


def open_trackers(config: Config, workdir: Path, goes_on: bool, say: Callable[[str], None]) -> list[Tracker]:
    """Opens what `config.trackers` names, or none of it.

    Args:
      goes_on: whether the run in `workdir` has taken steps that it goes on from. What it sent to a tracker is then kept
        there and goes on; any other run is a new one there, whatever was in `workdir` before.

    Raises:
      ConfigError: one is not installed, or does not open.
    """
    modules = {name: _module(name) for name in config.trackers}
    known = {}
    if goes_on:
        with contextlib.suppress(OSError, ValueError):  # none yet, or no longer legible: a new run there
            known = read_json_object(workdir / KNOWN_AS)
    kept = {name: id for name in modules if isinstance(id := known.get(name), str)}
    ids = {name: kept.get(name) or f"{workdir.name}-{secrets.token_hex(4)}" for name in modules}
    with contextlib.ExitStack() as opened:
        trackers = []
        for name, module in modules.items():
            tracker = Tracker(name, module, ids[name], config, workdir, say, goes_on=name in kept)
            trackers.append(tracker)
            opened.push(lambda *exception, tracker=tracker: tracker.close(exception[1]))
        if ids:
            write_json(workdir / KNOWN_AS, known | ids)
        opened.pop_all()
    return trackers


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = f"pip install 'mecap_jax[{name}]'"
        raise ConfigError(f"config key 'trackers': {name} is not installed ({extra}): {error}") from error


class Tracker:
    """A run at one of them. Whatever fails once the run has begun is said, once, and harms nothing else."""

    def __init__(
        self,
        name: str,
        module: Any,
        run: str,
        config: Config,
        workdir: Path,
        say: Callable[[str], None],
        goes_on: bool,
    ):
        self._name, self._module, self._say, self._goes_on = name, module, say, goes_on
        options = {"project": _PROJECT, "name": run, "resume": "allow", "config": dataclasses.asdict(config)}
        if name == "wandb":
            options |= {"id": run, "dir": str(workdir.absolute())}
        try:
            self._run = module.init(**options)
        except Exception as error:
            raise ConfigError(f"config key 'trackers': {name} did not open: {error}") from error
        self._stages: set[str] = set()
        self._sent: dict[tuple[str, str], int] = {}

    def rewind(self, stage: str, log: str, last: int) -> None:
        """Is told that a stage takes up at an earlier step than the `last` one in its log of this name.

        What is there already was sent, and a tracker takes nothing back: steps up to that one are not sent again. They
        come out the same.
        """
        if self._goes_on:
            self._sent[stage, log] = last

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of a step, those that are finite."""
        if step > self._sent.get((stage, METRICS), 0):
            self._log(stage, step, {name: value for name, value in values.items() if math.isfinite(value)})

    def completions(self, stage: str, step: int, groups: Iterable[Mapping[str, Any]]) -> None:
        """Logs the sampled groups of a step as a table, a row a completion."""
        if step <= self._sent.get((stage, COMPLETIONS), 0):
            return
        rows = [
            {"step": step, "clip": group["utterance_id"], "label": group["label"], "completion": one["text"],
             "reward": one["reward"], "advantage": one["advantage"], **one["rewards"]}
            for group in groups for one in group["completions"]
        ]  # fmt: skip
        if rows:
            self._log(stage, step, lambda: {"completions": self._table(rows)})

    def close(self, error: BaseException | None = None) -> None:
        """Ends the run there: as finished, or, with what has ended it, as failed. Trackio, which has no such state,
        gets an alert."""

        def end() -> None:
            if self._name == "wandb":
                status = 0 if error is None else Interrupted.STATUS if isinstance(error, Interrupted) else 1
                self._run.finish(exit_code=status)
                return
            if error is not None:
                title = "stopped" if isinstance(error, Interrupted) else "failed"
                self._run.alert(title, f"{type(error).__name__}: {error}"[:1000], self._module.AlertLevel.ERROR)
            self._run.finish()

        self._attempt(end)

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
