"""What of the settings follows from the data: which modalities there are, the longest clip, and static shapes.

Every shape is a program of its own, and what a clip does not fill of its shape is computed for nothing. So there are
few shapes, each within the next, chosen so that little is padding.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from mecap_jax.config import Bucket, DataConfig
from mecap_jax.data.clips import frame_size
from mecap_jax.data.collate import cell_count, completed, window_count
from mecap_jax.data.features import MAX_SAMPLES, SAMPLE_RATE, audio_tokens
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.pictures import TEMPORAL_PATCH_SIZE
from mecap_jax.model_config import ModelConfig

# Longer than nearly every utterance of the corpora of emotional speech, and Whisper's window.
MAX_SECONDS = 30.0
_MOST_BUCKETS = 3
_WORTH_A_PROGRAM = 0.15  # of the work, that another shape must save
_CUTS = 64  # quantiles of sizes between which shapes are chosen


def fit_to_data(config: DataConfig, index: Sequence[ClipRecord]) -> DataConfig:
    """The settings without modalities and transcripts that no clip has, and with the longest clip's length.

    Without `max_seconds` it is that of the longest clip, at most 30 s; no more than the sound's front end takes.
    """
    modalities = tuple(name for name in config.modalities if any(has_modality(record, name) for record in index))
    longest = config.max_seconds or min(max(map(length, index), default=0.0) or MAX_SECONDS, MAX_SECONDS)
    if "audio" in modalities:
        longest = min(longest, MAX_SAMPLES / SAMPLE_RATE)
    told = config.include_transcript and any(record.transcript for record in index)
    return dataclasses.replace(config, modalities=modalities, include_transcript=told, max_seconds=longest)


def has_modality(record: ClipRecord, name: str) -> bool:
    """Whether a clip has the modality."""
    return {"audio": record.has_audio, "video": record.has_video, "features": bool(record.features)}[name]


def length(record: ClipRecord) -> float:
    """How long a clip lasts, in seconds."""
    return max(record.seconds, record.video_seconds)


def choose_buckets(needs: Iterable[Bucket], model: ModelConfig) -> tuple[Bucket, ...]:
    """At most three shapes, smallest first, each within the next, that hold all `needs` with little padding.

    Another shape is taken only where it saves a good part of the work. Sizes are rounded up to four binary digits, so
    that programs are used again with similar data.

    Raises:
      ValueError: no needs.
    """
    counts = Counter(map(_rounded, needs))
    if not counts:
        raise ValueError("no clips to find shapes for")
    sizes = sorted(counts, key=lambda bucket: (positions(bucket, model), dataclasses.astuple(bucket)))
    shapes = list(itertools.accumulate(sizes, union))
    clips = list(itertools.accumulate(counts[size] for size in sizes))
    last = len(sizes) - 1
    ends = {bisect.bisect_left(clips, q * clips[-1] / _CUTS) for q in range(1, _CUTS)} - {last}

    def work(chosen: tuple[int, ...]) -> int:
        held = (0, *(clips[i] for i in chosen))
        return sum((b - a) * positions(shapes[i], model) for a, b, i in zip(held, held[1:], chosen))

    best = (last,)
    for count in range(2, _MOST_BUCKETS + 1):
        options = [(*cuts, last) for cuts in itertools.combinations(sorted(ends), count - 1)]
        option = min(options, key=work, default=best)
        if work(option) < (1 - _WORTH_A_PROGRAM) * work(best):
            best = option
    return tuple(shapes[i] for i in best)


def bucket_for(seconds: float, config: DataConfig, model: ModelConfig, text_tokens: int = 128) -> Bucket:
    """The shape for a clip of this length with square pictures, for plans without data; features have 64 frames."""
    tokens, parts = text_tokens, {}
    if "audio" in config.modalities:
        mel_frames = int(seconds * 100)
        tokens += audio_tokens(mel_frames, model.audio.n_window)
        parts["audio_chunks"] = -(-mel_frames // model.audio.chunk_frames)
    if "video" in config.modalities:
        side = math.isqrt(config.max_pixels)
        height, width = frame_size(side, side, config, model)
        pairs = -(-min(config.max_frames, int(seconds * config.fps) or config.max_frames) // TEMPORAL_PATCH_SIZE)
        cells = cell_count(height, width, model)
        tokens += pairs * cells
        parts |= {"frames": pairs, "windows": window_count(height, width, model), "cells": cells}
    if "features" in config.modalities:
        tokens += 64
        parts["feature_frames"] = 64
    return Bucket(tokens, **parts)


def extend_buckets(known: Sequence[Bucket], needs: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """The known shapes, and where they do not hold all `needs`, one more that does."""
    largest = known[-1]
    whole = union(largest, *map(_rounded, (need for need in needs if not fits(need, largest))))
    return tuple(known) if whole == largest else (*known, whole)


def cap_prompts(buckets: Sequence[Bucket], room: int | None) -> tuple[Bucket, ...]:
    """The shapes with prompts of at most `room` tokens (None: any number); those that become one are there once."""
    if room is None:
        return tuple(buckets)
    capped = (dataclasses.replace(b, prompt_tokens=min(b.prompt_tokens, room)) for b in buckets)
    return tuple(dict.fromkeys(capped))


def fits(need: Bucket, bucket: Bucket) -> bool:
    """Whether what needs `need` fits into `bucket`."""
    return all(n <= b for n, b in zip(dataclasses.astuple(need), dataclasses.astuple(bucket)))


def union(*buckets: Bucket) -> Bucket:
    """The smallest shape that holds what any of these holds."""
    return Bucket(*map(max, zip(*map(dataclasses.astuple, buckets))))


def of_modalities(buckets: Sequence[Bucket], modalities: Sequence[str], model: ModelConfig) -> tuple[Bucket, ...]:
    """The shapes, completed, without the parts of modalities that the run does not use."""
    return tuple(
        Bucket(
            b.prompt_tokens,
            b.audio_chunks if "audio" in modalities else 0,
            b.frames if "video" in modalities else 0,
            b.windows if "video" in modalities else 0,
            b.feature_frames if "features" in modalities else 0,
            b.cells if "video" in modalities else 0,
        )
        for b in (completed(bucket, model) for bucket in buckets)
    )


def describe_bucket(bucket: Bucket) -> str:
    """A shape in words."""
    parts = {
        f"{bucket.prompt_tokens} tokens": True,
        f"{bucket.audio_chunks} chunks of sound": bucket.audio_chunks,
        f"{bucket.frames} pairs of frames of {bucket.cells} tokens in {bucket.windows} windows": bucket.frames,
        f"{bucket.feature_frames} frames of features": bucket.feature_frames,
    }
    return ", ".join(text for text, there in parts.items() if there)


def positions(bucket: Bucket, model: ModelConfig) -> int:
    """How many positions the network computes for a prompt: of the decoder, and of the towers of sound and picture."""
    sound = bucket.audio_chunks * model.audio.chunk_frames // 2 if model.audio else 0  # its first layers halve the rate
    picture = bucket.frames * bucket.cells * model.vision.cell_patches if model.vision else 0
    return bucket.prompt_tokens + sound + picture


def _rounded(need: Bucket) -> Bucket:
    return Bucket(*(-(-size >> shift) << shift for size in dataclasses.astuple(need) for shift in [_digits(size)]))


def _digits(size: int) -> int:
    """How many binary digits of a size are rounded away."""
    return max(size.bit_length() - 4, 0)
