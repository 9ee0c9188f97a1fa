"""The work that both sides of a comparison do, as files in a directory that their processes read.

  work.json     a `Work`
  prompts.json  conversations, sentences, or token ids: those from the vocabulary's size on are rows of `media.npy`
  media/        arrays that the conversations name, or files of clips; shards/: the same as a run reads them
  model/        weights, configuration and processor in the Hugging Face layout

Neither JAX nor torch is imported here: the sides share no process.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mecap_jax.json_files import read_json, read_json_object, write_json

VOWELS = frozenset("aeiou")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step of GRPO is asked to do; both sides get their settings from here.

    Attributes:
      row: "text", "image", "embeddings" or "clips": what the prompts are made of; or a part of the work, "encoder",
        "media" or "start".
      prompts, group: prompts a step, and completions of each; of a part, what a batch holds.
      prompt_tokens: length of every prompt, media included.
      completion_tokens: length of every completion; an end of text is not sampled.
      beta: weight of the KL divergence to the reference policy, which is the policy at the start.
      clip, learning_rate, clip_norm: of the loss "grpo" and of AdamW (.9, .999, 1e-8, no decay), the same each step.
      batches: different batches of prompts, taken in turn.
      size: of the decoder, see `models.DECODERS`.
      dtype: of our products; parameters and optimiser are in float32.
      accumulate: batches in which the others take a step's gradient, because it does not fit in one.
    """

    row: str
    prompts: int = 2
    group: int = 8
    prompt_tokens: int = 512
    completion_tokens: int = 32
    beta: float = 0.04
    clip: float = 0.2
    learning_rate: float = 1e-6
    clip_norm: float = 1.0
    batches: int = 2
    size: str = "28m"
    dtype: str = "float32"
    accumulate: int = 1
    seed: int = 0

    def save(self, directory: Path) -> None:
        write_json(directory / "work.json", dataclasses.asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Work:
        return cls(**read_json_object(directory / "work.json"))


def read_prompts(directory: Path) -> list[Any]:
    """Conversations with their media in place, sentences, or lists of token ids; `prompts * batches` of them."""
    prompts = read_json(directory / "prompts.json", list)
    if isinstance(prompts[0], str) or isinstance(prompts[0][0], int):
        return prompts
    return [
        [message | {"content": [_item(directory, i) for i in message["content"]]} for message in p] for p in prompts
    ]


def _item(directory: Path, item: dict[str, Any]) -> dict[str, Any]:
    named = {
        key: np.load(directory / "media" / value, allow_pickle=False) for key, value in item.items() if _file(value)
    }
    return item | named


def _file(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".npy")


def batches(prompts: list[Any], size: int) -> Iterator[list[Any]]:
    """Batches of so many prompts, from the first to the last and again."""
    start = 0
    while True:
        yield prompts[start : start + size]
        start = (start + size) % len(prompts)


def reward(text: str) -> float:
    """The reward of both sides: the share of vowels. It costs nothing and differs within a group."""
    return sum(letter in VOWELS for letter in text) / max(len(text), 1)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by name."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in packages}


def plain(value: Any) -> Any:
    """The value as JSON has it; what it does not have by its name."""
    return json.loads(json.dumps(value, default=str, allow_nan=True))
