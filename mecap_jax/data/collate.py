"""Rows into batches: laid-out prompts and their media are padded to one bucket's static shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mecap_jax.batch import Completions, PromptBatch
from mecap_jax.config import Bucket
from mecap_jax.data.features import audio_tokens, vision_patches
from mecap_jax.data.prompts import AUDIO, FEATURES, VISION, PromptLayout, VideoGrid
from mecap_jax.model_config import ModelConfig

# How the host holds media tokens of a model's dtype (see `PromptBatch.media_tokens`).
TOKEN_DTYPES = {"float32": np.float32, "bfloat16": np.uint16}


@dataclasses.dataclass(frozen=True)
class LaidOutPrompt:
    """A laid-out prompt and the media that it points at, each kind in order of appearance.

    Attributes:
      mels: float32 [frames, bins] of each stretch of sound.
      frames: uint8 [F, H, W, 3] of each video, resized to multiples of a merge cell; an image is a video of one frame.
      features: float32 [N, E], precomputed features.
      audio_tokens, video_tokens: [tokens, D], what the towers made of sounds and videos, instead of these.
    """

    layout: PromptLayout
    mels: tuple[np.ndarray, ...] = ()
    frames: tuple[np.ndarray, ...] = ()
    features: np.ndarray | None = None
    audio_tokens: np.ndarray | None = None
    video_tokens: np.ndarray | None = None


def needed(row: LaidOutPrompt, model: ModelConfig) -> Bucket:
    """The smallest bucket that holds a row."""
    return Bucket(
        prompt_tokens=len(row.layout.tokens),
        audio_chunks=sum(_chunk_count(mel, model) for mel in row.mels),
        frames=sum(-(-len(frames) // model.vision.temporal_patch_size) for frames in row.frames),
        windows=max((window_count(*frames.shape[1:3], model) for frames in row.frames), default=0),
        feature_frames=0 if row.features is None else len(row.features),
        cells=max((cell_count(*frames.shape[1:3], model) for frames in row.frames), default=0),
    )


def completed(bucket: Bucket, model: ModelConfig) -> Bucket:
    """A bucket that says how many merge cells a frame has, where one left it to the number of windows."""
    most = bucket.windows * model.vision.window_cells if model.vision else 0
    return dataclasses.replace(bucket, cells=min(bucket.cells or most, most))


def _chunk_count(mel: np.ndarray, model: ModelConfig) -> int:
    return -(-len(mel) // model.audio.chunk_frames)


def window_count(height: int, width: int, model: ModelConfig) -> int:
    """Attention windows in a frame of that many pixels."""
    return -(-height // model.vision.window_size) * -(-width // model.vision.window_size)


def cell_count(height: int, width: int, model: ModelConfig) -> int:
    """Merge cells in a frame of that many pixels."""
    side = model.vision.patch_size * model.vision.spatial_merge_size
    return (height // side) * (width // side)


def video_grid(frames: np.ndarray, seconds_per_frame: float, model: ModelConfig) -> VideoGrid:
    """The grid of decoder tokens that resized frames [F, H, W, 3] give."""
    vision = model.vision
    cell = vision.patch_size * vision.spatial_merge_size
    return VideoGrid(
        frames=-(-len(frames) // vision.temporal_patch_size),
        rows=frames.shape[1] // cell,
        columns=frames.shape[2] // cell,
        seconds_per_frame=seconds_per_frame * vision.temporal_patch_size,
    )


def collate(
    rows: Sequence[LaidOutPrompt], bucket: Bucket, model: ModelConfig, pad_id: int, encoded: bool = False
) -> PromptBatch:
    """Pads rows to a bucket.

    Args:
      encoded: the rows bring media tokens: a prompt points at no more of them than it has positions, so that many
        are held, and no media.

    Raises:
      ValueError: a row does not fit; the message names row, size and limit.
    """
    size = len(rows)
    mel_bins = model.audio.num_mel_bins if model.audio else 1
    chunk_frames = model.audio.chunk_frames if model.audio else 1
    chunk_tokens = model.audio.chunk_tokens if model.audio else 0
    cell = (model.vision.cell_patches, model.vision.patch_dim) if model.vision else (1, 1)
    window_cells = model.vision.window_cells if model.vision else 1
    feature_dim = sum(model.features.dims) if model.features else 1

    length = bucket.prompt_tokens
    if encoded:
        bucket = dataclasses.replace(bucket, audio_chunks=0, frames=0, windows=0)
    bucket = completed(bucket, model)
    held = (size, length if encoded else 0, model.decoder.hidden_size)
    cells = (size, bucket.frames, bucket.cells)
    batch = PromptBatch(
        tokens=np.full((size, length), pad_id, np.int32),
        length=np.zeros(size, np.int32),
        media_index=np.full((size, length), -1, np.int32),
        positions=np.zeros((size, 3, length), np.int32),
        next_position=np.zeros(size, np.int32),
        audio=np.zeros((size, bucket.audio_chunks, chunk_frames, mel_bins), np.float32),
        audio_frames=np.zeros((size, bucket.audio_chunks), np.int32),
        patches=np.zeros((*cells, *cell), np.uint8),
        cell_positions=np.full((*cells, 2), -1, np.int32),
        windows=np.full((size, bucket.frames, bucket.windows, window_cells), -1, np.int32),
        media_tokens=np.zeros(held, TOKEN_DTYPES[model.dtype]),
        features=np.zeros((size, bucket.feature_frames, feature_dim), np.float32),
        instruction=np.zeros((size, 0), np.int32),
        instruction_length=np.zeros(size, np.int32),
    )
    vision_start = bucket.audio_chunks * chunk_tokens
    token_start = vision_start + bucket.frames * bucket.cells
    feature_start = token_start + held[1]
    for b, row in enumerate(rows):
        _check_fit(b, needed(row, model), bucket)
        layout, n = row.layout, len(row.layout.tokens)
        batch.tokens[b, :n] = layout.tokens
        batch.length[b] = n
        batch.positions[b, :, :n] = layout.positions
        batch.next_position[b] = layout.next_position
        places = {
            AUDIO: _put_audio(batch.audio[b], batch.audio_frames[b], row.mels, model),
            VISION: vision_start + _put_vision(batch, b, row.frames, model),
        }
        if encoded:
            places = _put_tokens(batch.media_tokens[b], row, token_start)
        if row.features is not None:
            batch.features[b, : len(row.features)] = row.features
            places[FEATURES] = feature_start + np.arange(len(row.features))
        for kind, table in places.items():
            chosen = layout.kind == kind
            batch.media_index[b, :n][chosen] = table[layout.index[chosen]]
    return batch


def _check_fit(row: int, need: Bucket, bucket: Bucket) -> None:
    for field in dataclasses.fields(Bucket):
        wanted, held = getattr(need, field.name), getattr(bucket, field.name)
        if wanted > held:
            raise ValueError(
                f"row {row} does not fit: it needs {field.name} = {wanted}, its bucket holds {held} "
                f"(config key 'data.buckets')"
            )


def _put_audio(audio: np.ndarray, valid: np.ndarray, mels: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
    """Fills a row's chunks [C, F, M] and their valid frames [C]; returns where each audio token stands."""
    places, chunk = [np.zeros(0, int)], 0
    for mel in mels:
        # A stretch of sound begins in a chunk of its own: chunks do not see each other in the tower.
        length, count = model.audio.chunk_frames, _chunk_count(mel, model)
        audio[chunk : chunk + count].reshape(-1, mel.shape[1])[: len(mel)] = mel
        valid[chunk : chunk + count] = np.clip(len(mel) - length * np.arange(count), 0, length)
        tokens = audio_tokens(len(mel), model.audio.n_window)
        places.append(chunk * model.audio.chunk_tokens + np.arange(tokens))
        chunk += count
    return np.concatenate(places)


