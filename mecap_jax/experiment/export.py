"""From a stage of a run to a directory that `transformers` loads: configuration, processor, weights, model card."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mecap_jax.config import Config, ConfigError, MeshConfig, stage_config
from mecap_jax.data.building import building, remove_unfinished
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.evaluation.model_card import CARD_FILE, Export, render_card
from mecap_jax.experiment.backbone import check_backbone
from mecap_jax.experiment.setup import shards_directory
from mecap_jax.experiment.trained_task import TrainedTask
from mecap_jax.experiment.weights import (
    PROCESSOR,
    describe,
    open_stage,
    read_kept,
    read_report,
    read_run,
    read_stage,
    run_of,
)
from mecap_jax.experiment.workdir import cache_of, data_of
from mecap_jax.families import FAMILIES
from mecap_jax.json_files import write_json
from mecap_jax.models.checkpoints.bart import start_fields
from mecap_jax.models.checkpoints.config_reader import omni_thinker
from mecap_jax.models.checkpoints.config_writer import for_earlier_versions, format_config, within_omni
from mecap_jax.models.checkpoints.hub import save_model, save_projector
from mecap_jax.models.checkpoints.hub_config import CONFIG_FILE, read_config, read_json
from mecap_jax.models.checkpoints.peft import save_peft
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.parameters import split_params
from mecap_jax.sharding import make_mesh
from mecap_jax.tasks.registry import make_task
from mecap_jax.train_state import abstract_model
from mecap_jax.training.checkpointing import latest_step, load_params

DTYPES = ("float32", "bfloat16", "float16")
_GENERATION_FILE = "generation_config.json"


def export_stage(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str | None = None,
    adapter_only: bool = False,
    whole_omni: bool = False,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes what the newest checkpoint of `RUN/checkpoints/STAGE` holds into a new directory, adapters merged.

    `output` appears as a whole or not at all.

    Args:
      dtype: of the tensors; None takes the backbone's, or without one the model's own.
      adapter_only: writes the adapters by themselves, in PEFT's layout.
      whole_omni: writes a Qwen2.5-Omni's thinker inside the layout of a whole one, which vLLM asks for.
      max_shard_bytes: a file of weights is no larger, unless a single tensor is.

    Raises:
      ConfigError: `checkpoint` is not a stage of a run, or has another decoder than the run; `output` holds something,
        or there are no adapters that could stand by themselves.
      CheckpointError: the stage has no checkpoint, or one of another model; the backbone's files do not fit, or values
        do not fit the dtype.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"--output: {output} is there already; choose another, or delete it")
    workdir = run_of(checkpoint)
    config = read_stage(checkpoint)
    if config.model != read_run(workdir).model:
        raise ConfigError(
            f"--checkpoint: {checkpoint.name} is a row of comparison with another 'model.decoder' than the run's, for "
            f"which the layout of {config.model.family} has no place"
        )
    if whole_omni and (adapter_only or config.model.family != "qwen2_5_omni"):
        raise ConfigError("--whole_omni is a layout of Qwen2.5-Omni's weights; this would be something else")
    check_backbone(config)
    # Whatever the run's mesh was: here every device holds a part of every tensor.
    mesh = make_mesh(MeshConfig(fsdp=jax.device_count()))
    if adapter_only:
        _check_adapters(config, mesh)
        dtype = "float32"  # as they train
    elif dtype is None:
        dtype = read_config(Path(config.backbone)).param_dtype if config.backbone else config.model.param_dtype
    with _at_once(output) as directory:
        shutil.copytree(workdir / PROCESSOR, directory, dirs_exist_ok=True)
        if adapter_only:
            _write_adapters(config, checkpoint, mesh, directory)
        else:
            _write_model(config, checkpoint, mesh, directory, dtype, whole_omni, max_shard_bytes)
        trained = stage_config(config, checkpoint.name)
        TrainedTask.of(trained).save(directory)
        task = make_task(trained)
        export = Export(
            config=config,
            stage=checkpoint.name,
            instruction=task.request(None),
            about=task.about(trained),
            steps=latest_step(checkpoint),
            dtype=dtype,
            adapters=adapter_only,
            report=read_report(workdir),
            data=_data_facts(config, workdir),
            base=config.backbone,
        )
        (directory / CARD_FILE).write_text(render_card(export), encoding="utf-8")


@contextlib.contextmanager
def _at_once(output: Path) -> Iterator[Path]:
    """A directory beside `output` that takes its place when the block ends well, and is gone when it does not.

    Raises:
      ConfigError: another export has taken the place meanwhile.
    """
    output = output.absolute()
    remove_unfinished(output.parent)
    with building(output) as unfinished:
        yield unfinished
        try:
            unfinished.replace(output)  # an empty directory gives way
        except OSError as error:
            if output.exists():
                raise ConfigError(f"--output: {output} is there now: another export has made it meanwhile") from error
            raise


# --- whole weights -------------------------------------------------------------------------------------------------


def _write_model(
    config: Config, checkpoint: Path, mesh: Mesh, directory: Path, dtype: str, whole: bool, max_shard_bytes: int
) -> None:
    tokenizer = Tokenizer.from_directory(directory, config.model.family)
    source = Path(config.backbone) if config.backbone else None
    fields = _model_config(config, tokenizer, dtype)
    write_json(directory / CONFIG_FILE, within_omni(fields) if whole else fields)
    write_json(directory / _GENERATION_FILE, _generation_ids(tokenizer, source) | start_fields(config.model))
    stage = open_stage(checkpoint, mesh)
    prefix = "thinker." if whole else ""
    save_model(directory, stage.config.model, stage.params, source, max_shard_bytes, dtype, prefix)


def _model_config(config: Config, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """`config.json`: the backbone's own in this dtype, or one that says what the network and its tokens are."""
    family = FAMILIES[config.model.family]
    ids = {field: tokenizer.special(getattr(family.media, token)) for field, token in family.media_ids.items()}
    if not config.backbone:
        ids |= {"bos_token_id": None, **_own_ids(tokenizer)}
        return format_config(dataclasses.replace(config.model, param_dtype=dtype), ids)
    theirs = _in_dtype(omni_thinker(read_json(Path(config.backbone) / CONFIG_FILE)), dtype)
    # What transformers 5 saved does not say where pictures start, and its positions of videos ask for it.
    theirs = {name: ids[name] for name in ("vision_start_token_id", "vision_end_token_id") if name in ids} | theirs
    theirs = for_earlier_versions(theirs, config.model.decoder.tie_word_embeddings)
    return theirs | {"architectures": [family.architecture], "dtype": dtype}


