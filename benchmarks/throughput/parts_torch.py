"""The other side of the rows for parts: `sentence-transformers`, and a `DataLoader` with `transformers`' processor.

parts_torch.py encoder | media
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.throughput.parts import run
from benchmarks.throughput.torch_setup import prepare_torch
from benchmarks.throughput.work import Work, read_prompts
from benchmarks.throughput.worker import cores
from mecap_jax.json_files import read_json_object

prepare_torch()  # declares what the imports below look for
_RATE = 16_000


def encoder(work: Work) -> Iterator[dict[str, float]]:
    """Sentences, batch by batch."""
    from sentence_transformers import SentenceTransformer

    directory, texts = read_json_object(Path("encoder.json"))["directory"], read_prompts(Path("."))
    model = SentenceTransformer(directory, device="cpu", local_files_only=True)
    batches = [texts[i : i + work.prompts] for i in range(0, len(texts), work.prompts)]
    while True:
        found = [model.encode(batch, batch_size=work.prompts, show_progress_bar=False) for batch in batches]
        yield {"items": len(texts), "sum": float(np.abs(np.concatenate(found)).sum())}


def media(work: Work, workers: int = 0) -> Iterator[dict[str, float]]:
    """Clips from files to the model's inputs, in so many processes (0: in this one)."""
    from transformers import AutoProcessor

    processor, clips = AutoProcessor.from_pretrained("model"), Clips(read_json_object(Path("frames.json")))
    collate = functools.partial(_prepared, processor)
    loader = torch.utils.data.DataLoader(clips, work.prompts, collate_fn=collate, num_workers=workers)
    while True:
        found = [(len(inputs["pixel_values_videos"]), int(inputs["feature_attention_mask"].sum())) for inputs in loader]
        patches, frames = map(sum, zip(*found))
        yield {"items": len(clips), "patches": patches, "audio_frames": frames}


class Clips(torch.utils.data.Dataset):
    """Sound and some frames of each file, as `qwen-omni-utils` reads them.

    All of a file is decoded; evenly spaced frames are kept, and resized before the processor sees them.
    """

    def __init__(self, settings: dict[str, Any]):
        self.files, self.settings = sorted(Path("media").glob("*.mp4")), settings

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[np.ndarray, torch.Tensor]:
        data = self.files[number].read_bytes()
        return _sound(data), self._frames(data)

    def _frames(self, data: bytes) -> torch.Tensor:
        import av
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = list(container.decode(stream))
            seconds = float(stream.duration * stream.time_base)
        count = round(min(self.settings["max_frames"], self.settings["fps"] * seconds) / 2) * 2
        chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
        video = torch.from_numpy(np.stack([frames[i].to_ndarray(format="rgb24") for i in chosen])).permute(0, 3, 1, 2)
        least, most = self.settings["min_pixels"], self.settings["max_pixels"]
        size = smart_resize(*video.shape[2:], factor=28, min_pixels=least, max_pixels=most)
        return torch.nn.functional.interpolate(video.float(), size, mode="bicubic", antialias=True).clamp(0, 255).byte()


def _sound(data: bytes) -> np.ndarray:
    import av

    with av.open(io.BytesIO(data)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=_RATE)
        decoded = [part for frame in [*container.decode(audio=0), None] for part in resampler.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in decoded])


def _prepared(processor: Any, clips: list[tuple[np.ndarray, torch.Tensor]]) -> dict[str, torch.Tensor]:
    sounds, videos = zip(*clips)
    question = [{"role": "user", "content": [{"type": "audio"}, {"type": "video"}, {"type": "text", "text": "How?"}]}]
    text = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    return processor(
        text=[text] * len(clips), audio=list(sounds), videos=list(videos), videos_kwargs={"do_resize": False},
        padding=True, return_tensors="pt",
    )  # fmt: skip


if __name__ == "__main__":
    settings = {"threads": torch.get_num_threads(), "workers": cores()}
    parts = {"encoder": encoder, "media": functools.partial(media, workers=cores())}
    run(parts, settings, "torch", "transformers", "sentence-transformers")
