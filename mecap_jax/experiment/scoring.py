"""Captions of a stage, and all their metrics."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mecap_jax.config import ConfigError
from mecap_jax.evaluation.decoding import Caption, caption_rows
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.stage import Clip, StageResult, score_stage
from mecap_jax.experiment.setup import Workbench, reopen
from mecap_jax.experiment.weights import run_of, stage_params
from mecap_jax.rewards.base import Sample, normalise_text
from mecap_jax.rewards.emotion import EmotionReward, emotion_coordinates
from mecap_jax.rewards.validity import is_degenerate
from mecap_jax.train_state import abstract_model
from mecap_jax.training.logging import RunLogger


def evaluate_checkpoint(checkpoint: Path, data: Path | None, split: str, logger: RunLogger) -> dict[str, Any]:
    """All metrics of a stage's newest checkpoint, `RUN/checkpoints/STAGE`, on a split of its own or other data.

    Returns a JSON tree: "eval" and "confidence" by metric as in `report.json`, "unavailable" with reasons, "captions"
    by clip id, and what was evaluated.

    Raises:
      ConfigError: `checkpoint` is not a stage of a run, or the split has no clips.
      CheckpointError: the stage has no checkpoint, or one of another model.
    """
    bench = reopen(run_of(checkpoint), data, logger)
    if checkpoint.name == "text_only":
        bench = bench.with_data(bench.dataset.with_modalities(()))
    rows = bench.dataset.rows(split)
    if not rows:
        raise ConfigError(f"--split: {bench.reader.directory} has no usable clip in split {split!r}")
    graphdef, _ = abstract_model(bench.config.model, bench.mesh)
    params = stage_params(bench.config, bench.workdir, bench.mesh, checkpoint.name)
    with open_meteor() as meteor:
        result = evaluate_stage(bench, checkpoint.name, graphdef, params, rows, meteor)
    options = bench.config.evaluation
    unseen = Counter(clip.label for clip in result.clips if clip.label and clip.label not in bench.anchors.labels)
    if unseen:
        counts = ", ".join(f"{label} ({count} clips)" for label, count in unseen.most_common())
        logger.say(f"labels that training never saw, counted as missed by nearest anchor: {counts}")
    return {
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


@contextlib.contextmanager
def open_meteor():
    """A running METEOR, or None on a machine without Java, where the metric is reported as unavailable."""
    try:
        meteor = Meteor()
    except (FileNotFoundError, RuntimeError):
        yield None
        return
    with meteor:
        yield meteor


def evaluate_stage(
    bench: Workbench,
    name: str,
    graphdef: nnx.GraphDef,
    params: Any,
    rows: Sequence[int],
    meteor: Meteor | None,
) -> StageResult:
    """Captions `rows` greedily and scores the captions; the same clips in the same order for every stage."""
    config = bench.config
    with bench.logger.progress(f"captions {name}", len(rows)) as progress:
        captions = caption_rows(
            graphdef,
            params,
            bench.dataset,
            rows,
            bench.tokenizer,
            bench.mesh,
            batch_clips=config.evaluation.batch_clips,
            max_new_tokens=config.grpo.max_new_tokens if config.grpo else config.sft.max_target_tokens,
            progress=lambda done: progress(done, {}),
        )
    kept = [row for row in rows if row in captions]
    return score_captions(bench, kept, [captions[row] for row in kept], meteor)


def score_captions(
    bench: Workbench, rows: Sequence[int], captions: Sequence[Caption], meteor: Meteor | None
) -> StageResult:
    """Scores captions of `rows`: n-gram metrics, sentence similarity, emotion by nearest anchor and by first word.

    Degenerate captions earn no emotion reward, as in training.
    """
    dataset, anchors, encoder = bench.dataset, bench.anchors, bench.encoder
    form = bench.config.grpo.reward.form if bench.config.grpo else "centred"
    clips, samples = [], []
    for row, caption in zip(rows, captions):
        entry, references = dataset.index[row], dataset.references(row)
        clips.append(Clip(entry.id, entry.speaker, references, entry.label, entry.caption_language))
        samples.append(Sample(*caption, "", entry.id, references, entry.label, len(samples)))
    texts = [caption.text for caption in captions]
    embeddings = encoder.encode([normalise_text(text) for text in texts])
    rewards = [
        0.0 if value is None or is_degenerate(*caption) else value
        for caption, value in zip(captions, EmotionReward(encoder, anchors, form)(samples))
    ]
    return score_stage(
        clips,
        texts,
        anchors.labels,
        encode=encoder.encode,
        coordinates=emotion_coordinates(embeddings, anchors, form),
        rewards=np.array(rewards),
        meteor=meteor,
    )