def _in_dtype(fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The fields with this dtype wherever they name one, and without the path that they were once loaded from."""
    changed = {}
    for name, value in fields.items():
        if name in ("dtype", "torch_dtype"):
            changed["dtype"] = dtype
        elif name != "_name_or_path":
            changed[name] = _in_dtype(value, dtype) if isinstance(value, Mapping) else value
    return changed


def _own_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}


def _generation_ids(tokenizer: Tokenizer, source: Path | None) -> dict[str, Any]:
    """Ids for `generate`: the backbone's, where they end an answer where training did."""
    ours = _own_ids(tokenizer)
    if source is None or not (source / _GENERATION_FILE).is_file():
        return ours
    fields = read_json(source / _GENERATION_FILE)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    theirs = {name: fields[name] for name in names if fields.get(name) is not None}
    ends = theirs.get("eos_token_id")
    return ours | theirs if tokenizer.end_ids[0] in (ends if isinstance(ends, list) else [ends]) else ours


# --- adapters ------------------------------------------------------------------------------------------------------


def _check_adapters(config: Config, mesh: Mesh) -> None:
    """Checks that adapters (and what is no part of the backbone) are all that was trained.

    Raises:
      ConfigError: they are not.
    """
    if config.model.lora is None:
        raise ConfigError("--adapter_only: the run trained no adapters (config key 'model.lora')")
    if not config.backbone:
        raise ConfigError("--adapter_only: the run has no backbone that adapters could be put onto; export it whole")
    trained, _ = split_params(abstract_model(config.model, mesh)[1], config.trainable)
    _, others = split_params(trained, ())
    if whole := sorted({path for path in flatten(others) if not path.startswith("feature_projector.")}):
        raise ConfigError(
            f"--adapter_only: the run trained {len(whole)} other parameters, too ({whole[0]}, ...); export it whole"
        )


def _write_adapters(config: Config, checkpoint: Path, mesh: Mesh, directory: Path) -> None:
    """Adapters, and the feature projector where there is one: it is no part of the backbone."""
    trainable, _ = split_params(abstract_model(config.model, mesh)[1], config.trainable)
    trained = load_params(checkpoint, trainable, describe(config))
    save_peft(directory, trained, config.model, config.backbone)
    if config.model.features is not None and "feature_projector" in trained:
        save_projector(directory, config.model, trained)


# --- facts for the card --------------------------------------------------------------------------------------------


def _data_facts(config: Config, workdir: Path) -> Mapping[str, Any]:
    """What the report says of the data; before there is one, what the shards say, if they are still there."""
    if data := read_report(workdir).get("data"):
        return data
    manifest = (data_of(workdir) or shards_directory(config, cache_of(workdir))) / "manifest.json"
    if not manifest.is_file():
        return {}
    fields = read_kept(manifest, {})
    names = "source synthetic datasets speech_languages caption_languages splits licences quarantined".split()
    return {name: fields[name] for name in names if name in fields}
