"""The text side of the model: a `tokenizers` file with the special tokens of Qwen2.5-Omni, and how one is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
AUDIO, AUDIO_START, AUDIO_END = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
VIDEO, IMAGE, VISION_START, VISION_END = "<|VIDEO|>", "<|IMAGE|>", "<|vision_bos|>", "<|vision_eos|>"
FEATURES = "<|FEATURES|>"  # precomputed features; the published vocabulary has no token for them
SPECIAL_TOKENS = (
    END_OF_TEXT, IM_START, IM_END, AUDIO, AUDIO_START, AUDIO_END, IMAGE, VIDEO, VISION_START, VISION_END, FEATURES,
)  # fmt: skip


class Tokenizer:
    """Encodes and decodes text; knows the ids of the special tokens."""

    def __init__(self, backend: tokenizers.Tokenizer):
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise ValueError(f"tokenizer lacks the special tokens {missing}")
        self._backend = backend
        self.pad_id = backend.token_to_id(END_OF_TEXT)
        self.end_ids = (backend.token_to_id(IM_END), backend.token_to_id(END_OF_TEXT))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Loads a `tokenizer.json`."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no tokenizer at {path}")
        return cls(tokenizers.Tokenizer.from_file(str(path)))

    def save(self, path: str | Path) -> None:
        self._backend.save(str(path))

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def special(self, token: str) -> int:
        """The id of a special token."""
        return self._backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Special tokens written out in `text` are data, not control: they are split like words."""
        return self._backend.encode(_defuse(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens dropped."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=True).strip()


def _defuse(text: str) -> str:
    """Breaks up the delimiters of special tokens, so that a transcript cannot speak for the chat template."""
    return text.replace("<|", "< |").replace("|>", "| >")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer (the kind Qwen2.5 has) on texts; any text can be encoded with it."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(map(_defuse, texts), trainer)
    return Tokenizer(backend)
