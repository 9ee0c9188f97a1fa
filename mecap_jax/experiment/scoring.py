"""Test captions of a stage, and all their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from mecap_jax.evaluation.decoding import caption_rows
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.stage import Clip, StageResult, score_stage
from mecap_jax.experiment.setup import Workbench
from mecap_jax.rewards.base import Sample, normalise_text
from mecap_jax.rewards.emotion import EmotionReward, emotion_coordinates


def evaluate_stage(
    bench: Workbench,
    name: str,
    graphdef: nnx.GraphDef,
    params: Any,
    rows: Sequence[int],
    max_new_tokens: int,
    meteor: Meteor | None,
) -> StageResult:
    """Captions `rows` greedily and scores the captions; the same clips in the same order for every stage."""
    with bench.logger.progress(f"captions {name}", len(rows)) as progress:
        captions = caption_rows(
            graphdef,
            params,
            bench.dataset,
            rows,
            bench.tokenizer,
            bench.mesh,
            batch_clips=bench.config.evaluation.batch_clips,
            max_new_tokens=max_new_tokens,
            progress=lambda done: progress(done, {}),
        )
    kept = [row for row in rows if row in captions]
    return score_captions(bench, kept, [captions[row] for row in kept], meteor)


def score_captions(
    bench: Workbench, rows: Sequence[int], captions: Sequence[str], meteor: Meteor | None
) -> StageResult:
    """Scores captions of `rows`: n-gram metrics, sentence similarity, emotion by nearest anchor and by first word."""
    dataset, anchors, encoder = bench.dataset, bench.anchors, bench.encoder
    form = bench.config.grpo.reward.form if bench.config.grpo else "centred"
    clips, samples = [], []
    for row, caption in zip(rows, captions):
        entry, references = dataset.index[row], dataset.references(row)
        label = entry.labels.get("multimodal")
        clips.append(Clip(entry.id, entry.speaker, references, label))
        samples.append(Sample(caption, True, "", entry.id, references, label, len(samples)))
    embeddings = encoder.encode([normalise_text(caption) for caption in captions])
    rewards = EmotionReward(encoder, anchors, form)(samples)
    return score_stage(
        clips,
        captions,
        anchors.labels,
        language=bench.config.data.synthetic.caption_language if bench.config.data.source == "synthetic" else "en",
        encode=encoder.encode,
        coordinates=emotion_coordinates(embeddings, anchors, form),
        rewards=np.array([0.0 if value is None else value for value in rewards]),
        meteor=meteor,
    )
