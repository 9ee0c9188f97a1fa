"""From messages to prompt tokens: media placeholders expanded, with pointers and multimodal rotary positions.

The rendered conversation is tokenised once. Then each placeholder becomes the tokens of its media: a pointer into the
row's media table (audio tokens, then vision tokens, then feature frames) and positions on three axes, as in
Qwen2.5-Omni's TMRoPE (arXiv 2503.20215, section 2.2) or in Qwen2.5-VL (arXiv 2502.13923, section 2.1.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.families import FAMILIES
from mecap_jax.model_config import ModelConfig

TEXT, AUDIO, VISION, FEATURES = range(4)


@dataclasses.dataclass(frozen=True)
class PromptLayout:
    """One laid-out prompt of n tokens.

    Attributes:
      tokens: int32 [n].
      kind: int8 [n], which media table an entry points into (TEXT: none).
      index: int32 [n], the entry within that kind's table: media of one kind in order of appearance, each in the
        order in which its tower gives tokens.
      positions: int32 [3, n], temporal, height, width.
    """

    tokens: np.ndarray
    kind: np.ndarray
    index: np.ndarray
    positions: np.ndarray

    @property
    def next_position(self) -> int:
        """Position of the first token after the prompt."""
        return int(self.positions.max()) + 1


@dataclasses.dataclass(frozen=True)
class AudioSpan:
    """Decoder tokens of a stretch of sound."""

    tokens: int


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Decoder tokens of a picture: rows x columns."""

    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class VideoGrid:
    """Decoder tokens of a video: temporal patches x rows x columns, and the seconds from one to the next.

    With `audio_tokens` the tokens of its sound stand between those of its pictures, chunk by chunk.
    """

    frames: int
    rows: int
    columns: int
    seconds_per_frame: float
    audio_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class FeatureSpan:
    """Decoder tokens of precomputed features: one a frame."""

    frames: int


Media = AudioSpan | ImageGrid | VideoGrid | FeatureSpan
_NAMES = {AudioSpan: "audio", ImageGrid: "image", VideoGrid: "video", FeatureSpan: "features"}


def lay_out(
    tokenizer: Tokenizer, model: ModelConfig, messages: Sequence[Mapping[str, Any]], media: Sequence[Media]
) -> PromptLayout:
    """Lays out a conversation; the assistant's turn begins right behind it.

    Args:
      messages: as `chat_template.render` takes them.
      media: what stands at the placeholders, in the order of the messages.

    Raises:
      ValueError: the template fails, or its placeholders are not those of `media`.
    """
    encoded = tokenizer.encode_conversation(messages)
    places = [place for place, token in enumerate(encoded) if token in tokenizer.placeholders]
    found = [tokenizer.placeholders[encoded[place]] for place in places]
    wanted = [_NAMES[type(medium)] for medium in media]
    if found != wanted:
        raise ValueError(
            f"the rendered prompt has placeholders for [{', '.join(found)}], the media are [{', '.join(wanted)}]"
        )
    builder = _Builder(tokenizer, model)
    ids, start = np.array(encoded, np.int32), 0
    for place, medium in zip(places, media, strict=True):
        builder.text(ids[start:place])
        builder.medium(medium)
        start = place + 1
    builder.text(ids[start:])
    return builder.build()


