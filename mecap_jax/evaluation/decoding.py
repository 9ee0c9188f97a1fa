"""Greedy captions of many clips, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mecap_jax.data.pipeline import CaptionDataset
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.generation.sampler import generate
from mecap_jax.sharding import put_batch


def caption_rows(
    graphdef: nnx.GraphDef,
    params: Any,
    dataset: CaptionDataset,
    rows: Sequence[int],
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_clips: int,
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, str]:
    """Captions every row greedily; the same on every process.

    Returns captions by row. A clip that cannot be decoded has none.
    """
    captions: dict[int, str] = {}
    process = (jax.process_index(), jax.process_count())
    for batch in dataset.evaluation_batches(rows, batch_clips, process):
        generation = generate(
            graphdef,
            params,
            put_batch(batch.prompt, mesh),
            np.zeros(2, np.uint32),
            put_batch(batch.rows, mesh),
            group_size=1,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            end_ids=tokenizer.end_ids,
        )
        parts = (generation.tokens[:, 0], generation.length[:, 0], put_batch((batch.rows, batch.valid), mesh))
        tokens, lengths, (numbers, valid) = multihost_utils.process_allgather(parts, tiled=True)
        for ids, length, row, counts in zip(tokens, lengths, numbers, valid):
            if counts:
                captions[int(row)] = tokenizer.decode(ids[:length])
        progress(len(captions))
    return captions