def _put_vision(batch: PromptBatch, b: int, videos: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
    """Fills row `b`'s patches; returns where each token, in raster order, stands among the row's cells."""
    places, time, cells = [np.zeros(0, int)], 0, batch.patches.shape[2]
    for frames in videos:
        cut = vision_patches(frames, model.vision)
        t, k = cut.patches.shape[:2]
        batch.patches[b, time : time + t, :k] = cut.patches
        batch.cell_positions[b, time : time + t, :k] = cut.positions
        batch.windows[b, time : time + t, : len(cut.windows)] = cut.windows
        places.append((cells * np.arange(time, time + t)[:, None] + np.arange(k)).ravel())
        time += t
    return np.concatenate(places)


def _put_tokens(table: np.ndarray, row: LaidOutPrompt, start: int) -> dict[int, np.ndarray]:
    """Fills a row's media tokens [H, D], audio first; returns where those of each kind stand."""
    places, used = {}, 0
    for kind, tokens in ((AUDIO, row.audio_tokens), (VISION, row.video_tokens)):
        if tokens is not None:
            table[used : used + len(tokens)] = tokens
            places[kind] = start + used + np.arange(len(tokens))
            used += len(tokens)
    return places


def collate_targets(targets: Sequence[Sequence[Sequence[int]]], length: int, pad_id: int) -> Completions:
    """Pads target token ids, B lists of R, to [B, R, length]."""
    shape = (len(targets), max(map(len, targets)), length)
    tokens, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, bool)
    for b, references in enumerate(targets):
        for r, ids in enumerate(references):
            tokens[b, r, : len(ids)] = ids
            mask[b, r, : len(ids)] = True
    return Completions(tokens, mask)
