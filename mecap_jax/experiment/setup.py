"""What a run needs before its first step: devices, shards, tokenizer, sentence encoder, anchors."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import jax
import numpy as np

from mecap_jax.config import Config, ConfigError, stage_config, validate_devices
from mecap_jax.data.checks import remark_on_length
from mecap_jax.data.importers import ImporterError, prepare
from mecap_jax.data.manifest import SCHEMA_VERSION, read_manifest
from mecap_jax.data.pipeline import ClipDataset, DataError
from mecap_jax.data.processor import Processor
from mecap_jax.data.processor_settings import ProcessorSettings
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.data.tokenizer import Tokenizer, train_tokenizer
from mecap_jax.data.training_facts import TrainingFacts, gather_facts, read_facts
from mecap_jax.distributed import first_process
from mecap_jax.emotions import EMOTIONS
from mecap_jax.evaluation.predictions import PredictionsError
from mecap_jax.evaluation.report import ReportError
from mecap_jax.experiment.backbone import check_backbone
from mecap_jax.experiment.checks import check_stages, check_trainable, checked_against
from mecap_jax.experiment.forecast import first_forecast
from mecap_jax.experiment.weights import (
    PROCESSOR,
    check_init_from,
    check_start,
    note_start,
    read_processor,
    read_run,
    run_of,
)
from mecap_jax.experiment.workbench import Workbench
from mecap_jax.experiment.workdir import cache_of, check_same, claim, claim_data, data_of, is_claimed
from mecap_jax.json_files import to_json
from mecap_jax.locking import LockedError
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.models.sentence_encoder import SentenceEncoder, SentenceEncoderError, load_sentence_encoder
from mecap_jax.rewards.anchors import Anchors, AnchorsError, build_anchors, captions_by_label, check_encoder
from mecap_jax.rewards.base import RewardError
from mecap_jax.rewards.templates import template_sentences
from mecap_jax.sharding import fitting_mesh, make_mesh
from mecap_jax.tasks.registry import make_task
from mecap_jax.training.logging import RunLogger
from mecap_jax.training.loop import NonFiniteError

SYNTHETIC = "synthetic"  # the importer that needs no input
ANCHORS = "anchors.safetensors"

# What a user can mend: shown as one message, without a traceback.
USER_ERRORS = (
    AnchorsError,
    CheckpointError,
    ConfigError,
    DataError,
    ImporterError,
    LockedError,
    NonFiniteError,
    PredictionsError,
    ReportError,
    RewardError,
    SentenceEncoderError,
    ShardError,
)


def set_up(config: Config, workdir: Path, logger: RunLogger) -> Workbench:
    """Prepares a run; what an earlier run left in `workdir` and `cache/` is used again.

    `workdir` becomes this run's when all is prepared. What fails before that can be repeated with other settings.

    Raises:
      ConfigError: the mesh does not fit, a pattern matches no parameter, a custom reward, the encoder or its anchors
        cannot be loaded, or `workdir` belongs to a run with another configuration.
      ShardError, DataError: the data cannot be used.
      AnchorsError: the anchors belong to another encoder.
    """
    asked, resumed = config, is_claimed(workdir)
    validate_devices(config, jax.device_count())
    check_backbone(config)
    check_init_from(config)
    for remark in check_trainable(config):
        logger.say(remark)
    stored = check_same(workdir, config) if resumed else None
    if resumed:
        check_start(workdir, config)
    if config.grpo is not None:
        make_task(config).check_rewards(config.grpo.reward)
    encoder = load_encoder(config)
    if not jax.config.jax_compilation_cache_dir:
        compiled = cache_of(workdir).parent / Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    directory = shards_directory(config, cache_of(workdir))
    kept = data_of(workdir) if stored and shards_directory(stored, cache_of(workdir)) == directory else None
    if kept and not config.data.path and kept.is_dir():
        # A run goes on with what it began with, wherever it is started from, and whatever its settings give today.
        directory = kept
    else:
        if not config.data.path and (config.data.source or SYNTHETIC) == SYNTHETIC and not directory.is_dir():
            ahead = first_forecast(config, workdir, make_mesh(config.mesh))
            logger.say(f"{config.name}: {ahead}, compilation not counted")
        first_process(lambda: build_shards(config, directory))
    reader = ShardReader(directory)
    config = checked_against(reader, config, logger)
    first_process(lambda: claim_data(workdir, reader))
    if not resumed:
        first_process(lambda: note_start(workdir, config))
        first_process(lambda: save_processor(config, reader, workdir / PROCESSOR))
    if not resumed and not config.encoder.anchors:
        first_process(lambda: make_anchors(config, reader, encoder).save(workdir / ANCHORS))
    facts = read_facts(workdir) if resumed else None
    bench = _assemble(config, workdir, reader, encoder, logger, facts, config.answer_tokens)
    logger.say(bench.dataset.describe_shapes())
    check_stages(bench)
    train = [reader.index[number] for number in bench.dataset.clips("train")]
    first_process(lambda: claim(workdir, asked, gather_facts(train, bench.config.data)))
    return bench


def load_encoder(config: Config) -> SentenceEncoder:
    """The sentence encoder, which the anchors that are asked for, if any, were built with.

    Raises:
      ConfigError: names the key of what cannot be loaded.
    """
    try:
        encoder = load_sentence_encoder(config.encoder.path)
    except (CheckpointError, SentenceEncoderError) as error:
        raise ConfigError(f"config key 'encoder.path': {error}") from error
    if config.encoder.anchors:
        try:
            check_encoder(Anchors.load(config.encoder.anchors), encoder)
        except AnchorsError as error:
            raise ConfigError(f"config key 'encoder.anchors': {error}") from error
    return encoder


def reopen(workdir: Path, data: Path | None, logger: RunLogger, stage: str = "", wheels: str = "") -> Workbench:
    """The bench of a run that is already in `workdir`, over its own data or over the shards in `data`.

    With `stage` it is that stage's, which may be a row of comparison, and with `wheels` these emotion wheels take the
    place of the run's. Clips of other data that cannot be used are left
    out and counted, however many they are.

    Its mesh is of the devices that are there, whatever the run was trained on. Other data are seen as training saw its
    own: the same modalities, no more of a long clip, and the run's shapes, with one more where they hold what those do
    not.

    Raises:
      ConfigError: there is no run.
      ShardError, DataError, AnchorsError: as in `set_up`.
    """
    config = stage_config(read_run(workdir), stage)
    config = dataclasses.replace(config, mesh=fitting_mesh(config.mesh))
    if wheels:
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, wheels=wheels))
    if data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_fraction=1.0))
    reader = ShardReader(data or data_of(workdir) or shards_directory(config, cache_of(workdir)))
    # Other data are captioned only; its own are left as training had them.
    longest = config.longest_answer if data else config.answer_tokens
    bench = _assemble(config, workdir, reader, load_encoder(config), logger, read_facts(workdir), longest)
    if data and (remark := remark_on_length(bench.dataset.index, config.data.max_seconds)):
        logger.say(remark)
    return bench


def _assemble(
    config: Config,
    workdir: Path,
    reader: ShardReader,
    encoder: SentenceEncoder,
    logger: RunLogger,
    facts: TrainingFacts | None,
    answer_tokens: int,
) -> Workbench:
    tokenizer = read_processor(workdir, config.model).tokenizer
    if tokenizer.vocab_size > config.model.decoder.vocab_size:
        raise ConfigError(
            f"config key 'model.decoder.vocab_size': {config.model.decoder.vocab_size} is smaller than the "
            f"tokenizer's vocabulary of {tokenizer.vocab_size} ({workdir / PROCESSOR})"
        )
    task = make_task(config)
    known = facts.buckets if facts else ()
    dataset = ClipDataset(reader, config.data, config.model, tokenizer, task, known, answer_tokens)
    config = dataclasses.replace(config, data=dataset.config)
    anchors = Anchors.load(config.encoder.anchors or workdir / ANCHORS)
    check_encoder(anchors, encoder)
    mesh = make_mesh(config.mesh)
    return Workbench(config, workdir, mesh, reader, dataset, task, tokenizer, encoder, anchors, logger)


def shards_directory(config: Config, cache: Path) -> Path:
    """Where the run's shards are: `data.path`, or a directory in the cache named after what they are made of."""
    data = config.data
    if data.path:
        return Path(data.path)
    source = data.source or SYNTHETIC
    settings = {"source": source, "input": data.input, "version": SCHEMA_VERSION}
    if source == SYNTHETIC:
        settings |= dataclasses.asdict(data.synthetic)
    digest = hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()[:12]
    return cache / f"{source}-{digest}"


