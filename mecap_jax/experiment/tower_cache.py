"""Media encoded once: what frozen towers make of every clip is kept, and read instead of media from then on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from mecap_jax.batch import PromptBatch
from mecap_jax.config import MEDIA_SETTINGS
from mecap_jax.data.building import building, remove_unfinished
from mecap_jax.data.manifest import MANIFEST, sha256
from mecap_jax.data.pipeline import EncodingBatch
from mecap_jax.data.shards import find_finished
from mecap_jax.data.tower_cache import TokenReader, TokenWriter, finish
from mecap_jax.evaluation.decoding import evaluation_places
from mecap_jax.experiment.weights import RunModel
from mecap_jax.experiment.workbench import Workbench
from mecap_jax.experiment.workdir import cache_of
from mecap_jax.interruption import Interrupted
from mecap_jax.json_files import as_json, to_json
from mecap_jax.locking import locked
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.multimodal_lm import TOWERS, to_raw
from mecap_jax.models.parameters import merge_params
from mecap_jax.sharding import batch_sharding, local_rows, put_batch

_VERSION = 2


def with_tower_cache(bench: Workbench, model: RunModel, should_stop: Callable[[int], bool]) -> Workbench:
    """The bench whose clips come as media tokens of frozen towers; made first where the cache has none of these.

    Raises:
      Interrupted: `should_stop` said so; the next run begins to encode anew.
      ShardError: the cache has changed, or something else has its name.
    """
    source = describe_source(bench, model.frozen)
    digest = hashlib.sha256(to_json(source, sort_keys=True).encode()).hexdigest()[:12]
    directory = cache_of(bench.workdir) / f"towers-{digest}"
    if not _is_finished(directory, source):
        with contextlib.ExitStack() as stack:
            if jax.process_index() == 0:
                lock = directory.parent / f".{directory.name}.lock"
                stack.enter_context(locked(lock, str(directory), wait=bench.logger.say))
            if not _is_finished(directory, source):  # another run may just have made it
                _build(bench, model, directory, source, should_stop)
    return bench.with_data(bench.dataset.with_tokens(TokenReader(directory, source)))


def _is_finished(directory: Path, source: dict[str, Any]) -> bool:
    """What the first process sees; all take the same branch."""
    found = jax.process_index() == 0 and find_finished(directory, source) is not None
    return bool(multihost_utils.broadcast_one_to_all(np.int32(found))) if jax.process_count() > 1 else found


def describe_source(bench: Workbench, params: Any) -> dict[str, Any]:
    """Everything that media tokens depend on, as a JSON tree; the same on every mesh."""
    data, model, dataset = bench.config.data, bench.config.model, bench.dataset
    modalities = [name for name in TOWERS if name in data.modalities]
    settings = {name: float(getattr(data, name)) for name in MEDIA_SETTINGS}  # 0 and 0.0 are one setting
    ids = sorted(
        dataset.index[number].id for split in ("train", "validation", "test") for number in dataset.clips(split)
    )
    source = {
        "version": _VERSION,
        "shards": sha256(bench.reader.directory / MANIFEST),
        "clips": hashlib.sha256("\0".join(ids).encode()).hexdigest(),
        "data": {"modalities": modalities, **settings},
        "audio": model.audio and dataclasses.asdict(model.audio),
        "vision": model.vision and dataclasses.asdict(model.vision),
        "width": model.decoder.hidden_size,
        "dtype": model.dtype,
        "weights": _digest({name: params[TOWERS[name]] for name in modalities}),
    }
    return as_json(source)


def _digest(params: Any) -> str:
    """A checksum of parameters: names, shapes, types and every bit."""
    digest = hashlib.sha256()
    for path, array in sorted(flatten(params).items()):
        if not array.is_fully_addressable:
            array = multihost_utils.process_allgather(array, tiled=True)
        digest.update(f"{path} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()


def _build(bench: Workbench, model: RunModel, directory: Path, source: dict, should_stop) -> None:
    """Encodes every clip on the mesh; each process writes those that it decoded, the first one joins the parts."""
    process = (jax.process_index(), jax.process_count())
    if process[0] == 0:
        remove_unfinished(directory.parent)
    # One directory for all processes, another one for every attempt: a run that was killed is in nobody's way.
    attempt = multihost_utils.broadcast_one_to_all(np.frombuffer(uuid.uuid4().bytes[:4], np.uint8))
    attempt = np.asarray(attempt).astype(np.uint8).tobytes().hex()
    sharding = batch_sharding(bench.mesh)

    def tokens_of(frozen: Any, prompt: PromptBatch) -> jax.Array:
        # Towers need nothing of what trains: compiled, these zeros are never made.
        rest = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.trainable)
        return to_raw(nnx.merge(model.graphdef, merge_params(rest, frozen)).forward_only().prompt_media(prompt))

    encode = jax.jit(tokens_of, out_shardings=sharding)
    total = sum(len(bench.dataset.clips(split)) for split in ("train", "validation", "test"))
    size, places = evaluation_places(total, bench.mesh, bench.config.evaluation.batch_clips)
    batches = bench.dataset.encoding_batches(size, places)
    with building(directory, attempt, owner=process[0] == 0) as unfinished:
        writer = TokenWriter(unfinished, process[0])
        waiting: tuple[EncodingBatch, jax.Array] | None = None
        done = 0
        with bench.logger.progress("encoding clips", total) as progress:
            for batch in batches:
                tokens = encode(model.frozen, put_batch(batch.prompt, bench.mesh))
                # The host cuts one batch up while devices encode the next.
                if waiting is not None:
                    done += _write(writer, *waiting, bench.config.model)
                    progress(min(total, done * process[1]), {})
                waiting = batch, tokens
                if should_stop(0):
                    raise Interrupted("stopped while clips were encoded; the same command begins to encode anew")
            done += _write(writer, *waiting, bench.config.model)
            progress(total, {})
        writer.close()
        _meet()
        if process[0] == 0:
            finish(unfinished, directory, process[1], source)
        _meet()


def _write(writer: TokenWriter, batch: EncodingBatch, tokens: jax.Array, model) -> int:
    """Writes a batch's clips; returns how many they were."""
    tokens, index = local_rows(tokens), batch.prompt.media_index
    vision_start = batch.prompt.audio.shape[1] * (model.audio.chunk_tokens if model.audio else 0)
    written = 0
    for b, (id, clip) in enumerate(zip(batch.ids, batch.clips)):
        if id is None:
            continue
        if clip is not None:
            # Both kinds stand in the prompt in their own order.
            audio, video = (index[b] >= 0) & (index[b] < vision_start), index[b] >= vision_start
            if clip.has_audio:
                clip = dataclasses.replace(clip, audio_tokens=tokens[b, audio])
            if clip.has_video:
                clip = dataclasses.replace(clip, video_tokens=tokens[b, video])
        writer.write(id, clip)
        written += 1
    return written


def _meet() -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tower cache")
