"""Makes the work of a row: random weights as our export writes them, and prompts. The directory holds `work.json`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np

from benchmarks.throughput.models import model_of
from benchmarks.throughput.work import Work
from mecap_jax.config import MeshConfig, load
from mecap_jax.config.schema import MEDIA_SETTINGS
from mecap_jax.data.processor import Processor
from mecap_jax.data.processor_settings import ProcessorSettings
from mecap_jax.data.shards import write as write_shards
from mecap_jax.data.tokenizer import train_tokenizer
from mecap_jax.data.utterance import Utterance
from mecap_jax.emotions import EMOTIONS
from mecap_jax.families import FAMILIES
from mecap_jax.json_files import write_json
from mecap_jax.models.checkpoints.config_writer import format_config
from mecap_jax.models.checkpoints.hub import save_model
from mecap_jax.models.sentence_encoder import packaged_directory
from mecap_jax.rewards.templates import template_sentences
from mecap_jax.sharding import make_mesh
from mecap_jax.train_state import init_params

# Of a prompt, what is media: embeddings, an image with a token for 28 x 28 pixels, half sound and half video.
_MEDIA_SHARE = 0.75
_CELL = 28
_TOKENS_PER_SECOND = 25  # of sound
_FRAMES_PER_SECOND = 2.0
_SETTINGS = ProcessorSettings(video_min_pixels=4 * _CELL**2)  # frames stay as small as they are
_FILMS, _FILM_SECONDS = ((480, 640), (360, 640), (480, 480)), 8
MEDIA_CONFIG = "configs/grpo.py:qwen2_5_omni_3b"  # whose data settings clips are read with
_WORDS = ("tears", "words", "heart", "feeling", "good", "cheer")  # one token each


def prepare(directory: Path) -> None:
    work = Work.read(directory)
    match work.row:
        case "encoder":
            write_json(directory / "prompts.json", _sentences(work))
            write_json(directory / "encoder.json", {"directory": str(packaged_directory())})
        case "media":
            _write_clips(directory, work)
        case "start":
            pass
        case _:
            _write_model_and_prompts(directory, work)


def _sentences(work: Work) -> list[str]:
    """Caption-like sentences of 12 to 30 words."""
    words = " ".join(text for texts in template_sentences(EMOTIONS).values() for text in texts).split()
    rng = np.random.default_rng(work.seed)
    return [" ".join(rng.choice(words, rng.integers(12, 31))) for _ in range(work.prompts * work.batches)]


def _write_clips(directory: Path, work: Work) -> None:
    """Films of noise that moves, with sound, as files and as shards; and how frames of them are taken."""
    run = load(str(Path(__file__).parents[2] / MEDIA_CONFIG))
    (directory / "media").mkdir()
    utterances = []
    for number in range(work.prompts * work.batches):
        film = _film(_FILMS[number % len(_FILMS)], np.random.default_rng([work.seed, number]))
        (directory / "media" / f"{number:03}.mp4").write_bytes(film)
        utterances.append(
            Utterance(
                id=f"{number}", dataset="noise", split="train", speaker="nobody", transcript="Words.", audio=None,
                video=film, labels={"multimodal": "happy"}, captions={"overall": ("a caption",)},
            )
        )  # fmt: skip
    write_shards(utterances, directory / "shards", "bench_throughput.py", {"importer": "noise"})
    sentences = [text for texts in template_sentences(EMOTIONS).values() for text in texts]
    processor = Processor(train_tokenizer(sentences, 2048, run.model.family), run.model, _SETTINGS)
    processor.save(directory / "model")
    # The processor alone: no weights are drawn, and nothing asks for them.
    write_json(directory / "model" / "config.json", format_config(run.model, _ids(processor)))
    write_json(directory / "frames.json", {name: getattr(run.data, name) for name in MEDIA_SETTINGS})


def _film(size: tuple[int, int], rng: np.random.Generator) -> bytes:
    """Eight seconds of H.264 at 25 frames a second, with sound in AAC."""
    file, (height, width) = io.BytesIO(), size
    with av.open(file, "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        sound = output.add_stream("aac", rate=48_000, layout="mono")
        picture = np.kron(
            rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8), np.ones((20, 20, 1), np.uint8)
        )
        for i in range(25 * _FILM_SECONDS):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * i, axis=1), format="rgb24")
            output.mux(video.encode(frame))
        output.mux(video.encode())
        wave = rng.normal(0, 0.1, (1, 48_000 * _FILM_SECONDS)).astype(np.float32)
        samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        samples.rate = 48_000
        output.mux(sound.encode(samples))
        output.mux(sound.encode())
    return file.getvalue()


def _write_model_and_prompts(directory: Path, work: Work) -> None:
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
    model = processor.model
    write_json(directory / "config.json", format_config(model, _ids(processor)))
    _, params = init_params(model, seed, make_mesh(MeshConfig(), jax.devices()[:1]))
    save_model(directory, model, params)


def _ids(processor: Processor) -> dict[str, Any]:
    tokenizer, family = processor.tokenizer, FAMILIES[processor.model.family]
    ids = {field: tokenizer.special(getattr(family.media, token)) for field, token in family.media_ids.items()}
    return ids | {"bos_token_id": None, "eos_token_id": list(tokenizer.end_ids), "pad_token_id": tokenizer.pad_id}


if __name__ == "__main__":
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        sys.exit(f"JAX sees no device of the platform {os.environ['JAX_PLATFORMS']!r}")
    prepare(Path("."))
