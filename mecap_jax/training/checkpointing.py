"""Checkpoints of a stage by Orbax: asynchronous, atomic, with the data iterator inside."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from mecap_jax.config import CheckpointConfig
from mecap_jax.train_state import TrainState


class StageCheckpoints(contextlib.AbstractContextManager):
    """The checkpoints of one stage, `directory/STEP`; the newest few are kept.

    A checkpoint holds the parameters, the optimiser state, the counters and the state of the Grain iterator. Random
    numbers follow from the seed and the step, so nothing else is needed to go on bit by bit. A save that was
    interrupted leaves no step behind: Orbax writes beside and renames.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, description: dict[str, Any]):
        """`description` goes into each checkpoint's metadata (the model's shape, say) and is read by `describe`."""
        self._every, self._description = config.every, description
        # Orbax warns of every iterator that its metadata cannot be listed; that is how iterators are.
        logging.getLogger("absl").addFilter(lambda record: "Failed to get metadata" not in record.getMessage())
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
        """Loads the newest checkpoint into the shape and sharding of `state`; moves `iterator` to where it was."""
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
            step, {**_parts(state), "data": iterator}, force=True, custom_metadata=self._description
        )


def latest_step(directory: Path) -> int | None:
    """The newest complete checkpoint's step in a stage's directory, or None."""
    if not directory.is_dir():
        return None
    with ocp.training.Checkpointer(directory.resolve()) as checkpointer:
        latest = checkpointer.latest
        return None if latest is None else latest.step


def load_params(directory: Path, abstract_params: Any) -> Any:
    """Loads only the parameters of the newest checkpoint of a stage.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    step = latest_step(directory)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    with ocp.training.Checkpointer(directory.resolve()) as checkpointer:
        return checkpointer.load_checkpointables(step, {"params": abstract_params})["params"]


def _parts(state: TrainState) -> dict[str, Any]:
    """Parameters by themselves, so that evaluation and export need not read the optimiser's moments."""
    progress = state._asdict()
    return {"params": progress.pop("params"), "progress": progress}
