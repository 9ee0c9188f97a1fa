"""What an export remembers of its training beside the layout's own files: what it was asked, and what it got to see.

`task.json` stands beside `config.json`. With it an export is asked by `caption.py` and `evaluate.py` as the stage that
it was made from.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import ConfigDict, NonNegativeFloat, PositiveInt, TypeAdapter, ValidationError

from mecap_jax.config import MEDIA_SETTINGS, Config, DataConfig, TaskConfig, is_path
from mecap_jax.config.schema import CaptionKind, Modality
from mecap_jax.json_files import as_json, write_json
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.tasks.registry import make_task

TASK_FILE = "task.json"
_LABELS_FILE = "labels.toml"  # a user's own set of labels


@dataclasses.dataclass(frozen=True)
class TrainedTask:
    """What a model was trained for.

    Attributes:
      task: how its answers are read and judged; without a judge of its own.
      target, modalities, include_transcript: as in `DataConfig`, and so are the settings of media below.
      instruction: the request of a clip of which nothing is known.
      max_new_tokens: longest answer.
    """

    task: TaskConfig
    target: CaptionKind
    modalities: tuple[Modality, ...]
    include_transcript: bool
    instruction: str
    max_new_tokens: PositiveInt
    fps: NonNegativeFloat
    max_frames: PositiveInt
    max_seconds: NonNegativeFloat
    max_pixels: PositiveInt
    min_pixels: PositiveInt

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def of(cls, config: Config) -> TrainedTask:
        """What a stage of this configuration is trained for."""
        data = config.data
        return cls(
            task=config.task,
            target=data.target,
            modalities=data.modalities,
            include_transcript=data.include_transcript,
            instruction=make_task(config).request(None),
            max_new_tokens=config.longest_answer,
            **{name: getattr(data, name) for name in MEDIA_SETTINGS},
        )

    def apply(self, data: DataConfig) -> DataConfig:
        """The settings with what is asked and shown, and how media are read."""
        return dataclasses.replace(
            data,
            target=self.target,
            modalities=tuple(name for name in self.modalities if name in data.modalities),
            include_transcript=self.include_transcript,
            instruction=self.instruction,
            **{name: getattr(self, name) for name in MEDIA_SETTINGS if name != "max_seconds"},
            max_seconds=self.max_seconds or data.max_seconds,  # 0: there was nothing that lasts
        )

    def save(self, directory: Path) -> None:
        """Writes `task.json`, and the set of labels where that is a user's own."""
        task = dataclasses.replace(
            self.task,
            judge="",
            judge_model="",
            wheels="",
            places="" if is_path(self.task.places) else self.task.places,
        )
        if is_path(task.labels):
            (directory / _LABELS_FILE).write_bytes(Path(task.labels).read_bytes())
            task = dataclasses.replace(task, labels=_LABELS_FILE)
        write_json(directory / TASK_FILE, as_json(dataclasses.asdict(dataclasses.replace(self, task=task))))


def read_trained_task(directory: Path) -> TrainedTask | None:
    """What the model in a directory was trained for; None where the directory does not tell.

    Raises:
      CheckpointError: a file that cannot be read, or that names a file elsewhere.
    """
    path = directory / TASK_FILE
    if not path.is_file():
        return None
    try:
        trained = TypeAdapter(TrainedTask).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    task = trained.task
    if task.labels == _LABELS_FILE:
        task = dataclasses.replace(task, labels=str(directory / _LABELS_FILE))
    elif is_path(task.labels):
        raise CheckpointError(f"{path} names a set of labels elsewhere: {task.labels!r}")
    if task.judge or task.wheels or is_path(task.places):
        raise CheckpointError(f"{path} names files elsewhere: {task.judge or task.wheels or task.places!r}")
    return dataclasses.replace(trained, task=task)
