"""The weights of a run: what it starts from, and what its stages left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from mecap_jax.config import Config, ConfigError, differences, from_json, stage_config, validate
from mecap_jax.data.manifest import sha256
from mecap_jax.data.processor import Processor
from mecap_jax.data.training_facts import read_facts
from mecap_jax.json_files import as_json, read_json_object, write_json
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.hub import (
    PROJECTOR_FILE,
    load_projector,
    load_weights,
    published_part,
)
from mecap_jax.models.checkpoints.table import CheckpointError, flatten, select_params
from mecap_jax.models.lora import merge_lora
from mecap_jax.models.parameters import merge_params, split_params
from mecap_jax.train_state import abstract_model, init_params
from mecap_jax.training.checkpointing import latest_step, load_params
from mecap_jax.training.checksums import CHECKSUMS

CONFIG_FILE = "config.json"  # what was asked for, in the workdir
START = "start.json"  # which checkpoint of another run this one started from, in the workdir
PROCESSOR = "processor"  # tokenizer, chat template and settings, in the workdir


def run_of(checkpoint: Path) -> Path:
    """The workdir that `RUN/checkpoints/STAGE` is in.

    Raises:
      ConfigError: the path has another form.
    """
    if checkpoint.parent.name != "checkpoints":
        raise ConfigError(f"--checkpoint: expected RUN/checkpoints/STAGE, got {checkpoint}")
    return checkpoint.parent.parent


def read_run(workdir: Path) -> Config:
    """The configuration of the run in a workdir, with what followed from its data.

    Raises:
      ConfigError: there is no run, or its configuration is not valid.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG_FILE}")
    try:
        config = validate(from_json(path.read_bytes()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    facts = read_facts(workdir)
    if facts is None:
        return config
    told = config.data.include_transcript and facts.transcribed > 0
    followed = dict(modalities=facts.modalities, include_transcript=told, max_seconds=facts.max_seconds)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **followed))


def read_stage(checkpoint: Path) -> Config:
    """The configuration of the run that `RUN/checkpoints/STAGE` is of, with the network of that stage.

    Raises:
      ConfigError: as `run_of` and `read_run`.
    """
    config = read_run(run_of(checkpoint))
    return dataclasses.replace(config, model=stage_config(config, checkpoint.name).model)


def check_init_from(config: Config) -> None:
    """Compares the model with that of the run that `init_from` names.

    Raises:
      ConfigError: there is no such stage, or its model is another one; names what differs with both values.
    """
    if not config.init_from:
        return
    checkpoint = Path(config.init_from)
    try:
        theirs = read_stage(checkpoint)
    except ConfigError as error:
        raise ConfigError(f"config key 'init_from': {str(error).removeprefix('--checkpoint: ')}") from error
    if latest_step(checkpoint) is None:
        raise ConfigError(f"config key 'init_from': no checkpoint in {checkpoint}")
    models = (as_json(dataclasses.asdict(run.model)) for run in (theirs, config))
    different = [
        f"model.{key}: {old!r} there, {new!r} asked" for key, old, new in differences(*models) if key != "name"
    ]
    if different:
        raise ConfigError(f"config key 'init_from': {checkpoint} is of another model:\n  " + "\n  ".join(different))


def note_start(workdir: Path, config: Config) -> None:
    """Notes which checkpoint of another run this one starts from, if any."""
    if config.init_from:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / START, _start_of(config))


def check_start(workdir: Path, config: Config) -> None:
    """Refuses what a run started from where the other run has trained on since: it would be other parameters.

    Raises:
      ConfigError: names both checkpoints.
    """
    if not config.init_from or not (workdir / START).is_file():
        return
    then, now = read_kept(workdir / START, {"step": int, "sha256": str}), _start_of(config)
    if then != now:
        steps = (f"step {start['step']} (sha256 {start['sha256'][:12]})" for start in (then, now))
        raise ConfigError(
            f"config key 'init_from': {config.init_from} is not what {workdir} started from: "
            f"{' there, '.join(steps)} now"
        )


def _start_of(config: Config) -> dict[str, Any]:
    checkpoint = Path(config.init_from)
    if (step := latest_step(checkpoint)) is None:
        raise ConfigError(f"config key 'init_from': no checkpoint in {checkpoint}")
    sums = checkpoint / str(step) / CHECKSUMS
    if not sums.is_file():
        raise CheckpointError(f"the checkpoint {sums.parent} is damaged ({CHECKSUMS} is missing)")
    return {"step": step, "sha256": sha256(sums)}


def starting_params(
    config: Config, mesh: Mesh, wanted: Callable[[str], bool] = lambda path: True
) -> tuple[nnx.GraphDef, Any]:
    """The model as the run starts: fresh arrays each time, the same numbers each time.

    What the backbone does not have (adapters, the projector of features) is drawn at random.

    Args:
      wanted: which parameters are made, by dotted path.

    Raises:
      CheckpointError: the backbone's files do not fit.
    """
    if config.init_from:
        checkpoint = Path(config.init_from)
        params = stage_params(read_stage(checkpoint), run_of(checkpoint), mesh, checkpoint.name, wanted)
        return abstract_model(config.model, mesh)[0], params
    if not config.backbone:
        return init_params(config.model, config.seed, mesh, lambda params: select_params(params, wanted))
    directory = Path(config.backbone)
    _, abstract = abstract_model(config.model, mesh)
    _, rest = split_params(abstract, ()) if config.model.lora else ({}, abstract)
    params = load_weights(directory, config.model, published_part(rest), wanted)
    if (directory / PROJECTOR_FILE).is_file() and config.model.features:
        params |= select_params(load_projector(directory, rest), wanted)
    there = set(flatten(params))

    def missing(tree: Any) -> Any:
        return select_params(tree, lambda path: wanted(path) and path not in there)

    graphdef, drawn = init_params(config.model, config.seed, mesh, missing)
    return graphdef, merge_params(drawn, params)


