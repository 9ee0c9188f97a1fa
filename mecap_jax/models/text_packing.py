"""Runs texts of any number and length through a BERT with few programs: several texts share a row of tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from flax import nnx
from jaxtyping import Array, Float, Int

from mecap_jax.models.bert import BertConfig

_ROW_LENGTHS = (64, 128, 256)
_ROW_COUNTS = (2, 8, 32)


class PackedTexts:
    """A network over packed rows of tokens, float32 throughout.

    Packing leaves little padding to compute and needs few programs: one for each row length (three and the longest
    text's) times three row counts, whatever the lengths and the number of the texts.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        config: BertConfig,
        network: nnx.Module,
        apply: Callable[..., Array],
        width: int,
    ):
        """Keeps the network's parameters on the host's CPU device, where it runs.

        Rewards are computed while the accelerators sample and score. A program that is launched on one of them would
        wait in its queue until that is done, and so would the reward's time-out.

        Args:
          tokenizer: truncates to the longest text, see `load_tokenizer`.
          config: the encoder within the network.
          network: whatever `apply` takes.
          apply: (network, tokens, positions, segments, sentences) -> [rows, sentences, width], see `Bert`.
          width: values of a text.
        """
        max_tokens = tokenizer.truncation["max_length"]
        self._tokenizer, self._config, self._width = tokenizer, config, width
        self._lengths = [length for length in _ROW_LENGTHS if length < max_tokens] + [max_tokens]
        graphdef, state = nnx.split(network)
        self.state = jax.device_put(state, _host())
        self._forward = jax.jit(functools.partial(_forward, graphdef, apply))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [n, width]; a text without any token gets zeros."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        outputs = []
        for low, length in zip([0, *self._lengths], self._lengths):
            members = [i for i, ids in enumerate(tokens) if low < len(ids) <= length]
            rows = pack_rows({i: len(tokens[i]) for i in members}, length, _sentences(length))
            while rows:
                count = max((count for count in _ROW_COUNTS if count <= len(rows)), default=_ROW_COUNTS[0])
                chunk, rows = rows[:count], rows[count:]
                outputs.append((chunk, self._forward(self.state, self._batch(chunk, tokens, count, length))))
        values = np.zeros((len(texts), self._width), np.float32)
        # All chunks are under way before the first one is waited for.
        for chunk, computed in outputs:
            for row, members in zip(np.asarray(computed), chunk):
                values[members] = row[: len(members)]
        return values

    def _batch(self, rows: list[list[int]], tokens: list[list[int]], count: int, length: int) -> np.ndarray:
        """Returns tokens, positions and segments of packed rows, int32 [3, count, length]."""
        batch = np.zeros((3, count, length), np.int32)
        for r, members in enumerate(rows):
            start = 0
            for segment, i in enumerate(members, start=1):
                end = start + len(tokens[i])
                batch[0, r, start:end] = tokens[i]
                batch[1, r, start:end] = self._config.positions(batch[0, r, start:end])
                batch[2, r, start:end] = segment
                start = end
        return batch


def _host() -> jax.Device | None:
    """This process's first CPU device; None, the default device, where `JAX_PLATFORMS` leaves CPUs out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def check_texts(texts: Sequence[Any]) -> None:
    """Refuses what a tokenizer cannot read.

    Raises:
      TypeError: one string instead of several, or an item that is no string.
      ValueError: an item is not valid Unicode.
    """
    if isinstance(texts, str):
        raise TypeError("expected a sequence of strings, got one string")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} must be a string, got {type(text).__name__}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"text {i} is not valid Unicode: {error}") from None


def pack_rows(lengths: Mapping[int, int], row_length: int, most: int) -> list[list[int]]:
    """Packs items into rows by best fit, longest first.

    Args:
      lengths: length of each item, at most `row_length`.
      row_length: what a row holds.
      most: most items in a row.

    Returns:
      The items of each row.
    """
    rows: list[list[int]] = []
    open_rows: list[list[list[int]]] = [[] for _ in range(row_length + 1)]  # by free space
    for item, length in sorted(lengths.items(), key=lambda entry: -entry[1]):
        room = next((room for room in range(length, row_length + 1) if open_rows[room]), None)
        if room is None:
            room, row = row_length, []
            rows.append(row)
        else:
            row = open_rows[room].pop()
        row.append(item)
        if len(row) < most:
            open_rows[room - length].append(row)
    return rows


def _sentences(row_length: int) -> int:
    """Most sentences in a row: as many as short captions fill."""
    return max(1, row_length // 8)


def _forward(
    graphdef: Any, apply: Callable[..., Array], state: Any, batch: Int[Array, "3 R L"]
) -> Float[Array, "R S width"]:
    # Accelerators multiply float32 matrices in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        tokens, positions, segments = batch
        return apply(nnx.merge(graphdef, state), tokens, positions, segments, _sentences(tokens.shape[1]))
