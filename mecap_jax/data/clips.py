"""Clips: what of an utterance's media the model gets to see, read once and kept, augmented each time."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mecap_jax.config import AugmentConfig, DataConfig
from mecap_jax.data.features import SAMPLE_RATE, log_mel, smart_resize
from mecap_jax.data.media import MediaError, decode_audio, decode_stretches
from mecap_jax.data.prompts import VideoGrid
from mecap_jax.data.resize import resize_bicubic
from mecap_jax.data.utterance import Utterance
from mecap_jax.model_config import FeatureProjectorConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class DecodedClip:
    """The media of one utterance, decoded or already encoded; None where a modality is missing or not asked for.

    Attributes:
      mel: float32 [frames, bins], log-mel.
      frames: uint8 [F, H, W, 3], resized to multiples of a merge cell.
      seconds_per_frame: time from one frame to the next.
      features: float32 [N, E], precomputed features, concatenated over their kinds.
      audio_tokens, video_tokens: [tokens, D] instead of `mel` and `frames`, where frozen towers have encoded them (see
        `PromptBatch.media_tokens`).
      grid: of the video tokens.
    """

    mel: np.ndarray | None = None
    frames: np.ndarray | None = None
    seconds_per_frame: float = 0.0
    features: np.ndarray | None = None
    audio_tokens: np.ndarray | None = None
    video_tokens: np.ndarray | None = None
    grid: VideoGrid | None = None

    @property
    def nbytes(self) -> int:
        arrays = (self.mel, self.frames, self.features, self.audio_tokens, self.video_tokens)
        return sum(x.nbytes for x in arrays if x is not None)

    @property
    def has_audio(self) -> bool:
        return self.mel is not None or self.audio_tokens is not None

    @property
    def has_video(self) -> bool:
        return self.frames is not None or self.video_tokens is not None

    def without(self, modalities: Iterable[str]) -> DecodedClip:
        """The same clip with some of its modalities missing."""
        fields = {
            "audio": ("mel", "audio_tokens"),
            "video": ("frames", "video_tokens", "grid"),
            "features": ("features",),
        }
        return dataclasses.replace(self, **{field: None for name in modalities for field in fields[name]})


def decode_clip(utterance: Utterance, has_audio: bool, data: DataConfig, model: ModelConfig) -> DecodedClip:
    """Decodes the modalities in `data.modalities` that the utterance has, up to `data.max_seconds`.

    `has_audio` is what the index says: a video may come with a sound track or without.

    Raises:
      MediaError: a file cannot be decoded, or features do not have the shape that the model expects.
    """
    mel, frames, seconds_per_frame, features = None, None, 0.0, None
    sound = utterance.audio if utterance.audio is not None else utterance.video
    if "audio" in data.modalities and has_audio:
        waveform = decode_audio(sound, SAMPLE_RATE)[: round(data.max_seconds * SAMPLE_RATE)]
        mel = log_mel(waveform, model.audio.num_mel_bins)
    if "video" in data.modalities and utterance.video is not None:
        shrink = functools.partial(resize_frame, data=data, model=model)
        beginning = [(0.0, data.max_seconds)]
        (video,) = decode_stretches(utterance.video, beginning, data.max_frames, data.fps, shrink=shrink)
        frames, seconds_per_frame = video.pixels, video.seconds_per_frame
    if "features" in data.modalities and utterance.features:
        features = join_features(utterance.features, model.features)
    return DecodedClip(mel, frames, seconds_per_frame, features)


def resize_frame(frame: np.ndarray, data: DataConfig, model: ModelConfig) -> np.ndarray:
    """A frame uint8 [H, W, 3] as the model sees it."""
    return resize_bicubic(frame[None], *frame_size(*frame.shape[:2], data, model))[0]


def frame_size(height: int, width: int, data: DataConfig, model: ModelConfig) -> tuple[int, int]:
    """Height and width that frames of a video are resized to."""
    cell = model.vision.patch_size * model.vision.spatial_merge_size
    return smart_resize(height, width, cell, data.min_pixels, data.max_pixels)


def join_features(arrays: Mapping[str, np.ndarray], config: FeatureProjectorConfig) -> np.ndarray:
    """Joins precomputed features side by side: float32 `[N, sum(dims)]`.

    What has one vector for the whole utterance stands beside every frame of what has many.

    Args:
      arrays: `[N, dim]` or `[dim]` by name; names that the model does not read are left alone.

    Raises:
      MediaError: a feature is missing, empty or of another width, or two differ in length.
    """
    there = {name: np.atleast_2d(np.asarray(array, np.float32)) for name, array in _named(arrays, config).items()}
    length = joined_length({name: array.shape for name, array in there.items()}, config)
    return np.concatenate([np.broadcast_to(array, (length, array.shape[1])) for array in there.values()], axis=1)


def joined_length(shapes: Mapping[str, tuple[int, ...]], config: FeatureProjectorConfig) -> int:
    """How many frames features of these shapes have when they are joined.

    Raises:
      MediaError: as `join_features` does.
    """
    lengths = []
    for (name, shape), dim in zip(_named(shapes, config).items(), config.dims, strict=True):
        frames = (1, *shape) if len(shape) == 1 else tuple(shape)
        if len(frames) != 2 or frames[1] != dim or not frames[0]:
            raise MediaError(f"features {name!r} have the shape {list(shape)}, the model expects [frames, {dim}]")
        lengths.append(frames[0])
    if set(lengths) - {1, max(lengths)}:
        raise MediaError(f"features {list(config.names)} differ in length: {lengths}")
    return max(lengths)


def _named(features: Mapping[str, Any], config: FeatureProjectorConfig) -> dict[str, Any]:
    """What the model reads, in its order."""
    for name in config.names:
        if features.get(name) is None:
            raise MediaError(f"lacks the features {name!r}; it has {sorted(features)}")
    return {name: features[name] for name in config.names}


class ClipCache:
    """Keeps decoded clips in memory up to a budget; what does not fit is decoded again. Safe under threads.

    Each of `readers` processes that get a copy starts with an empty cache and an equal share of the budget.
    """

    def __init__(self, budget_mb: int, readers: int = 1):
        self._budget = budget_mb * 2**20
        self._share = self._budget // readers
        self._clips: dict[int, DecodedClip] = {}
        self._lock = threading.Lock()

    def get(self, row: int, decode: Callable[[int], DecodedClip]) -> DecodedClip:
        clip = self._clips.get(row)
        if clip is None:
            clip = decode(row)
            with self._lock:
                if clip.nbytes <= self._budget and row not in self._clips:
                    self._budget -= clip.nbytes
                    self._clips[row] = clip
        return clip

    def __getstate__(self):
        return {"_budget": self._share, "_share": self._share, "_clips": {}}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())


# The log-mel scale of Whisper: (log10(power) + 4) / 4, so ten decibels are a quarter.
_MEL_PER_DECIBEL = 1 / 40


def augment(clip: DecodedClip, config: AugmentConfig, rng: np.random.Generator) -> DecodedClip:
    """Returns a randomly changed clip; draws the same numbers from `rng` whatever the clip holds."""
    drop, gain, brightness = rng.random(2), rng.uniform(-1, 1), rng.uniform(-1, 1)
    shift = rng.integers(-config.shift_pixels, config.shift_pixels + 1, 2)
    widths, starts = rng.random(2), rng.random(2)
    mel, frames = clip.mel, clip.frames
    if mel is not None:
        mel = mel + np.float32(gain * config.gain_db * _MEL_PER_DECIBEL)
        floor = mel.min()
        for axis, longest in ((0, config.time_mask_frames), (1, config.frequency_mask_bins)):
            width = int(widths[axis] * (min(longest, mel.shape[axis] // 2) + 1))
            start = int(starts[axis] * (mel.shape[axis] - width + 1))
            mel[(slice(None),) * axis + (slice(start, start + width),)] = floor
    if frames is not None:
        if config.brightness:
            factor = 1 + brightness * config.brightness
            frames = np.clip(frames.astype(np.float32) * factor, 0, 255).astype(np.uint8)
        if shift.any():
            frames = _shift(frames, *map(int, shift))
    features = clip.features
    if config.feature_noise:
        noise = np.random.default_rng(rng.integers(2**63))  # its draws are the clip's shape long
        if features is not None:
            features = features + np.float32(config.feature_noise) * noise.standard_normal(features.shape, np.float32)
    clip = dataclasses.replace(clip, mel=mel, frames=frames, features=features)
    if clip.has_audio and clip.has_video and drop[0] < config.modality_dropout:
        return clip.without(("audio",) if drop[1] < 0.5 else ("video",))
    return clip


def _shift(frames: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moves frames, repeating the pixels at the edge."""
    height, width = frames.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return frames[:, rows[:, None], columns[None, :]]
