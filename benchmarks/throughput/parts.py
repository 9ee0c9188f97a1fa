"""Our side of the rows for parts of the work: the sentence encoder, reading clips, and starting a run.

  parts.py encoder | media | start [cold]

A start is `scripts/train.py --config=configs/grpo.py` in a process of its own up to its first step, which is the SFT
stage's; "cold" forgets what earlier ones left behind (compiled programs, the synthetic corpus), else it is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.throughput.work import Work, read_prompts, versions
from benchmarks.throughput.worker import Parent, core_seconds

_ROOT = Path(__file__).parents[2]
_FIRST_STEP = "sft 1/1 "  # as progress is told on a pipe


def encoder(work: Work) -> Iterator[dict[str, float]]:
    """Sentences that are not in the cache, batch by batch."""
    from mecap_jax.models.sentence_encoder import load_sentence_encoder

    model, texts = load_sentence_encoder(), read_prompts(Path("."))
    while True:
        model.clear_cache()
        found = [model.encode(texts[i : i + work.prompts]) for i in range(0, len(texts), work.prompts)]
        yield {"items": len(texts), "sum": float(np.abs(np.concatenate(found)).sum())}


def media(work: Work) -> Iterator[dict[str, float]]:
    """Clips from shards to batches, as a run reads them: by threads of this process, none of them decoded before."""
    from benchmarks.throughput.prepare import MEDIA_CONFIG
    from mecap_jax.config import load
    from mecap_jax.data.pipeline import ClipDataset
    from mecap_jax.data.shards import ShardReader
    from mecap_jax.data.tokenizer import Tokenizer
    from mecap_jax.tasks.captioning import Captioning

    run = load(str(_ROOT / MEDIA_CONFIG))
    data, tokenizer = dataclasses.replace(run.data, cache_mb=0), Tokenizer.from_directory("model", run.model.family)
    task = Captioning(data.target, data.instruction)
    dataset = ClipDataset(ShardReader(Path("shards")), data, run.model, tokenizer, task)
    numbers = dataset.clips("train")
    while True:
        prompts = [batch.prompt for batch in dataset.evaluation_batches(numbers, work.prompts)]
        cells = sum(int((prompt.windows >= 0).sum()) for prompt in prompts)
        yield {
            "items": len(numbers),
            "patches": cells * run.model.vision.spatial_merge_size**2,
            "audio_frames": sum(int(prompt.audio_frames.sum()) for prompt in prompts),
        }


def start(work: Work) -> Iterator[dict[str, float]]:
    """Starts of the default recipe up to its first step."""
    cold = "cold" in sys.argv
    directory = Path("cold" if cold else "warm")
    command = [sys.executable, str(_ROOT / "scripts/train.py"), f"--config={_ROOT / 'configs/grpo.py'}"]
    while True:
        shutil.rmtree(directory if cold else directory / "runs", ignore_errors=True)
        directory.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [*command, "--config.sft.steps=1"], cwd=directory, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if _FIRST_STEP in line:
                    break
            else:
                raise RuntimeError(f"no first step: {''.join(said[-3:])}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        yield {"items": 1}


def run(
    parts: dict[str, Callable[[Work], Iterator[dict[str, float]]]], settings: dict[str, Any], *packages: str
) -> None:
    """Takes steps of the part that the command line names; what they took of the cores is among their facts."""
    parent, work = Parent(), Work.read(Path("."))
    steps = parts[sys.argv[1]](work)
    parent.ready(settings, versions(*packages))
    while parent.wants_step():
        busy, began = core_seconds(), time.perf_counter()
        facts = next(steps)
        parent.took(time.perf_counter() - began, {}, facts | {"core_seconds": core_seconds() - busy})


if __name__ == "__main__":
    run({"encoder": encoder, "media": media, "start": start}, {"arguments": sys.argv[1:]}, "jax", "jaxlib", "flax")
