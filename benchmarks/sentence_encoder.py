"""Sentence embeddings: this encoder in Flax against sentence-transformers in PyTorch, on the same sentences.

  python benchmarks/sentence_encoder.py [--batch=64] [--repetitions=15]

Both run the packaged all-MiniLM-L6-v2 in float32 on the CPU with the same number of threads, warm, on batches of
caption-like sentences that neither has seen before (nothing comes from the cache). Repetitions alternate between the
two, so that both meet the same load on the machine. PyTorch is measured at several internal batch sizes and its best
one counts. Prints JSON; seconds are medians a batch.
"""

import os
import statistics
import sys
import time

import numpy as np
import torch
from absl import app, flags

# Text needs no torchvision, and one that was built for another torch keeps sentence-transformers from importing.
sys.modules.setdefault("torchvision", None)
from sentence_transformers import SentenceTransformer  # noqa: E402

from mecap_jax.emotions import EMOTIONS  # noqa: E402
from mecap_jax.json_files import to_json  # noqa: E402
from mecap_jax.models.sentence_encoder import load_sentence_encoder, packaged_directory  # noqa: E402
from mecap_jax.rewards.templates import template_sentences  # noqa: E402

_BATCH = flags.DEFINE_integer("batch", 64, "sentences a batch")
_REPETITIONS = flags.DEFINE_integer("repetitions", 15, "measured batches")
_WORDS = (12, 30)
_TORCH_BATCHES = (16, 32, 64)


def main(argv: list[str]) -> None:
    del argv
    threads = len(os.sched_getaffinity(0))  # XLA takes all of them
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    flax = load_sentence_encoder()
    reference = SentenceTransformer(str(packaged_directory()), device="cpu", local_files_only=True)
    runs = {"flax": flax.encode}
    for size in _TORCH_BATCHES:
        runs[f"torch_{size}"] = lambda texts, size=size: reference.encode(
            texts, batch_size=size, show_progress_bar=False
        )

    for _ in range(4):
        for run in runs.values():
            run(_sentences(rng))
    seconds = {name: [] for name in runs}
    difference = 0.0
    for _ in range(_REPETITIONS.value):
        texts, embeddings = _sentences(rng), []
        for name in rng.permutation(list(runs)):
            start = time.perf_counter()
            embeddings.append(runs[name](texts))
            seconds[name].append(time.perf_counter() - start)
        difference = max(difference, *(float(np.abs(x - embeddings[0]).max()) for x in embeddings))

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in runs if name != "flax"), key=medians.get)
    print(
        to_json(
            {
                "batch": _BATCH.value,
                "words": _WORDS,
                "threads": threads,
                "repetitions": _REPETITIONS.value,
                "median_s": medians,
                "best_s": {name: min(values) for name, values in seconds.items()},
                "speedup_over_same_batch": medians.get(f"torch_{_BATCH.value}", medians[best]) / medians["flax"],
                "speedup_over_best_torch": medians[best] / medians["flax"],
                "max_abs_difference": difference,
            },
            indent=2,
        )
    )


def _sentences(rng: np.random.Generator) -> list[str]:
    """Returns sentences of the vocabulary of emotion captions, 12 to 30 words each."""
    words = " ".join(text for texts in template_sentences(EMOTIONS).values() for text in texts).split()
    return [" ".join(rng.choice(words, rng.integers(_WORDS[0], _WORDS[1] + 1))) for _ in range(_BATCH.value)]


if __name__ == "__main__":
    app.run(main)
