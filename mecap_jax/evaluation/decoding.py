"""Greedy captions of many clips, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mecap_jax.data.pipeline import ClipBatch, ClipDataset
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.generation.sampler import generate
from mecap_jax.sharding import divide, local_shards, put_batch, shard_count


class Caption(NamedTuple):
    """A caption.

    Attributes:
      text: what is said.
      finished: whether it ended by itself; False where it was cut at the longest length.
      tokens: how long it is, its end included; 0 where that was not kept.
    """

    text: str
    finished: bool
    tokens: int = 0


def greedy_captions(
    graphdef: nnx.GraphDef,
    params: Any,
    dataset: ClipDataset,
    numbers: Sequence[int],
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    batch_clips: int,
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, Caption]:
    """Captions every clip greedily; the same on every process.

    At most `batch_clips` are on a device at a time (0: all). Returns captions by the clip's number. A clip that cannot
    be decoded has none.
    """
    captions: dict[int, Caption] = {}
    for batch in spread_evaluation(dataset, numbers, mesh, batch_clips):
        numbers, valid = put_batch((batch.numbers, batch.valid), mesh)
        generation = generate(
            graphdef,
            params,
            put_batch(batch.prompt, mesh),
            np.zeros(2, np.uint32),
            numbers,
            valid=valid,
            group_size=1,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            end_ids=tokenizer.end_ids,
        )
        own = (generation.tokens[:, 0], generation.length[:, 0], generation.finished[:, 0])
        gathered = multihost_utils.process_allgather((*own, numbers, valid), tiled=True)
        for ids, length, finished, number, counts in zip(*gathered):
            if counts:
                captions[int(number)] = Caption(tokenizer.decode(ids[:length]), bool(finished), int(length))
        progress(len(captions))
    return captions


def spread_evaluation(
    dataset: ClipDataset, numbers: Sequence[int], mesh: Mesh, at_once: int, references: int = 0, max_tokens: int = 0
) -> Iterator[ClipBatch]:
    """This process's part of batches that hold every clip once, at most `at_once` on a device (0: all)."""
    size, places = evaluation_places(len(numbers), mesh, at_once)
    return dataset.evaluation_batches(numbers, size, places, references, max_tokens)


def evaluation_places(count: int, mesh: Mesh, at_once: int) -> tuple[int, np.ndarray]:
    """How many of `count` rows make a batch with at most `at_once` on a device, and which ones this process reads."""
    size = divide(count, mesh, at_once).size * shard_count(mesh)
    (places,) = divide(size, mesh).places(local_shards(mesh))
    return size, places
