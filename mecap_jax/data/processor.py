"""From conversations with media to a batch of prompts: what transformers' processor of the family does, in NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from mecap_jax.batch import PromptBatch
from mecap_jax.config import Bucket
from mecap_jax.data.clips import join_features
from mecap_jax.data.collate import LaidOutPrompt, collate, needed, video_grid
from mecap_jax.data.features import SAMPLE_RATE, audio_tokens, log_mel, smart_resize
from mecap_jax.data.processor_settings import ProcessorSettings, read_settings, write_settings
from mecap_jax.data.prompts import AudioSpan, FeatureSpan, ImageGrid, Media, lay_out
from mecap_jax.data.resize import resize_bicubic
from mecap_jax.data.sound import MAX_SAMPLE_RATE, resampled
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.families import FAMILIES
from mecap_jax.model_config import ModelConfig

Conversation = Sequence[Mapping[str, Any]]
_KEYS = {
    "text": {"type", "text"},
    "audio": {"type", "audio", "sampling_rate"},
    "image": {"type", "image"},
    "video": {"type", "video", "fps", "audio", "sampling_rate"},
    "features": {"type", "features"},
}
_LOWEST_RATE = 1000
# Prompts are padded to a multiple of this, so that few programs are compiled.
_PROMPT_STEP = 64


class Processor:
    """Turns conversations into batches, with one model's tokenizer, chat template and settings.

    A conversation is a list of messages {"role": "system" | "user" | "assistant", "content": ...}. The content is a
    string or a list of items:

    - {"type": "text", "text": str}
    - {"type": "audio", "audio": float [S]}, one channel at 16 kHz or, where it is given, at "sampling_rate"
    - {"type": "image", "image": uint8 [H, W, 3]}
    - {"type": "video", "video": uint8 [F, H, W, 3]}, with "fps", the rate at which these frames were taken, where it
      is known, and "audio", its sound (and "sampling_rate"), where that is to be interleaved
    - {"type": "features", "features": {name: float [N, E] or [E]}}, one entry for each of the model's features

    Attributes:
      tokenizer: ids, template and special tokens.
      model: whose inputs are made.
      settings: sizes and rates.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig, settings: ProcessorSettings | None = None):
        if tokenizer.family != model.family:
            raise ValueError(f"a tokenizer of the family {tokenizer.family!r} for a model of {model.family!r}")
        self.tokenizer, self.model = tokenizer, model
        self.settings = ProcessorSettings() if settings is None else settings

    @classmethod
    def from_directory(cls, path: str | Path, model: ModelConfig) -> Processor:
        """Reads tokenizer, chat template and settings of a directory in the Hugging Face layout.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: a file asks for what is not implemented, or the tokenizer is not of the model's family.
        """
        return cls(Tokenizer.from_directory(path, model.family), model, read_settings(Path(path), model))

    def save(self, path: str | Path) -> None:
        """Writes a directory that `from_directory` and transformers' processor of the family load."""
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_directory(directory)
        write_settings(self.settings, directory, self.model)

    def __call__(
        self, conversations: Sequence[Conversation], *, use_audio_in_video: bool = False, bucket: Bucket | None = None
    ) -> PromptBatch:
        """Makes the batch of prompts that ask for the assistant's next turn.

        Args:
          use_audio_in_video: a video's own sound, or the audio item right behind it, is interleaved with its frames
            in chunks of `model.seconds_per_chunk` (Qwen2.5-Omni's time-aligned format).
          bucket: the static shape; None takes the smallest of a coarse grid, so that programs are reused.

        Returns:
          NumPy arrays.

        Raises:
          ValueError: a conversation is not as described above, or does not fit; the message names its row.
        """
        rows = []
        for number, conversation in enumerate(conversations):
            try:
                rows.append(self._row(conversation, use_audio_in_video))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
        if not rows:
            raise ValueError("there are no conversations")
        return self.batch(rows, bucket)

    def batch(self, rows: Sequence[LaidOutPrompt], bucket: Bucket | None = None) -> PromptBatch:
        """Pads laid-out prompts to a static shape; `bucket` and errors as in a call."""
        if bucket is None:
            bucket = _roomy([needed(row, self.model) for row in rows])
        return collate(rows, bucket, self.model, self.tokenizer.pad_id)

    def _row(self, conversation: Conversation, use_audio_in_video: bool) -> LaidOutPrompt:
        messages, collected = [], _Collected()
        if not conversation:
            raise ValueError("a conversation has no messages")
        for message in conversation:
            if not isinstance(message, Mapping):
                raise ValueError(f"a message is a {type(message).__name__}, not a mapping with 'role' and 'content'")
            content = message.get("content")
            if isinstance(content, list | tuple):
                content = list(self._items(content, collected, use_audio_in_video))
            messages.append({"role": message.get("role"), "content": content})
        layout = lay_out(self.tokenizer, self.model, messages, collected.media)
        features = np.concatenate(collected.features) if collected.features else None
        return LaidOutPrompt(layout, tuple(collected.mels), tuple(collected.frames), features)

    def _items(self, content: Sequence[Any], collected: _Collected, use_audio_in_video: bool) -> Iterator[Any]:
        """Yields the items that the template sees; their media are added to `collected`."""
        rest = list(content)
        while rest:
            item = rest.pop(0)
            kind = _kind(item)
            if unknown := sorted(map(str, set(item) - _KEYS[kind])) if kind in _KEYS else []:
                raise ValueError(f"an item of type {kind!r} has the unknown key {unknown[0]!r}")
            if kind == "video":
                sound = item if item.get("audio") is not None else None
                if sound is not None and not use_audio_in_video:
                    raise ValueError("a video carries 'audio', which is read only with use_audio_in_video=True")
                if use_audio_in_video and sound is None and rest and _kind(rest[0]) == "audio":
                    sound = rest.pop(0)
                self._add_video(item, sound, collected)
            elif kind == "audio":
                collected.add(AudioSpan(self._add_sound(item, collected)))
            elif kind == "image":
                self._add_image(item, collected)
            elif kind == "features":
                features = self._features(_payload(item))
                collected.features.append(features)
                collected.add(FeatureSpan(len(features)))
            yield item

    def _add_sound(self, item: Mapping[str, Any], collected: _Collected) -> int:
        """Adds the spectrogram of an item's sound; returns how many tokens it makes."""
        if self.model.audio is None:
            raise ValueError("the model reads no audio")
        waveform = np.asarray(_payload(item, "audio"))
        if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
            raise ValueError(f"audio is {waveform.dtype} {list(waveform.shape)}, not one channel of floats")
        if not np.isfinite(waveform).all():
            raise ValueError("audio holds values that are not finite")
        rate = SAMPLE_RATE if item.get("sampling_rate") is None else item["sampling_rate"]
        if not isinstance(rate, Real) or not _LOWEST_RATE <= rate <= MAX_SAMPLE_RATE:
            raise ValueError(f"audio has sampling_rate = {rate!r}, not a number of Hz from 1000 to {MAX_SAMPLE_RATE}")
        waveform = resampled(waveform.astype(np.float32, copy=False), rate, SAMPLE_RATE)
        mel = log_mel(waveform, self.model.audio.num_mel_bins)
        tokens = audio_tokens(len(mel), self.model.audio.n_window)
        if not tokens:
            raise ValueError(f"audio of {len(waveform)} samples is too short: its {len(mel)} frames make no token")
        collected.mels.append(mel)
        return tokens

    def _add_image(self, item: Mapping[str, Any], collected: _Collected) -> None:
        picture = self._pixels(_payload(item), "image", 3)[None]
        frames = self._resized(picture, self.settings.image_min_pixels, self.settings.image_max_pixels)
        grid = video_grid(frames, 0.0, self.model)
        collected.frames.append(frames)
        collected.add(ImageGrid(grid.rows, grid.columns))

    def _add_video(self, item: Mapping[str, Any], sound: Mapping[str, Any] | None, collected: _Collected) -> None:
        pixels = self._pixels(_payload(item), "video", 4)
        fps = item.get("fps")
        fps = FAMILIES[self.model.family].frame_rate if fps is None else float(fps)
        if not 0 < fps < np.inf:
            raise ValueError(f"a video has fps = {fps:g}")
        frames = self._resized(pixels, self.settings.video_min_pixels, self.settings.video_max_pixels)
        grid = video_grid(frames, 1 / fps, self.model)
        collected.frames.append(frames)
        if sound is not None:
            grid = dataclasses.replace(grid, audio_tokens=self._add_sound(sound, collected))
        collected.add(grid)

    def _pixels(self, pixels: Any, kind: str, axes: int) -> np.ndarray:
        if self.model.vision is None or FAMILIES[self.model.family].media.image is None:
            raise ValueError(f"the model reads no {kind}")
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != axes or pixels.shape[-1] != 3 or not pixels.size:
            wanted = "[height, width, 3]" if axes == 3 else "[frames, height, width, 3]"
            raise ValueError(f"{kind} is {pixels.dtype} {list(pixels.shape)}, not uint8 {wanted}")
        return pixels

    def _resized(self, frames: np.ndarray, min_pixels: int, max_pixels: int) -> np.ndarray:
        cell = self.model.vision.patch_size * self.model.vision.spatial_merge_size
        return resize_bicubic(frames, *smart_resize(*frames.shape[1:3], cell, min_pixels, max_pixels))

    def _features(self, arrays: Any) -> np.ndarray:
        if self.model.features is None:
            raise ValueError("the model reads no features")
        if not isinstance(arrays, Mapping):
            raise ValueError(f"features are a {type(arrays).__name__}, not a mapping from name to array")
        return join_features(arrays, self.model.features)


@dataclasses.dataclass
class _Collected:
    """A row's media in order of appearance."""

    media: list[Media] = dataclasses.field(default_factory=list)
    mels: list[np.ndarray] = dataclasses.field(default_factory=list)
    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    features: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, medium: Media) -> None:
        self.media.append(medium)


def _kind(item: Any) -> Any:
    return item.get("type") if isinstance(item, Mapping) else None


def _payload(item: Mapping[str, Any], kind: str = "") -> Any:
    """What an item holds of a kind, that of its type where none is named."""
    kind = kind or item["type"]
    if item.get(kind) is None:
        raise ValueError(f"an item of type {kind!r} has no {kind!r}")
    return item[kind]


def _roomy(needs: Sequence[Bucket]) -> Bucket:
    """The largest need of each kind, rounded up: prompts to whole steps, media to 1, 2 or a multiple of 4."""
    largest = {field.name: max(getattr(need, field.name) for need in needs) for field in dataclasses.fields(Bucket)}
    rounded = {name: size if size <= 2 else -(-size // 4) * 4 for name, size in largest.items()}
    return Bucket(**rounded | {"prompt_tokens": -(-largest["prompt_tokens"] // _PROMPT_STEP) * _PROMPT_STEP})