@dataclasses.dataclass(frozen=True)
class RunModel:
    """The model of a run, between stages.

    Attributes:
      graphdef: its structure.
      trainable: shapes and shardings of the part that trains; its numbers belong to the stages.
      frozen: the rest, the same arrays in every stage; {} where everything trains.
    """

    graphdef: nnx.GraphDef
    trainable: Any
    frozen: Any


def open_model(config: Config, mesh: Mesh) -> RunModel:
    """Loads what no stage of a run changes.

    Raises:
      CheckpointError: the files it comes from do not fit.
    """
    graphdef, abstract = abstract_model(config.model, mesh)
    trainable, frozen = split_params(abstract, config.trainable)
    return RunModel(graphdef, trainable, _starting(config, mesh, frozen))


def starting_trainable(config: Config, mesh: Mesh) -> Any:
    """The part that trains as the run starts: fresh arrays at each call, the same numbers each time."""
    return _starting(config, mesh, split_params(abstract_model(config.model, mesh)[1], config.trainable)[0])


def _starting(config: Config, mesh: Mesh, part: Any) -> Any:
    return starting_params(config, mesh, set(flatten(part)).__contains__)[1] if part else {}


def describe(config: Config) -> dict[str, Any]:
    """What a checkpoint says about itself: the model, and which part of its parameters it holds."""
    return {"model": config.model, "trainable": config.trainable}


def stage_trainable(config: Config, workdir: Path, mesh: Mesh, stage: str) -> Any:
    """The part that trains as a stage left it in its newest checkpoint: fresh arrays at each call.

    Raises:
      CheckpointError: the stage has no checkpoint, or one that is damaged or of another model.
    """
    trainable, _ = split_params(abstract_model(config.model, mesh)[1], config.trainable)
    return load_params(workdir / "checkpoints" / stage, trainable, describe(config))


def stage_params(
    config: Config, workdir: Path, mesh: Mesh, stage: str, wanted: Callable[[str], bool] = lambda path: True
) -> Any:
    """The parameters as a stage left them; what is frozen comes from where the run started.

    Args:
      wanted: which parameters, by dotted path.

    Raises:
      CheckpointError: as `stage_trainable`, or the backbone has changed.
      ConfigError: the stage of another run where it started has changed.
    """
    trainable, frozen = split_params(abstract_model(config.model, mesh)[1], config.trainable)
    trained = stage_trainable(config, workdir, mesh, stage) if any(map(wanted, flatten(trainable))) else {}
    if frozen := select_params(frozen, wanted):
        check_start(workdir, config)
    return merge_params(select_params(trained, wanted), _starting(config, mesh, frozen))


@dataclasses.dataclass(frozen=True)
class TrainedStage:
    """What a stage of a run left, without its data.

    Attributes:
      config: of the run.
      workdir: of the run.
      name: of the stage.
      graphdef, params: the model, adapters merged into the weights.
      processor: makes its inputs.
    """

    config: Config
    workdir: Path
    name: str
    graphdef: nnx.GraphDef
    params: Any
    processor: Processor


def open_stage(checkpoint: Path, mesh: Mesh) -> TrainedStage:
    """Opens `RUN/checkpoints/STAGE`; the model's adapters are merged.

    Raises:
      ConfigError: `checkpoint` is not a stage of a run.
      CheckpointError: the stage has no checkpoint, or one of another model.
    """
    workdir = run_of(checkpoint)
    config = read_stage(checkpoint)
    params = stage_params(config, workdir, mesh, checkpoint.name)
    model = config.model
    if model.lora is not None:
        params = merge_lora(params, model.lora)
        model = dataclasses.replace(model, lora=None)
    graphdef, _ = abstract_model(model, mesh)
    processor = read_processor(workdir, model)
    return TrainedStage(dataclasses.replace(config, model=model), workdir, checkpoint.name, graphdef, params, processor)


def read_processor(workdir: Path, model: ModelConfig) -> Processor:
    """The processor of a run.

    Raises:
      CheckpointError: its files are missing, damaged or of another family.
    """
    try:
        return Processor.from_directory(workdir / PROCESSOR, model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the processor of the run cannot be read: {error}") from error


def read_kept(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object that a run keeps in a file of its workdir, which must have these keys and types.

    Raises:
      ConfigError: the file is damaged; names it.
    """
    try:
        found = read_json_object(path)
    except (OSError, ValueError) as error:  # names the file
        raise ConfigError(str(error)) from error
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise ConfigError(f"{path} is damaged: its {key!r} is {found.get(key)!r:.80}")
    return found


def read_report(workdir: Path) -> dict[str, Any]:
    """`report.json` of a run, {} where it has none yet. Raises as `read_kept`."""
    path = workdir / "report.json"
    return read_kept(path, {}) if path.is_file() else {}