def user_turn(media: Iterable[str], text: str) -> list[dict[str, Any]]:
    """Messages of one user turn: items of media ("audio", "video", "features", ...), then a text."""
    content = [{"type": kind} for kind in media]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def encode_target(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[int]:
    """Ids of a target caption with its end token; a caption that is too long is cut and then has no end."""
    return [*tokenizer.encode(text), tokenizer.end_ids[0]][:max_tokens]


class _Builder:
    """Appends segments; each starts at the next free position."""

    def __init__(self, tokenizer: Tokenizer, model: ModelConfig):
        self._tokenizer, self._model = tokenizer, model
        self._is_mrope = FAMILIES[model.family].positions == "mrope"
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._used = {AUDIO: 0, VISION: 0, FEATURES: 0}
        self._next = 0

    def text(self, tokens: np.ndarray) -> None:
        self._add(tokens, TEXT, np.full(len(tokens), -1), _line(len(tokens)))

    def medium(self, medium: Media) -> None:
        tokens = self._tokenizer.media
        match medium:
            case AudioSpan(count):
                self._media(self._tokenizer.special(tokens.audio), AUDIO, _line(count))
            case FeatureSpan(count):
                self._media(self._tokenizer.features_input_id, FEATURES, _line(count))
            case ImageGrid(rows, columns):
                self._vision(self._tokenizer.special(tokens.image), _grid(np.zeros(1, np.int64), rows, columns))
            case VideoGrid(audio_tokens=0):
                self._vision(self._tokenizer.special(tokens.video), self._video_offsets(medium))
            case VideoGrid():
                self._video_with_sound(medium)

    def build(self) -> PromptLayout:
        tokens, kind, index, positions = (np.concatenate(parts, axis=-1) for parts in zip(*self._parts))
        return PromptLayout(tokens, kind, index, positions)

    def _add(self, tokens, kind, index, offsets) -> None:
        """Appends tokens at `offsets` [3, n] from the next free position; `kind` is one for all or one each."""
        if not len(tokens):
            return
        positions = np.asarray(offsets, np.int32) + self._next
        kinds = np.empty(len(tokens), np.int8)
        kinds[:] = kind
        self._parts.append((np.asarray(tokens, np.int32), kinds, np.asarray(index, np.int32), positions))
        self._next = int(positions.max()) + 1

    def _media(self, token: int, kind: int, offsets: np.ndarray) -> None:
        count = offsets.shape[1]
        self._add(np.full(count, token), kind, self._take(kind, count), offsets)

    def _take(self, kind: int, count: int) -> np.ndarray:
        """The next `count` entries of a table."""
        start = self._used[kind]
        self._used[kind] += count
        return np.arange(start, start + count)

    def _vision(self, token: int, offsets: np.ndarray) -> None:
        start = self._next
        self._media(token, VISION, offsets)
        if self._is_mrope:
            # Text goes on behind the picture's longer side, however long the video lasts.
            self._next = start + int(offsets[1:].max()) + 1

    def _video_offsets(self, grid: VideoGrid) -> np.ndarray:
        # float32 and this order of products, as in the published code: 0.4 s x 25 must truncate to the same integer.
        steps, seconds = np.arange(grid.frames, dtype=np.float32), np.float32(grid.seconds_per_frame)
        rate = np.float32(self._model.position_id_per_seconds)
        time = steps * (rate * seconds) if self._is_mrope else steps * seconds * rate
        return _grid(time.astype(np.int64), grid.rows, grid.columns)

    def _video_with_sound(self, grid: VideoGrid) -> None:
        """Pictures and sound in turns of `seconds_per_chunk`, between the delimiters of audio.

        Each pair of delimiters, the video's around the sound's, shares one position.
        """
        tokens, rate = self._tokenizer.media, self._model.position_id_per_seconds
        chunk = int(rate * self._model.seconds_per_chunk)
        video, audio = self._video_offsets(grid), _line(grid.audio_tokens)
        # The published processor orders the tokens by exact times, the published model the positions by whole ones.
        times = np.repeat(np.arange(grid.frames), grid.rows * grid.columns) * float(grid.seconds_per_frame) * rate
        audio_chunks = _chunks(audio[0], chunk)
        token_order = np.concatenate(_in_turns(_chunks(times, chunk), audio_chunks, len(times)))
        position_turns = _in_turns(_chunks(video[0], chunk), audio_chunks, len(times))
        ids = (self._tokenizer.special(tokens.video), self._tokenizer.special(tokens.audio))
        counts = (len(times), grid.audio_tokens)
        kind, index = (
            np.repeat((VISION, AUDIO), counts),
            np.r_[self._take(VISION, counts[0]), self._take(AUDIO, counts[1])],
        )
        offsets = np.concatenate([video, audio], axis=1)

        self._next -= 1
        self.text([self._tokenizer.special(tokens.audio_start)])
        start = self._next
        order = np.concatenate(position_turns)
        self._add(np.repeat(ids, counts)[token_order], kind[token_order], index[token_order], offsets[:, order])
        # What follows counts from the last turn, also where an earlier turn reached further.
        self._next = start + int(offsets[:, position_turns[-1]].max()) + 1
        self.text([self._tokenizer.special(tokens.audio_end)])
        self._next -= 1


def _line(count: int) -> np.ndarray:
    line = np.arange(count)
    return np.stack([line, line, line])


def _grid(time: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Offsets [3, tokens] of temporal patches at `time`, in raster order."""
    return np.stack([axis.ravel() for axis in np.meshgrid(time, np.arange(rows), np.arange(columns), indexing="ij")])


def _chunks(times: np.ndarray, length: int) -> list[tuple[int, int]]:
    """Cuts tokens at `times` where they pass the next multiple of `length`: (start, end) of each chunk.

    A gap longer than a chunk moves the limit on by one chunk only, so the tokens behind it are cut one by one until
    the limit has caught up; the published code does so, and its weights are used to it.
    """
    bounds, start = [], 0
    for i, time in enumerate(times.tolist()):
        if time >= (len(bounds) + 1) * length:
            bounds.append((start, i))
            start = i
    return [*bounds, (start, len(times))]


def _in_turns(video: list[tuple[int, int]], audio: list[tuple[int, int]], video_tokens: int) -> list[np.ndarray]:
    """Chunks in turns, video first, as places in the table of video tokens followed by audio tokens."""
    turns = []
    for pictures, sound in zip_longest(video, audio):
        if pictures is not None:
            turns.append(np.arange(*pictures))
        if sound is not None:
            turns.append(np.arange(*sound) + video_tokens)
    return turns
