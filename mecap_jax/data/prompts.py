"""From a decoded clip to prompt tokens: the chat template, media placeholders and multimodal rotary positions.

A prompt is laid out as a list of segments. Each segment contributes tokens, a pointer into the row's media table
(audio tokens, then video tokens, then feature frames) and positions on three axes; a segment starts one behind the
largest position so far, as in Qwen2.5-Omni's TMRoPE (arXiv 2503.20215, section 2.2).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mecap_jax.data import tokenizer as special
from mecap_jax.data.tokenizer import Tokenizer
from mecap_jax.model_config import ModelConfig

TEXT, AUDIO, VIDEO, FEATURES = range(4)


@dataclasses.dataclass(frozen=True)
class PromptLayout:
    """One laid-out prompt of n tokens.

    Attributes:
      tokens: int32 [n].
      kind: int8 [n], which media table an entry points into (TEXT: none).
      index: int32 [n], the entry within that kind's table, in the order in which its tower gives tokens.
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
class VideoGrid:
    """Decoder tokens of a video: temporal patches x rows x columns, and the seconds from one to the next."""

    frames: int
    rows: int
    columns: int
    seconds_per_frame: float

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.columns


class _Builder:
    def __init__(self):
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.next = 0

    def add(self, tokens, kind: int, index, offsets) -> None:
        """Appends tokens at `offsets` [3, n] from the next free position."""
        tokens = np.asarray(tokens, np.int32)
        if not len(tokens):
            return
        positions = np.asarray(offsets, np.int32) + self.next
        self.parts.append((tokens, np.full(len(tokens), kind, np.int8), np.asarray(index, np.int32), positions))
        self.next = max(self.next, int(positions.max()) + 1)

    def text(self, tokens) -> None:
        self.add(tokens, TEXT, np.full(len(tokens), -1), np.tile(np.arange(len(tokens)), (3, 1)))

    def sequence(self, token: int, kind: int, count: int) -> None:
        self.add(np.full(count, token), kind, np.arange(count), np.tile(np.arange(count), (3, 1)))

    def grid(self, token: int, grid: VideoGrid, positions_per_second: int) -> None:
        self.add(np.full(grid.tokens, token), VIDEO, np.arange(grid.tokens), grid_offsets(grid, positions_per_second))

    def build(self) -> PromptLayout:
        tokens, kind, index, positions = (np.concatenate(parts, axis=-1) for parts in zip(*self.parts))
        return PromptLayout(tokens, kind, index, positions)


def grid_offsets(grid: VideoGrid, positions_per_second: int) -> np.ndarray:
    """Temporal, height and width offsets [3, tokens] of a video in raster order."""
    # float32, as the published code computes it: a product like 0.4 s x 25 must truncate to the same integer.
    seconds = np.arange(grid.frames, dtype=np.float32) * np.float32(grid.seconds_per_frame)
    time = (seconds * np.float32(positions_per_second)).astype(np.int64)
    return np.stack(
        [a.ravel() for a in np.meshgrid(time, np.arange(grid.rows), np.arange(grid.columns), indexing="ij")]
    )


def lay_out_prompt(
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    instruction: str,
    transcript: str | None = None,
    audio_tokens: int = 0,
    video: VideoGrid | None = None,
    feature_frames: int = 0,
) -> PromptLayout:
    """Lays out one user turn in Qwen's chat format; the assistant's turn begins right behind it.

    A modality with no tokens leaves no trace: the prompt of a clip without video is the prompt of an audio clip.
    """
    builder = _Builder()
    newline = tokenizer.encode("\n")
    builder.text([tokenizer.special(special.IM_START), *tokenizer.encode("user"), *newline])
    if audio_tokens:
        builder.text([tokenizer.special(special.AUDIO_START)])
        builder.sequence(tokenizer.special(special.AUDIO), AUDIO, audio_tokens)
        builder.text([tokenizer.special(special.AUDIO_END)])
    if video is not None:
        builder.text([tokenizer.special(special.VISION_START)])
        builder.grid(tokenizer.special(special.VIDEO), video, model.position_id_per_seconds)
        builder.text([tokenizer.special(special.VISION_END)])
    if feature_frames:
        builder.sequence(tokenizer.special(special.FEATURES), FEATURES, feature_frames)
    request = instruction if transcript is None else f'"{transcript}" {instruction}'
    builder.text([*tokenizer.encode(request), tokenizer.special(special.IM_END), *newline])
    builder.text([tokenizer.special(special.IM_START), *tokenizer.encode("assistant"), *newline])
    return builder.build()


def encode_target(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[int]:
    """Ids of a target caption with its end token; a caption that is too long is cut and then has no end."""
    return [*tokenizer.encode(text), tokenizer.end_ids[0]][:max_tokens]
