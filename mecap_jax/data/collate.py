"""Rows into batches: laid-out prompts and clips are padded to one bucket's static shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mecap_jax.batch import Completions, PromptBatch
from mecap_jax.config import Bucket
from mecap_jax.data.clips import Clip
from mecap_jax.data.features import vision_patches
from mecap_jax.data.prompts import AUDIO, FEATURES, VIDEO, PromptLayout
from mecap_jax.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """A clip and its prompt."""

    clip: Clip
    layout: PromptLayout


def needed(row: Row, model: ModelConfig) -> Bucket:
    """The smallest bucket that holds a row."""
    clip = row.clip
    chunks = 0 if clip.mel is None else -(-len(clip.mel) // model.audio.chunk_frames)
    frames = windows = 0
    if clip.frames is not None:
        vision = model.vision
        frames = -(-len(clip.frames) // vision.temporal_patch_size)
        windows = window_count(*clip.frames.shape[1:3], model)
    return Bucket(
        prompt_tokens=len(row.layout.tokens),
        audio_chunks=chunks,
        frames=frames,
        windows=windows,
        feature_frames=0 if clip.features is None else len(clip.features),
    )


def window_count(height: int, width: int, model: ModelConfig) -> int:
    """Attention windows in a frame of that many pixels."""
    return -(-height // model.vision.window_size) * -(-width // model.vision.window_size)


def fits(need: Bucket, bucket: Bucket) -> bool:
    """Whether a row that needs `need` fits into `bucket`."""
    return all(n <= b for n, b in zip(dataclasses.astuple(need), dataclasses.astuple(bucket)))


def collate(rows: Sequence[Row], bucket: Bucket, model: ModelConfig, pad_id: int) -> PromptBatch:
    """Pads rows to a bucket.

    Raises:
      ValueError: a row does not fit.
    """
    size = len(rows)
    mel_bins = model.audio.num_mel_bins if model.audio else 1
    chunk_frames = model.audio.chunk_frames if model.audio else 1
    chunk_tokens = model.audio.chunk_tokens if model.audio else 0
    slots = model.vision.window_patches if model.vision else 1
    window_tokens = model.vision.window_tokens if model.vision else 0
    patch_dim = model.vision.patch_dim if model.vision else 1
    feature_dim = sum(model.features.dims) if model.features else 1

    length = bucket.prompt_tokens
    windows = (size, bucket.frames, bucket.windows, slots)
    batch = PromptBatch(
        tokens=np.full((size, length), pad_id, np.int32),
        length=np.zeros(size, np.int32),
        media_index=np.full((size, length), -1, np.int32),
        positions=np.zeros((size, 3, length), np.int32),
        next_position=np.zeros(size, np.int32),
        audio=np.zeros((size, bucket.audio_chunks, chunk_frames, mel_bins), np.float32),
        audio_frames=np.zeros((size, bucket.audio_chunks), np.int32),
        patches=np.zeros((*windows, patch_dim), np.float32),
        patch_positions=np.zeros((*windows, 2), np.int32),
        patch_mask=np.zeros(windows, bool),
        features=np.zeros((size, bucket.feature_frames, feature_dim), np.float32),
    )
    video_start = bucket.audio_chunks * chunk_tokens
    feature_start = video_start + bucket.frames * bucket.windows * window_tokens
    for b, row in enumerate(rows):
        need = needed(row, model)
        if not fits(need, bucket):
            raise ValueError(f"a row needs {need}, which does not fit {bucket}")
        layout, clip, n = row.layout, row.clip, len(row.layout.tokens)
        batch.tokens[b, :n] = layout.tokens
        batch.length[b] = n
        batch.positions[b, :, :n] = layout.positions
        batch.next_position[b] = layout.next_position
        index = batch.media_index[b, :n]
        if clip.mel is not None:
            mel = batch.audio[b].reshape(-1, mel_bins)
            mel[: len(clip.mel)] = clip.mel
            starts = np.arange(bucket.audio_chunks) * chunk_frames
            batch.audio_frames[b] = np.clip(len(clip.mel) - starts, 0, chunk_frames)
            index[layout.kind == AUDIO] = layout.index[layout.kind == AUDIO]
        if clip.frames is not None:
            patches = vision_patches(clip.frames, model.vision)
            t, w = patches.mask.shape[:2]
            batch.patches[b, :t, :w] = patches.patches
            batch.patch_positions[b, :t, :w] = patches.positions
            batch.patch_mask[b, :t, :w] = patches.mask
            # From a place among the row's own windows to one among the bucket's.
            frame, rest = np.divmod(patches.order, w * window_tokens)
            place = video_start + frame * bucket.windows * window_tokens + rest
            index[layout.kind == VIDEO] = place[layout.index[layout.kind == VIDEO]]
        if clip.features is not None:
            batch.features[b, : len(clip.features)] = clip.features
            index[layout.kind == FEATURES] = feature_start + layout.index[layout.kind == FEATURES]
    return batch


def collate_targets(targets: Sequence[Sequence[Sequence[int]]], length: int, pad_id: int) -> Completions:
    """Pads target token ids [B][R] to [B, R, length]."""
    shape = (len(targets), max(map(len, targets)), length)
    tokens, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, bool)
    for b, references in enumerate(targets):
        for r, ids in enumerate(references):
            tokens[b, r, : len(ids)] = ids
            mask[b, r, : len(ids)] = True
    return Completions(tokens, mask)
