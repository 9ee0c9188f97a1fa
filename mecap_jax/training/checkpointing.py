"""Checkpoints of a stage by Orbax: asynchronous, atomic, with the data iterator inside."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from mecap_jax.config import CheckpointConfig, differences
from mecap_jax.json_files import as_json
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.train_state import TrainState


class StageCheckpoints(contextlib.AbstractContextManager):
    """The checkpoints of one stage, `directory/STEP`; the newest few are kept.

    A checkpoint holds the parameters, the optimiser state, the counters and the state of the Grain iterator. Random
    numbers follow from the seed and the step, so nothing else is needed to go on bit by bit. A save that was
    interrupted leaves no step behind: Orbax writes beside and renames.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, description: dict[str, Any]):
        """`description` (the model's configuration, say) is stored in each checkpoint and checked on loading."""
        self._every, self._description = config.every, description
        logging.getLogger("absl").addFilter(_worth_saying)
        self._checkpointer = ocp.training.Checkpointer(
            directory.resolve(),
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
        """Loads the newest checkpoint into the shape and sharding of `state`; moves `iterator` to where it was.

        Raises:
          CheckpointError: it holds something else than the description says.
        """
        _check_description(self._checkpointer, self.latest_step, self._description)
        targets = {**_parts(state), "data": iterator}
        loaded = self._checkpointer.load_checkpointables(self.latest_step, targets)
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
        self._checkpointer.save_checkpointables_async(
            step, {**_parts(state), "data": iterator}, force=True, custom_metadata=as_json(self._description)
        )


def latest_step(directory: Path) -> int | None:
    """The newest complete checkpoint's step in a stage's directory, or None."""
    if not directory.is_dir():
        return None
    with ocp.training.Checkpointer(directory.resolve()) as checkpointer:
        latest = checkpointer.latest
        return None if latest is None else latest.step


def load_params(directory: Path, abstract_params: Any, description: dict[str, Any]) -> Any:
    """Loads only the parameters of the newest checkpoint of a stage.

    Raises:
      CheckpointError: there is none, or it holds something else than `description` says.
    """
    logging.getLogger("absl").addFilter(_worth_saying)
    step = latest_step(directory)
    if step is None:
        raise CheckpointError(f"no checkpoint in {directory}")
    with ocp.training.Checkpointer(directory.resolve()) as checkpointer:
        _check_description(checkpointer, step, description)
        return checkpointer.load_checkpointables(step, {"params": abstract_params})["params"]


def _worth_saying(record: logging.LogRecord) -> bool:
    """Orbax warns of every iterator that its metadata cannot be listed; that is how iterators are."""
    return "Failed to get metadata" not in record.getMessage()


def _parts(state: TrainState) -> dict[str, Any]:
    """Parameters by themselves, so that evaluation and export need not read the optimiser's moments."""
    progress = state._asdict()
    return {"params": progress.pop("params"), "progress": progress}


def _check_description(checkpointer: ocp.training.Checkpointer, step: int, mine: dict[str, Any]) -> None:
    theirs = checkpointer.checkpointables_metadata(step).custom_metadata or {}
    different = [f"{key}: {old!r} there, {new!r} here" for key, old, new in differences(theirs, as_json(mine))]
    if different:
        raise CheckpointError(
            f"the checkpoint of step {step} in {checkpointer.directory} is of another run:\n  " + "\n  ".join(different)
        )
