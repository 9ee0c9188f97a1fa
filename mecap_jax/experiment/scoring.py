"""Captions of a stage, and all their metrics."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from mecap_jax.config import Config, ConfigError, MeshConfig, TaskConfig
from mecap_jax.data.pipeline import ClipDataset
from mecap_jax.data.shards import ShardReader, summarise_bad
from mecap_jax.data.utterance import SPLITS
from mecap_jax.evaluation.decoding import Caption, greedy_captions
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.predictions import are_scored, bare_prediction, predictions, read_captions, write_predictions
from mecap_jax.evaluation.stage import NEAREST_ANCHOR, StageResult
from mecap_jax.experiment.published import check_published, open_published, published_settings
from mecap_jax.experiment.setup import make_anchors, reopen
from mecap_jax.experiment.weights import run_of, stage_params
from mecap_jax.experiment.workbench import Workbench
from mecap_jax.models.checkpoints.hub_config import CONFIG_FILE
from mecap_jax.models.sentence_encoder import load_sentence_encoder
from mecap_jax.sharding import make_mesh
from mecap_jax.tasks.base import Answer
from mecap_jax.tasks.labels import OPEN
from mecap_jax.tasks.registry import make_task
from mecap_jax.train_state import abstract_model
from mecap_jax.training.checkpointing import latest_step
from mecap_jax.training.logging import RunLogger

EVALUATIONS = "evaluations"  # in a workdir: what each stage said
RANDOM_TEXT = "tokens drawn evenly from the vocabulary, for each clip as many as its first reference has"


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path | None,
    split: str,
    logger: RunLogger,
    *,
    wheels: str = "",
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All metrics of a model on a split of its own or other data.

    Returns a JSON tree: "eval" and "confidence" by metric as in `report.json`, "unavailable" with reasons, "captions"
    by clip id, and what was evaluated; and the rows of `predictions.jsonl`.

    Args:
      checkpoint: a stage of a run, `RUN/checkpoints/STAGE`, whose newest checkpoint is taken, or a directory in the
        Hugging Face layout: as it comes, it is asked as a run would ask it.
      wheels: file of emotion wheels; "" takes the run's. An export has none of its own.
      keep: told the captions, as bare rows of predictions, before they are scored.

    Raises:
      ConfigError: `checkpoint` is neither, there are no data, or the split has no clips; or answers are words of an
        open vocabulary and there are no wheels, or captions and there are some.
      CheckpointError: the stage has no checkpoint, or files do not fit.
    """
    open_model = _open_published if (checkpoint / CONFIG_FILE).is_file() else _open_stage
    bench, graphdef, params, longest = open_model(checkpoint, data, wheels, logger)
    if left_out := bench.dataset.quarantined if data else ():
        logger.say(f"{len(left_out)} clips are left out:\n{summarise_bad(left_out)}")
    clips = {name: bench.dataset.clips(name) for name in SPLITS}
    known = {name: [n for n in them if bench.task.can_evaluate(bench.dataset.index[n])] for name, them in clips.items()}
    numbers = known[split]
    if silent := len(clips[split]) - len(numbers):
        logger.say(f"{silent} clips are left out: nothing is known that an answer could be held against")
    if not numbers:
        others = [name for name in SPLITS if known[name]]
        raise ConfigError(
            f"--split: {bench.reader.directory} has no usable clip in split {split!r}, only in {', '.join(others)}"
        )
    step = None if open_model is _open_published else latest_step(checkpoint)
    with Meteor(ahead=bench.task.asks_meteor) as meteor:
        captions = caption_stage(bench, checkpoint.name, graphdef, params, numbers, longest)
        if keep is not None:
            keep([bare_prediction(bench.dataset.index[n].id, step, caption) for n, caption in captions.items()])
        result = score_captions(bench, captions, meteor)
    options = bench.config.evaluation
    # Where answers name a class of a label set, clips of other labels have been left out.
    by_anchor = result.reading == NEAREST_ANCHOR
    labels = [clip.label for clip in result.clips if by_anchor and clip.label]
    unseen = Counter(label for label in labels if label not in bench.anchors.labels)
    if unseen:
        counts = ", ".join(f"{label} ({count} clips)" for label, count in unseen.most_common())
        logger.say(f"labels that training never saw, counted as missed by nearest anchor: {counts}")
    summary = {
        "checkpoint": str(checkpoint),
        "data": str(bench.reader.directory),
        "split": split,
        "clips": len(result.clips),
        "speakers": len({clip.cluster for clip in result.clips}),
        "unseen_labels": dict(unseen),
        "quarantined": [dataclasses.asdict(clip) for clip in bench.dataset.quarantined],
        "eval": result.metrics,
        "confidence": result.confidence(options.bootstrap, options.confidence, bench.config.seed),
        "unavailable": dict(result.unavailable),
        "captions": {clip.id: caption for clip, caption in zip(result.clips, result.captions)},
    }
    return summary, predictions(result, [caption.finished for caption in captions.values()], step)


def _open_stage(
    checkpoint: Path, data: Path | None, wheels: str, logger: RunLogger
) -> tuple[Workbench, nnx.GraphDef, Any, int]:
    bench = reopen(run_of(checkpoint), data, logger, checkpoint.name, wheels)
    _check_wheels(bench.config.task, wheels)
    graphdef, _ = abstract_model(bench.config.model, bench.mesh)
    params = stage_params(bench.config, bench.workdir, bench.mesh, checkpoint.name)
    return bench, graphdef, params, bench.config.longest_answer


