"""How much a step does, and how fast: tokens, clips, model FLOPs, and what share of the devices' peak they are.

Counted is what the model needs for the rows that count: what is padded, filled up or computed again (rematerialisation)
takes time, but is no work. That is the numerator of model FLOPs utilisation (MFU, arXiv 2204.02311, appendix B). FLOPs
come from shapes and lengths instead of compiled programs, whose own count takes a loop's body once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mecap_jax.batch import Array, PromptBatch
from mecap_jax.model_config import ModelConfig
from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.models.multimodal_lm import MultimodalLM
from mecap_jax.models.parameters import merge_params

# Dense bfloat16 FLOP/s of one JAX device, by the beginning of its kind; the longest that fits counts. From the makers'
# data sheets (cloud.google.com/tpu/docs, nvidia.com); NVIDIA's figures with sparsity are halved.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
_TIMED_S = 0.2  # of a product whose rate is measured
# Rows and columns of the matrices behind a measured peak: large enough for all cores, or all of an accelerator.
_CPU_SIZE, _ACCELERATOR_SIZE = 1024, 8192


class Counts(NamedTuple):
    """Sums over the rows of a batch that count: float32 [] each.

    Attributes:
      clips: rows.
      prompt_tokens: media tokens included, each prompt once however many completions it has.
      completion_tokens: of completions or targets.
      prompt_pairs, completion_pairs: pairs of a query and a key that it sees.
      audio_frames: log-mel frames; audio_pairs: pairs within their chunks, behind the convolutions.
      patches: of video; window_pairs, frame_pairs: pairs within windows and within whole frames.
      feature_frames: of precomputed features.
    """

    clips: Array
    prompt_tokens: Array
    completion_tokens: Array
    prompt_pairs: Array
    completion_pairs: Array
    audio_frames: Array
    audio_pairs: Array
    patches: Array
    window_pairs: Array
    frame_pairs: Array
    feature_frames: Array


@jax.jit
def count(prompt: PromptBatch, valid: Array, masks: Sequence[Array]) -> Counts:
    """Counts a batch.

    Args:
      prompt: B prompts.
      valid: bool [B], which rows count.
      masks: bool [B, G, T] each, which tokens of completions or targets count.
    """
    rows = valid.astype(jnp.float32)

    def total(x):  # of what each row has
        x = x.astype(jnp.float32)
        return jnp.sum(x.reshape(len(x), -1).sum(axis=1) * rows)

    length = prompt.length.astype(jnp.float32)
    lengths = [jnp.sum(mask, axis=2).astype(jnp.float32) for mask in masks]
    halved = (prompt.audio_frames + 1) // 2
    window = (prompt.windows >= 0).sum(axis=3).astype(jnp.float32) * prompt.patches.shape[3]
    return Counts(
        clips=jnp.sum(rows),
        prompt_tokens=total(length),
        completion_tokens=sum(map(total, lengths)),
        prompt_pairs=total(length * (length + 1) / 2),
        completion_pairs=sum(total(n * length[:, None] + n * (n + 1) / 2) for n in lengths),
        audio_frames=total(prompt.audio_frames),
        audio_pairs=total(halved.astype(jnp.float32) ** 2),
        patches=total(window),
        window_pairs=total(window**2),
        frame_pairs=total(window.sum(axis=2) ** 2),
        feature_frames=prompt.features.shape[1] * jnp.sum(rows),
    )


def add_up(counts: Sequence[Counts]) -> Counts:
    """The counts of several batches together, on the host."""
    return Counts(*(float(np.sum(values, dtype=np.float64)) for values in zip(*counts)))


class ModelFlops:
    """Model FLOPs of a forward pass and of a gradient, by what they are taken of."""

    def __init__(self, graphdef: nnx.GraphDef[MultimodalLM], trainable: Any, frozen: Any):
        """`trainable` and `frozen` are (abstract) parameters; only names and shapes of matrices matter."""
        config: ModelConfig = nnx.merge(graphdef, merge_params(trainable, frozen)).config
        self._config, self._trainable = config, _matrices(trainable)
        self._all = self._trainable | _matrices(frozen)
        self._trains = {path.partition(".")[0] for path in self._trainable}

    def forward(self, counts: Counts) -> float:
        """Encodes media, runs prompts and completions, and gives logits for the completions."""
        return self._products(self._all, counts) + sum(self._attention(counts).values())

    def encoding(self, counts: Counts) -> float:
        """Encodes sound and video, and nothing else."""
        return self.forward(counts._replace(prompt_tokens=0.0, prompt_pairs=0.0, feature_frames=0.0))

    def gradient(self, counts: Counts) -> float:
        """Forward and backward: weights that train get a gradient, and what stands behind one of them passes it on.

        The decoder always does, for all its layers; a tower where something in it trains.
        """
        passes_on = self._trains | {"language_model"}
        behind = {path: size for path, size in self._all.items() if path.partition(".")[0] in passes_on}
        attention = sum(flops for part, flops in self._attention(counts).items() if part in passes_on)
        backward = self._products(self._trainable, counts) + self._products(behind, counts) + 2 * attention
        return self.forward(counts) + backward

    def _products(self, sizes: Mapping[str, int], counts: Counts) -> float:
        """Two for every parameter of a matrix and every position that is multiplied with it."""
        merged = self._config.vision.spatial_merge_size**2 if self._config.vision else 1
        positions = {
            "audio_tower.conv1": counts.audio_frames,
            "audio_tower.": counts.audio_frames / 2,
            "audio_tower.proj": counts.audio_frames / 4,
            "visual.": counts.patches,
            "visual.merger": counts.patches / merged,
            "feature_projector.": counts.feature_frames,
            "language_model.lm_head": counts.completion_tokens,
            **self._of_layers(counts),
        }
        if self._config.decoder.tie_word_embeddings:
            positions["language_model.embed_tokens"] = counts.completion_tokens

        def at(path: str) -> float:
            return float(positions[longest]) if (longest := _longest_prefix(path, positions)) else 0.0

        return 2 * sum(size * at(path) for path, size in sizes.items())

    def _of_layers(self, counts: Counts) -> dict[str, float]:
        """Positions by the decoder's matrices."""
        decoder, keys = self._config.decoder, ("k_proj", "v_proj")
        if decoder.encoder:
            begun = counts.completion_tokens + counts.clips * len(decoder.encoder.start_ids)
            layers = [f"language_model.layers.{i}.encoder_attn." for i in range(decoder.num_hidden_layers)]
            of_prompt = dict.fromkeys((layer + name for layer in layers for name in keys), counts.prompt_tokens)
            return {"language_model.encoder.layers": counts.prompt_tokens, "language_model.layers": begun, **of_prompt}
        tokens = counts.prompt_tokens + counts.completion_tokens
        # Of the last layer, a prompt needs keys and values at all positions, and the rest at one.
        last = f"language_model.layers.{decoder.num_hidden_layers - 1}."
        of_last = {last: counts.completion_tokens + counts.clips}
        return {"language_model.layers": tokens} | of_last | {f"{last}self_attn.{name}": tokens for name in keys}

    def _attention(self, counts: Counts) -> dict[str, float]:
        """Of every visible pair and channel: a product for the weight, and one for the value."""
        audio, vision, decoder = self._config.audio, self._config.vision, self._config.decoder
        width = decoder.num_attention_heads * decoder.head_dim
        pairs = decoder.num_hidden_layers * float(counts.prompt_pairs + counts.completion_pairs)
        pairs -= float(counts.prompt_pairs - counts.prompt_tokens)  # the end of a prompt sees all of it
        if decoder.encoder:  # of which every position sees all, and so does what the decoder begins with
            begun = float(counts.completion_pairs + len(decoder.encoder.start_ids) * counts.prompt_tokens)
            within = float(2 * counts.prompt_pairs - counts.prompt_tokens)
            pairs = decoder.encoder.num_hidden_layers * within + decoder.num_hidden_layers * begun
        found = {"language_model": 4.0 * width * pairs}
        if audio:
            found["audio_tower"] = 4.0 * audio.d_model * audio.encoder_layers * float(counts.audio_pairs)
        if vision:
            whole = len(vision.fullatt_block_indexes)
            pairs = whole * float(counts.frame_pairs) + (vision.depth - whole) * float(counts.window_pairs)
            found["visual"] = 4.0 * vision.hidden_size * pairs
        return found


