"""Makes the work of a row: random weights as our export writes them, and prompts. The directory holds `work.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.throughput.models import model_of
from benchmarks.throughput.work import Work
from mecap_jax.config import MeshConfig
from mecap_jax.data.processor import Processor
from mecap_jax.data.processor_settings import ProcessorSettings
from mecap_jax.data.tokenizer import train_tokenizer
from mecap_jax.emotions import EMOTIONS
from mecap_jax.families import FAMILIES
from mecap_jax.json_files import write_json
from mecap_jax.models.checkpoints.config_writer import format_config
from mecap_jax.models.checkpoints.hub import save_model
from mecap_jax.rewards.templates import template_sentences
from mecap_jax.sharding import make_mesh
from mecap_jax.train_state import init_params

# Of a prompt, what is media: embeddings, an image with a token for 28 x 28 pixels, half sound and half video.
_MEDIA_SHARE = 0.75
_CELL = 28
_TOKENS_PER_SECOND = 25  # of sound
_FRAMES_PER_SECOND = 2.0
_SETTINGS = ProcessorSettings(video_min_pixels=4 * _CELL**2)  # frames stay as small as they are
_WORDS = ("tears", "words", "heart", "feeling", "good", "cheer")  # one token each


def prepare(directory: Path) -> None:
    work = Work.read(directory)
    model, rng = model_of(work), np.random.default_rng(work.seed)
    sentences = [text for texts in template_sentences(EMOTIONS).values() for text in texts]
    tokenizer = train_tokenizer(sentences, 2048, model.family)
    processor = Processor(tokenizer, model, _SETTINGS)
    save(directory / "model", processor, work.seed)
    count = work.prompts * work.batches
    if work.row in ("image", "clips"):
        (directory / "media").mkdir()
        conversations = [_conversation(directory, work, number, processor, rng) for number in range(count)]
        write_json(directory / "prompts.json", conversations)
        return
    ids = rng.integers(16, tokenizer.vocab_size, (count, work.prompt_tokens))
    if work.row == "embeddings":
        media = int(_MEDIA_SHARE * work.prompt_tokens)
        numbers = model.decoder.vocab_size + np.arange(count * media).reshape(count, media)
        ids = np.concatenate([ids[:, :8], numbers, ids[:, 8 + media :]], axis=1)
        table = rng.normal(0, 0.02, (count * media, model.decoder.hidden_size)).astype(np.float32)
        np.save(directory / "media.npy", table, allow_pickle=False)
    write_json(directory / "prompts.json", ids.tolist())


def _conversation(
    directory: Path, work: Work, number: int, processor: Processor, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """A question about random media, which fill their share of the prompt; the rest of it is words."""
    tokens = int(_MEDIA_SHARE * work.prompt_tokens)

    def pixels(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 3), np.uint8)

    if work.row == "image":
        side = round(tokens**0.5)
        media = {"image": pixels(side * _CELL, side * _CELL)}
    else:
        seconds = tokens // 2 / _TOKENS_PER_SECOND
        pairs = max(1, round(seconds * _FRAMES_PER_SECOND / 2))
        side = round((tokens // 2 / pairs) ** 0.5)
        sound = np.float32(rng.normal(0, 0.1, int(16_000 * seconds)))
        media = {"audio": sound, "video": pixels(2 * pairs, side * _CELL, side * _CELL)}

    def asked(words: int, media: dict[str, Any]) -> list[dict[str, Any]]:
        text = {"type": "text", "text": " ".join(_WORDS[i % len(_WORDS)] for i in range(words))}
        return [{"role": "user", "content": [*({"type": kind, kind: value} for kind, value in media.items()), text]}]

    words = work.prompt_tokens - int(processor([asked(0, media)]).length[0])
    if words < 1 or processor([asked(words, media)]).length[0] != work.prompt_tokens:
        raise ValueError(f"a prompt of {work.prompt_tokens} tokens cannot be made")
    files = {kind: f"{kind}-{number}.npy" for kind in media}
    for kind, name in files.items():
        np.save(directory / "media" / name, media[kind], allow_pickle=False)
    return asked(words, files)


def save(directory: Path, processor: Processor, seed: int) -> None:
    """Writes random weights, configuration and processor in the layout of an export."""
    processor.save(directory)
    model, tokenizer = processor.model, processor.tokenizer
    family = FAMILIES[model.family]
    ids = {field: tokenizer.special(getattr(family.media, token)) for field, token in family.media_ids.items()}
    ids |= {"bos_token_id": None, "eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}
    write_json(directory / "config.json", format_config(model, ids))
    _, params = init_params(model, seed, make_mesh(MeshConfig(), jax.devices()[:1]))
    save_model(directory, model, params)


if __name__ == "__main__":
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        sys.exit(f"JAX sees no device of the platform {os.environ['JAX_PLATFORMS']!r}")
    prepare(Path("."))