def _open_published(
    directory: Path, data: Path | None, wheels: str, logger: RunLogger
) -> tuple[Workbench, nnx.GraphDef, Any, int]:
    """Anchors come from the train captions of the data, as in a run."""
    check_published(directory)
    if data is None:
        raise ConfigError(f"--data: {directory} is no run, so name the shards that it is to caption")
    reader, mesh = ShardReader(data), make_mesh(MeshConfig())
    found = open_published(directory, mesh)
    config = Config(
        directory.name,
        found.model,
        backbone=str(directory),
        data=dataclasses.replace(published_settings(found.processor, found.trained), max_bad_fraction=1.0),
        task=dataclasses.replace(found.trained.task if found.trained else TaskConfig(), wheels=wheels),
    )
    _check_wheels(config.task, wheels)
    encoder, tokenizer = load_sentence_encoder(), found.processor.tokenizer
    task = make_task(config)
    longest = found.trained.max_new_tokens if found.trained else config.longest_answer
    dataset = ClipDataset(reader, config.data, config.model, tokenizer, task, answer_tokens=longest)
    config = dataclasses.replace(config, data=dataset.config)
    anchors = make_anchors(config, reader, encoder)
    bench = Workbench(config, directory, mesh, reader, dataset, task, tokenizer, encoder, anchors, logger)
    return bench, found.graphdef, found.params, longest


def _check_wheels(task: TaskConfig, named: str) -> None:
    """Answers in any words need emotion wheels to be compared, and captions have no use for them."""
    if task.name == "recognition" and task.labels == OPEN and not task.wheels:
        raise ConfigError(
            "--wheels: the model answers in words of an open vocabulary, which emotion wheels compare, and none are "
            "known: name their file"
        )
    if task.name != "recognition" and named:
        raise ConfigError(f"--wheels: the model writes captions, which are not compared by the wheels {named!r}")


def evaluate_stage(
    bench: Workbench,
    stage: str,
    numbers: Sequence[int],
    meteor: Meteor,
    caption: Callable[[], Mapping[int, Caption]],
    condition: str = "",
) -> StageResult:
    """Scores what a finished stage says of the clips of these numbers.

    The captions are those that the workdir keeps of the stage's newest checkpoint. Where they are not there,
    `caption` makes them, and they are kept before they are scored.

    Args:
      condition: what the model got to see, where that was not everything, or which clips these are.
    """
    path = predictions_file(bench, stage, condition)
    step = latest_step(bench.workdir / "checkpoints" / stage)
    by_id = {bench.dataset.index[number].id: number for number in numbers}
    kept = read_captions(path, step)
    known = by_id.keys() <= kept.keys()
    said = {number: kept[name] for name, number in by_id.items()} if known else caption()
    captions = {number: one for number, one in said.items() if one is not None}
    bare = [bare_prediction(name, step, captions.get(number)) for name, number in by_id.items()]
    if not known:
        _write(path, bare)  # whatever becomes of their scores
    result = score_captions(bench, captions, meteor)
    if not (known and are_scored(path)):
        rows = predictions(result, [caption.finished for caption in captions.values()], step)
        _write(path, rows + [row for row in bare if row["caption"] is None])
    return result


def predictions_file(bench: Workbench, stage: str, condition: str = "") -> Path:
    """Where a run keeps what a stage said; `condition` as in `evaluate_stage`."""
    return bench.workdir / EVALUATIONS / f"{'.'.join(filter(None, (stage, condition)))}.predictions.jsonl"


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if jax.process_index() == 0:
        write_predictions(path, rows)


def caption_stage(
    bench: Workbench, name: str, graphdef: nnx.GraphDef, params: Any, numbers: Sequence[int], max_new_tokens: int
) -> dict[int, Caption]:
    """Greedy captions of the clips of these numbers, in their order; a clip that cannot be decoded has none."""
    config = bench.config
    with bench.logger.progress(f"captions {name}", len(numbers)) as progress:
        captions = greedy_captions(
            graphdef,
            bench.sampling(params),
            bench.dataset,
            numbers,
            bench.tokenizer,
            bench.mesh,
            batch_clips=config.evaluation.batch_clips,
            max_new_tokens=max_new_tokens,
            progress=lambda done: progress(done, {}),
        )
    return {number: captions[number] for number in numbers if number in captions}


def random_text(
    bench: Workbench, numbers: Sequence[int], references: Mapping[str, Sequence[str]]
) -> dict[int, Caption]:
    """Text that says nothing, of the clips of these numbers: `RANDOM_TEXT`. It is what random weights sample, but for
    its length: theirs never ends, which earns nothing.

    Args:
      references: by the clip's id.
    """
    tokenizer, generator = bench.tokenizer, np.random.default_rng(bench.config.seed)
    found = {}
    for number in numbers:
        known = references[bench.dataset.index[number].id]
        length = len(tokenizer.encode(known[0])) if known else bench.config.longest_answer
        ids = generator.integers(tokenizer.vocab_size, size=length).tolist()
        found[number] = Caption(tokenizer.decode(ids), True, length)
    return found


def score_captions(bench: Workbench, captions: Mapping[int, Caption], meteor: Meteor) -> StageResult:
    """Scores what was said of the clips of these numbers, as the run's task does."""
    index = bench.dataset.index
    answers = [Answer(index[number], caption.text, caption.finished) for number, caption in captions.items()]
    return bench.task.evaluate(answers, bench.judges, meteor)
