"""This project's trainer as a side of a comparison: `GrpoLearner.step` as a run calls it."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.throughput.decoding import measure_decoding
from benchmarks.throughput.work import Work, batches, read_prompts, reward, versions
from benchmarks.throughput.worker import Parent
from mecap_jax.batch import PromptBatch
from mecap_jax.config import Bucket, GrpoConfig, LossConfig, MeshConfig, OptimizerConfig
from mecap_jax.data.collate import collate
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.processor import Processor
from mecap_jax.data.questions import Asked
from mecap_jax.generation.weights import sampling_params
from mecap_jax.models.checkpoints.hub import load_model, read_model
from mecap_jax.rewards.base import Sample
from mecap_jax.rewards.combine import RewardFunction
from mecap_jax.rl.learner import GrpoLearner
from mecap_jax.rl.rollout import MicroBatch, RolloutEngine
from mecap_jax.sharding import make_mesh, put_batch
from mecap_jax.throughput import peak_flops
from mecap_jax.train_state import abstract_model, abstract_state, init_state, make_optimizer
from mecap_jax.training.profiling import StepTrace

_NEVER = -1  # an id that is no token: completions go on to their longest length
_ASKED = Asked(
    ClipRecord(
        id="clip", dataset="", split="train", shard="", position=0, speaker="", dialogue=None, language="en", labels={},
        valence=None, attributes={}, transcript="", captions={}, rationale=None, features={}, has_audio=False,
        has_video=False, seconds=0.0, video_seconds=0.0, frames=0, width=0, height=0,
    ),
    "", "", (),
)  # fmt: skip


class _Vowels:
    name = "reward"

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [reward(sample.completion) for sample in samples]


def grpo_config(work: Work) -> GrpoConfig:
    """The settings of a stage that does this work."""
    return GrpoConfig(
        prompts=work.prompts,
        group_size=work.group,
        max_new_tokens=work.completion_tokens,
        loss=LossConfig(name="grpo", clip_low=work.clip, clip_high=work.clip, kl="k3", beta=work.beta),
        optimizer=OptimizerConfig(learning_rate=work.learning_rate, schedule="constant", clip_norm=work.clip_norm),
    )


def main() -> None:
    directory, parent = Path("."), Parent()
    work, prompts = Work.read(directory), read_prompts(directory)
    model, config = read_model(directory / "model"), grpo_config(work)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graphdef, abstract = abstract_model(model, mesh)
    processor = Processor.from_directory(directory / "model", model)
    media = np.load(directory / "media.npy", allow_pickle=False) if work.row == "embeddings" else None
    tokenizer = processor.tokenizer
    tokenizer.end_ids = (_NEVER,)
    params = load_model(directory / "model", model, abstract)
    terms = RewardFunction([(_Vowels(), 1.0)], timeout_s=60.0)
    sampling = functools.partial(sampling_params, dtype=model.dtype, gather=True)
    engine = RolloutEngine(
        graphdef, sampling(params), {}, config, tokenizer, lambda text: {}, terms, mesh, work.seed, sampling
    )
    optimizer, peak = make_optimizer(config.optimizer, 1), peak_flops(mesh, model.dtype)
    abstract = abstract_state(abstract, optimizer, mesh)
    learner = GrpoLearner(graphdef, abstract, {}, engine, optimizer, config, mesh, work.seed)
    state = init_state(jax.tree.map(lambda x: x.copy(), params), optimizer, mesh)
    del params  # what of them is the reference policy's stays

    def micro_batch(rows: list[Any]) -> MicroBatch:
        prompt = from_ids(rows, media, model) if work.row in ("text", "embeddings") else processor(rows)
        numbers, valid = np.arange(len(rows), dtype=np.int32), np.ones(len(rows), bool)
        return MicroBatch(*put_batch((prompt, numbers, valid), mesh), [_ASKED] * len(rows))

    parent.ready(
        {
            "grpo": dataclasses.asdict(config),
            "model": dataclasses.asdict(model),
            "mesh": dict(mesh.shape),
            "device": mesh.devices.flat[0].device_kind,
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        },
        versions("jax", "jaxlib", "flax", "optax"),
    )
    for rows in batches(prompts, work.prompts):
        if not parent.wants_step():
            break
        began = time.perf_counter()
        micro = micro_batch(rows)
        read = time.perf_counter() - began
        state, result = learner.step(state, [micro])
        seconds = time.perf_counter() - began
        metrics = result.metrics
        phases = {"data": read} | {name: metrics[f"timing_s/{name}"] for name in ("rollout", "reference", "update")}
        facts = _facts(metrics, seconds, peak) | {"prompt_tokens": int(micro.prompt.length.max())}
        parent.took(seconds, phases, facts, _device_bytes(mesh))
    if "trace" in sys.argv:
        with StepTrace("trace", directory / "trace", 0, 0) as trace, trace.step(0):
            state, _ = learner.step(state, [micro])
    policy = sampling(state.params)
    none = dataclasses.replace(micro, valid=jax.numpy.zeros_like(micro.valid))
    sample = functools.partial(engine.generate, policy, step=0)
    parent.left(measure_decoding(work, model, lambda counts: sample(micro=micro if counts else none)))


def _device_bytes(mesh: Mesh) -> int | None:
    stats = mesh.devices.flat[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def _facts(metrics: dict[str, float], seconds: float, peak: float) -> dict[str, float]:
    """What a step is checked by, that the sides did the same work; and how much of the matrix rate it reached."""
    names = ("reward", "entropy", "kl", "grad_norm")
    return {name: metrics[name] for name in names} | {
        "completion_tokens": metrics["completions/mean_length"],
        "peak_flops": peak,
        "mfu": metrics["flops"] / (seconds * peak),
        "mfu_update": metrics["flops/update"] / (metrics["timing_s/update"] * peak),
    }


def from_ids(rows: list[list[int]], media: np.ndarray | None, model: Any) -> PromptBatch:
    """Prompts from ids; those from the vocabulary's size on stand for rows of `media`."""
    ids, vocabulary = np.array(rows), model.decoder.vocab_size
    batch, length = ids.shape
    prompt = collate([], Bucket(length), model, 0)
    prompt = jax.tree.map(lambda x: np.zeros((batch, *x.shape[1:]), x.dtype), prompt)
    positions = np.broadcast_to(np.arange(length), (batch, 3, length))
    index = np.full(ids.shape, -1)
    if media is not None:
        chosen = ids >= vocabulary
        index[chosen] = np.tile(np.arange(chosen[0].sum()), batch)
        tokens = media[ids[chosen] - vocabulary].reshape(batch, -1, media.shape[1])
        prompt = prompt._replace(media_tokens=tokens)
    return prompt._replace(
        tokens=np.int32(np.where(ids < vocabulary, ids, 0)),
        length=np.full(batch, length, np.int32),
        media_index=np.int32(index),
        positions=np.int32(positions),
        next_position=np.full(batch, length, np.int32),
    )


if __name__ == "__main__":
    main()
