"""What the Hugging Face directory of a text model holds: JSON files, a tokenizer, weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import tokenizers

from mecap_jax import json_files
from mecap_jax.json_files import is_named
from mecap_jax.models.bert import BertConfig
from mecap_jax.tokenizer_files import read_tokenizer


class TextModelError(ValueError):
    """A directory that holds no text model this package can run; the message names the file or the key."""


def read_json(path: Path, kind: type, optional: bool = False) -> Any:
    """Reads a JSON value of type `kind`; an optional file that is not there reads as an empty one.

    Raises:
      TextModelError: as `json_files.read_json`.
    """
    if optional and not is_named(path):
        return kind()
    try:
        return json_files.read_json(path, kind)
    except (OSError, ValueError) as error:
        raise TextModelError(str(error)) from None


def weights_file(directory: Path) -> Path:
    """Returns the path of `model.safetensors`.

    Raises:
      TextModelError: it is not there.
    """
    path = directory / "model.safetensors"
    if not path.is_file():
        raise TextModelError(f"no such file: {path} (pickled weights are not read)")
    return path


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tokenizer(directory: Path, config: BertConfig, max_tokens: int | None = None) -> tokenizers.Tokenizer:
    """Reads `tokenizer.json`; the tokenizer cuts texts where `transformers` does and pads none.

    Args:
      directory: also holds the optional `tokenizer_config.json`.
      config: the encoder that reads the tokens; no text gets longer than its position table.
      max_tokens: most tokens of a text, special ones included; None takes what `tokenizer_config.json` says.

    Raises:
      TextModelError: a file is missing or ill-formed, or holds more tokens than the encoder.
    """
    settings = read_json(directory / "tokenizer_config.json", dict, optional=True)
    path = directory / "tokenizer.json"
    try:
        tokenizer = read_tokenizer(path)
    except (OSError, ValueError) as error:
        raise TextModelError(str(error)) from None
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise TextModelError(
            f"{path} has {tokenizer.get_vocab_size()} tokens, more than the {config.vocab_size} of config.json"
        )
    limits = [n for n in (max_tokens, settings.get("model_max_length")) if isinstance(n, int)][:1]
    side = settings.get("truncation_side", (tokenizer.truncation or {}).get("direction", "right"))
    if side not in ("left", "right"):
        raise TextModelError(f"{directory / 'tokenizer_config.json'}: truncation_side {side!r:.40} is no side")
    tokenizer.no_padding()
    tokenizer.enable_truncation(min([*limits, config.max_tokens]), direction=side)
    return tokenizer
