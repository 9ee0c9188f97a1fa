"""How fast our side decodes, beside how fast the device copies: decoding reads weights and cache for every token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.throughput.cost import cost
from benchmarks.throughput.work import Work
from mecap_jax.model_config import ModelConfig
from mecap_jax.throughput import product_seconds

_TIMES = 5
_COPIED = {"cpu": 2**28, "gpu": 2**32, "tpu": 2**31}  # bytes: far more than caches hold
_SQUARE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}


def measure_decoding(work: Work, model: ModelConfig, sample: Callable[[bool], Any]) -> dict[str, float]:
    """Seconds that decoding takes behind the first token, and the rates to compare it with.

    `sample` takes a roll-out whose completions count, or one where none does: that ends behind the first token, so that
    the difference is the other C - 1. All rates are measured here: "decode_bytes_per_s" (weights and cache, each read
    once a token), "copy_bytes_per_s" (read and written), "product_flops" (of square matrices of random numbers).
    """
    whole, begun = (_seconds(lambda counts=counts: sample(counts)) for counts in (True, False))
    bytes_read = cost(work, model.decoder, shared=True).bytes * (work.completion_tokens - 1) / work.completion_tokens
    platform, size = jax.default_backend(), jnp.dtype(model.dtype).itemsize
    side = _SQUARE[platform]
    x = jnp.ones(_COPIED[platform] // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return {
        "rollout_s": whole,
        "first_token_s": begun,
        "decode_bytes_per_s": bytes_read * size / 4 / (whole - begun),
        "copy_bytes_per_s": 2 * x.nbytes / _seconds(lambda: copy(x)),
        "product_flops": 2.0 * side**3 / statistics.median(product_seconds(side, side, side, model.dtype)),
    }


def _seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