def _matrices(params: Any) -> dict[str, int]:
    return {path: x.size for path, x in flatten(params).items() if len(x.shape) > 1}


def throughput(metrics: Mapping[str, float], peak: float) -> dict[str, float]:
    """Rates of a step from what it did and how long it took, by name: per second of the whole step, waiting included.

    Args:
      metrics: a step's `num_clips`, `num_prompt_tokens`, `num_completion_tokens`, `flops` and `timing_s/step`; where
        there are `flops/update` and `timing_s/update`, the update gets an MFU of its own.
      peak: FLOP/s of all devices; 0: not known.
    """
    if "flops" not in metrics:
        return {}
    seconds = metrics["timing_s/step"]
    rates = {
        "perf/clips_per_s": metrics["num_clips"] / seconds,
        "perf/prompt_tokens_per_s": metrics["num_prompt_tokens"] / seconds,
        "perf/completion_tokens_per_s": metrics["num_completion_tokens"] / seconds,
    }
    if peak:
        rates["perf/mfu"] = metrics["flops"] / (seconds * peak)
    if peak and "flops/update" in metrics:
        rates["perf/mfu/update"] = metrics["flops/update"] / (metrics["timing_s/update"] * peak)
    return rates


def work_metrics(counts: Counts, flops: float) -> dict[str, float]:
    """What a step did, as its metrics have it; `counts` are on the host."""
    return {
        "num_clips": float(counts.clips),
        "num_prompt_tokens": float(counts.prompt_tokens),
        "num_completion_tokens": float(counts.completion_tokens),
        "flops": flops,
    }


def peak_flops(mesh: Mesh, dtype: str) -> float:
    """FLOP/s of all devices of a mesh together: by their kind, or, where that is not known (CPU), as measured."""
    device = mesh.devices.flat[0]
    if kind := _longest_prefix(device.device_kind, PEAKS):
        return PEAKS[kind] * mesh.size
    # Simulated devices share the cores of their process.
    holders = jax.process_count() if device.platform == "cpu" else mesh.size
    return _measured_peak(dtype, device.platform) * holders


@functools.cache
def _measured_peak(dtype: str, platform: str) -> float:
    size = _CPU_SIZE if platform == "cpu" else _ACCELERATOR_SIZE
    return 2.0 * size**3 / min(product_seconds(size, size, size, dtype))


def product_seconds(rows: int, inner: int, columns: int, dtype: str) -> list[float]:
    """How long a product of random matrices takes on the default device, again and again for a fifth of a second.

    A GPU multiplies matrices of one number faster: its clock falls with the power that changing bits take.
    """
    x, w = (
        jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(((rows, inner), (inner, columns)))
    )
    multiply = jax.jit(jnp.matmul)
    multiply(x, w).block_until_ready()
    seconds: list[float] = []
    while sum(seconds) < _TIMED_S:
        began = time.perf_counter()
        multiply(x, w).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return seconds


def _longest_prefix(name: str, prefixes: Mapping[str, Any]) -> str:
    return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")