def build_shards(config: Config, directory: Path) -> None:
    """Imports the data where `directory` does not hold them yet and the configuration says what they are made of.

    Raises:
      ShardError: `data.path` holds no shards and no source is named, or it holds those of another source.
      ImporterError: the source cannot be imported.
    """
    data = config.data
    if data.path and not data.source:
        try:
            read_manifest(directory)  # named shards are taken as they are, whatever made them
        except ShardError as error:
            raise ShardError(f"config key 'data.path': {error}") from error
        return
    prepare(
        source=data.source or SYNTHETIC,
        input=Path(data.input) if data.input else None,
        output=directory,
        synthetic=data.synthetic,
        command="scripts/train.py",
        max_bad_fraction=data.max_bad_fraction,
    )


def save_processor(config: Config, reader: ShardReader, directory: Path) -> None:
    """Puts the run's processor into its workdir: the backbone's tokenizer, or one that is trained on the data."""
    data = config.data
    settings = ProcessorSettings(
        image_min_pixels=data.min_pixels,
        image_max_pixels=data.max_pixels,
        video_min_pixels=data.min_pixels,
        video_max_pixels=data.max_pixels,
        fps=data.fps or ProcessorSettings.fps,
        max_frames=data.max_frames,
    )
    if config.init_from:
        tokenizer = Tokenizer.from_directory(run_of(Path(config.init_from)) / PROCESSOR, config.model.family)
    elif config.backbone:
        tokenizer = Processor.from_directory(config.backbone, config.model).tokenizer
    else:
        tokenizer = make_tokenizer(config, reader)
    temporary = directory.with_suffix(".tmp")
    for stale in (temporary, directory):  # of a run that never began
        shutil.rmtree(stale, ignore_errors=True)
    Processor(tokenizer, config.model, settings).save(temporary)
    temporary.replace(directory)


