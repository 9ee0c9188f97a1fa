"""The arrays that pass between pipeline, model and trainer.

Named tuples: JAX treats them as pytrees, and the pipeline's reader processes can build them without importing JAX.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # numpy.ndarray before the device, jax.Array on it


class PromptBatch(NamedTuple):
    """A batch of B prompts padded to one static shape (a `config.Bucket`); padding is on the right.

    Media are encoded into one table of tokens a row: audio chunks first, then frames, then tokens that were encoded
    before, then feature frames.
    `media_index` says which table entry stands at a prompt position, so placeholders may interleave in any way and a
    missing modality is merely a table part that nothing points at.

    Attributes:
      tokens: int32 [B, P], token ids; media placeholders included.
      length: int32 [B], how many of the P positions are valid.
      media_index: int32 [B, P], index into the row's media table, -1 where the position is text.
      positions: int32 [B, 3, P], temporal, height and width position of each token.
      next_position: int32 [B], position of the first token after the prompt.
      audio: float32 [B, C, F, M], log-mel frames in C chunks of F frames.
      audio_frames: int32 [B, C], valid frames of each chunk.
      patches: uint8 [B, T, K, M, D], pixels of video patches: T temporal patches (pairs of frames) of K merge cells in
        raster order, each of M patches; a cell gives one token. (HumanOmni: float32, see `HumanOmni.encode_media`.)
      cell_positions: int32 [B, T, K, 2], row and column of each cell in its frame, -1 where there is no cell.
      windows: int32 [B, T, W, Q], which of the K cells stand in the Q places of each attention window, -1 where none.
      media_tokens: [B, H, D], decoder tokens that frozen towers gave before, in place of `audio` and `patches`:
        float32, or bfloat16 as raw uint16, because NumPy has no such type.
      features: float32 [B, N, E], precomputed features, concatenated over their kinds.
      instruction: int32 [B, L], BERT's tokens of what is asked, for models whose projector is told (HumanOmni); L is 0
        for all others.
      instruction_length: int32 [B], how many of them are valid.
    """

    tokens: Array
    length: Array
    media_index: Array
    positions: Array
    next_position: Array
    audio: Array
    audio_frames: Array
    patches: Array
    cell_positions: Array
    windows: Array
    media_tokens: Array
    features: Array
    instruction: Array
    instruction_length: Array

    @property
    def has_raw_media(self) -> bool:
        """Whether there is something for a tower."""
        return bool(self.audio.shape[1] or self.patches.shape[1])

    def cut(self, length: int) -> PromptBatch:
        """The first `length` of the P positions: the same prompts, where none is longer."""
        first = {name: getattr(self, name)[:, :length] for name in ("tokens", "media_index")}
        return self._replace(**first, positions=self.positions[:, :, :length])

    def without(self, fields: tuple[str, ...]) -> PromptBatch:
        """The same prompts with nothing in these fields."""
        return self._replace(**{name: getattr(self, name)[:, :0] for name in fields})


# What towers read, and that with what stands in its place.
RAW_MEDIA = ("audio", "audio_frames", "patches", "cell_positions", "windows")
MEDIA = (*RAW_MEDIA, "media_tokens", "features")


class Completions(NamedTuple):
    """G completions for each of B prompts, padded to T tokens: on the right, or, as ends of prompts, on the left.

    Attributes:
      tokens: int32 [B, G, T].
      mask: bool [B, G, T], which tokens count; of a completion those up to and including the first end-of-text token.
    """

    tokens: Array
    mask: Array
