"""Checkpoints of a stage by Orbax: asynchronous, atomic, with checksums, and with the data iterator inside."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mecap_jax.config import CheckpointConfig
from mecap_jax.json_files import read_json_object, write_json
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.train_state import TrainState
from mecap_jax.training.checksums import find_damage, write_checksums
from mecap_jax.training.description import disagreements, written

_DESCRIPTION = "description.json"
# Written once, not by every process as Orbax does with Grain's iterators: all are at the same place, and the next half
# of a run may have another number of processes.
_ITERATOR = "iterator.json"
# Orbax goes on writing this file when everything else is finished: it has times and handlers, nothing of ours.
_ORBAX = "_CHECKPOINT_METADATA"


class StageCheckpoints(contextlib.AbstractContextManager):
    """The checkpoints of one stage, `directory/STEP`; the newest few are kept.

    A checkpoint holds the parameters, the optimiser state, the counters and the state of the Grain iterator. Random
    numbers follow from the seed and the step, so nothing else is needed to go on bit by bit. Orbax writes a step beside
    and renames it; checksums of all its files are the last thing written before.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        description: dict[str, Any],
        say: Callable[[str], None] = lambda message: None,
    ):
        """Opens the directory, which is made where there is none, and leaves the newest whole step as the newest.

        Args:
          description: what each checkpoint says about itself (the model's configuration, say), in JSON values and
            dataclasses of them; checked on loading, see `training.description`.
          say: told when a damaged step is set aside.

        Raises:
          CheckpointError: every step is damaged.
        """
        self._directory, self._every, self._description = directory.resolve(), config.every, description
        self._saving, self._position = 0, {}
        _say_once()
        _on_first_process(lambda: _set_aside(self._directory, say))
        context = ocp.Context()
        # Orbax calls it on the first process, just before the rename. It would copy the object of a bound method.
        context.async_options.post_finalization_callback = lambda: self._seal()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            context=context,
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=True,
        )

    def __exit__(self, *exception):
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def restore(self, state: TrainState, iterator: Any) -> TrainState:
        """Loads the newest checkpoint into the shapes and shardings of `state`; moves `iterator` to where it was.

        Raises:
          CheckpointError: it holds something else than the description says.
        """
        path = self._directory / str(self.latest_step)
        _check_description(path, self._description)
        loaded = self._checkpointer.load_checkpointables(self.latest_step, _parts(state))
        iterator.set_state(read_json_object(path / _ITERATOR))
        return TrainState(loaded["params"], **loaded["progress"])

    def maybe_save(self, step: int, state: TrainState, iterator: Any) -> None:
        """Saves in the background where the configuration says so."""
        if self._every and step % self._every == 0:
            self._save(step, state, iterator)

    def save(self, step: int, state: TrainState, iterator: Any) -> None:
        """Saves, if this step has not been saved already, and waits until it is on disk."""
        if self.latest_step != step:
            self._save(step, state, iterator)
        self._checkpointer.wait()

    def _save(self, step: int, state: TrainState, iterator: Any) -> None:
        self._checkpointer.wait()  # one save at a time: a second would need a second copy of the state in memory
        self._saving, self._position = step, iterator.get_state()
        self._checkpointer.save_checkpointables_async(step, _parts(state), force=True)

    def _seal(self) -> None:
        (unfinished,) = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        write_json(unfinished / _DESCRIPTION, written(self._description))
        write_json(unfinished / _ITERATOR, self._position)
        write_checksums(unfinished, without=_ORBAX)


def latest_step(directory: Path) -> int | None:
    """The newest checkpoint's step in a stage's directory, or None."""
    return max(_steps(directory), default=None)


def load_params(directory: Path, abstract_params: Any, description: dict[str, Any]) -> Any:
    """Loads only the parameters of the newest checkpoint of a stage; writes nothing.

    Raises:
      CheckpointError: there is none, it is damaged, or it holds something else than `description` says.
    """
    _say_once()
    step = latest_step(directory)
    if step is None:
        raise CheckpointError(f"no checkpoint in {directory}")
    path = directory.resolve() / str(step)
    _on_first_process(lambda: _require_whole(path))
    _check_description(path, description)
    return ocp.load_checkpointables(path, {"params": abstract_params})["params"]


def _steps(directory: Path) -> list[int]:
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal()] if directory.is_dir() else []


def _set_aside(directory: Path, say: Callable[[str], None]) -> None:
    """Renames damaged steps until the newest one is whole."""
    faults: dict[int, str] = {}
    for step in sorted(_steps(directory), reverse=True):
        fault = _fault(directory / str(step))
        if fault is None:
            break
        faults[step] = fault
    else:
        if faults:
            details = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
            raise CheckpointError(f"every checkpoint in {directory} is damaged ({details}); delete it to train it anew")
    for damaged, fault in faults.items():
        aside = directory / f"{damaged}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (directory / str(damaged)).rename(aside)
        say(f"{directory}: step {damaged} is damaged ({fault}), kept as {aside.name}; going on from step {step}")


def _fault(path: Path, *parts: str) -> str | None:
    """What is wrong with a step, or with those of its files whose paths begin with one of `parts`; None if nothing."""
    try:
        read_json_object(path / _ORBAX)
    except (OSError, ValueError) as error:
        return str(error)
    return next(filter(None, (find_damage(path, part) for part in parts or ("",))), None)


def _require_whole(path: Path) -> None:
    fault = _fault(path, _DESCRIPTION, "params/")
    if fault is not None:
        raise CheckpointError(f"the checkpoint {path} is damaged ({fault}); the run's own command makes it again")


def _on_first_process(check: Callable[[], None]) -> None:
    """Runs `check` on the first process, which alone reads all of a checkpoint; what it raises ends all processes."""
    error = None
    if jax.process_index() == 0:
        try:
            check()
        except (CheckpointError, OSError) as failure:
            error = failure
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
        if failed and error is None:
            error = CheckpointError("the first process cannot use the checkpoints of this run")
    if error is not None:
        raise error


def _say_once() -> None:
    """A failure to save or to load is raised; what it leaves behind is not printed as well."""
    logging.getLogger("absl").addFilter(_worth_saying)
    sys.unraisablehook = _late_writes_are_quiet


def _worth_saying(record: logging.LogRecord) -> bool:
    """Orbax logs tracebacks of what it raises anyway."""
    return not record.exc_info


def _late_writes_are_quiet(unraisable: Any) -> None:
    """Where one write fails, those that are still under way report to a loop that Orbax has closed by then."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _parts(state: TrainState) -> dict[str, Any]:
    """Parameters by themselves, so that evaluation and export need not read the optimiser's moments."""
    progress = {name: part for name, part in state._asdict().items() if part is not None}
    return {"params": progress.pop("params"), "progress": progress}


def _check_description(path: Path, mine: dict[str, Any]) -> None:
    if different := disagreements(read_json_object(path / _DESCRIPTION), mine):
        raise CheckpointError(f"the checkpoint {path} is of another run:\n  " + "\n  ".join(different))