def make_tokenizer(config: Config, reader: ShardReader) -> Tokenizer:
    """A tokenizer trained on what the model reads and writes in the train split: captions of all kinds, other answers,
    transcripts and requests."""
    task = make_task(config)
    train = [record for record in reader.index if record.split == "train"]
    texts = [text for record in train for texts in record.captions.values() for text in texts]
    known = set(texts)
    texts += [text for record in train if not task.usable(record) for text in task.targets(record) if text not in known]
    texts += [text for record in train for text in (record.transcript, task.request(record), "user", "assistant")]
    if config.sft is not None and config.sft.exercises:
        rng = np.random.default_rng(0)
        exercises = filter(None, (task.exercise(record, record, rng) for record in train if not task.usable(record)))
        texts += [text for exercise in exercises for text in (exercise.prompt, exercise.answer)]
    return train_tokenizer(texts, config.model.decoder.vocab_size, config.model.family)


def make_anchors(config: Config, reader: ShardReader, encoder: SentenceEncoder) -> Anchors:
    """Anchors from the train captions of the learnt kind; from template phrases where these tell no emotions apart."""
    captions = captions_by_label(reader.index, "train", config.data.target)
    if len(captions) < 2:
        return build_anchors(encoder, template_sentences(EMOTIONS), kind="templates", source="template phrases")
    return build_anchors(encoder, captions, kind="captions", source=f"{reader.directory}, split train")
