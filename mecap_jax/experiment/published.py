"""Models that come as files in the Hugging Face layout, published ones and exports of ours, without a run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from mecap_jax.config import DataConfig
from mecap_jax.data.features import MAX_SAMPLES, SAMPLE_RATE
from mecap_jax.data.media import MAX_SECONDS
from mecap_jax.data.processor import Processor
from mecap_jax.experiment.trained_task import TrainedTask, read_trained_task
from mecap_jax.experiment.weights import read_run
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.hub import load_model, read_model
from mecap_jax.models.checkpoints.hub_config import CONFIG_FILE, read_json
from mecap_jax.models.checkpoints.peft import SETTINGS
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.train_state import abstract_model


@dataclasses.dataclass(frozen=True)
class Published:
    """A model with its weights on a mesh, and its processor.

    Attributes:
      trained: what it was trained for, where it says so: an export of ours does.
    """

    model: ModelConfig
    graphdef: nnx.GraphDef
    params: Any
    processor: Processor
    trained: TrainedTask | None


def open_published(directory: Path, mesh: Mesh, dtype: str | None = None) -> Published:
    """Loads a directory in the Hugging Face layout.

    Args:
      dtype: of weights and matrix products; None: as stored.

    Raises:
      CheckpointError: no model there, or files that do not fit; says what was looked for.
    """
    check_published(directory)
    model = read_model(directory)
    # The range of float16 is too small for what passes between layers of these families.
    model = with_dtype(model, dtype or ("float32" if model.param_dtype == "float16" else model.param_dtype))
    try:
        processor = Processor.from_directory(directory, model)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    graphdef, abstract = abstract_model(model, mesh)
    trained = read_trained_task(directory)
    return Published(model, graphdef, load_model(directory, model, abstract), processor, trained)


def published_settings(processor: Processor, trained: TrainedTask | None = None) -> DataConfig:
    """How files are read for a model that comes with a processor and without a run."""
    model, settings = processor.model, processor.settings
    parts = {"audio": model.audio, "video": model.vision, "features": model.features}
    data = DataConfig(
        modalities=tuple(name for name, part in parts.items() if part is not None),
        include_transcript=False,
        max_seconds=MAX_SAMPLES / SAMPLE_RATE if model.audio else MAX_SECONDS,
        fps=settings.fps,
        max_frames=settings.max_frames,
        min_pixels=settings.video_min_pixels,
        max_pixels=settings.video_max_pixels,
    )
    return data if trained is None else trained.apply(data)


def with_dtype(model: ModelConfig, dtype: str | None) -> ModelConfig:
    """The same network in another dtype; None leaves it."""
    return model if dtype is None else dataclasses.replace(model, param_dtype=dtype, dtype=dtype)


def is_stage(path: Path) -> bool:
    """Whether a path has the form of a run's stage; a published model may stand in a directory of that name, too."""
    in_run = path.parent.name == "checkpoints" and (path.parent.parent / CONFIG_FILE).is_file()
    return in_run and path.is_dir() and not (path / CONFIG_FILE).is_file()


def check_published(path: Path) -> None:
    """Explains what is wrong where a path is neither kind of model.

    Raises:
      CheckpointError: says what was looked for.
    """
    expected = (
        f"expected a directory in the Hugging Face layout ({CONFIG_FILE}, *.safetensors, tokenizer.json) "
        "or a stage of a run (RUN/checkpoints/STAGE)"
    )
    if not path.is_dir():
        named = re.fullmatch(r"[\w-]+/[\w.-]+", str(path))
        hint = f"; to use the model {path} of the Hugging Face hub, download its files first" if named else ""
        raise CheckpointError(f"no such directory: {path}; {expected}{hint}")
    if not (path / CONFIG_FILE).is_file():
        adapter = (path / SETTINGS).is_file()
        hint = "; it holds an adapter: load its base model, with this as the adapter" if adapter else ""
        raise CheckpointError(f"{path} has no {CONFIG_FILE}; {expected}{hint}")
    if "model_type" not in (found := read_json(path / CONFIG_FILE)) and "model" in found:
        read_run(path)  # a run whose configuration is not valid says so itself
        stages = sorted(stage.name for stage in path.glob("checkpoints/*") if stage.is_dir())
        raise CheckpointError(
            f"{path} is a run; name one of its stages, RUN/checkpoints/STAGE (found: {', '.join(stages) or 'none yet'})"
        )
