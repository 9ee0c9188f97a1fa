"""What a step does, and what share of the devices' peak that is."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mecap_jax.generation.scoring import score_completions
from mecap_jax.models.lora import Draw
from mecap_jax.models.parameters import split_params
from mecap_jax.throughput import PEAKS, ModelFlops, count, peak_flops, throughput
from mecap_jax.train_state import abstract_model, make_gradient
from tests import miniature
from tests.training.harness import mesh

_REPLACE = dataclasses.replace
# So wide that products of matrices are what XLA counts.
WIDE = _REPLACE(
    miniature.CONFIG,
    decoder=_REPLACE(miniature.CONFIG.decoder, vocab_size=2048, hidden_size=256, intermediate_size=512, head_dim=64,
                     mrope_section=(8, 12, 12)),
    audio=_REPLACE(miniature.CONFIG.audio, d_model=256, encoder_ffn_dim=512),
    vision=_REPLACE(miniature.CONFIG.vision, hidden_size=256, intermediate_size=512),
)  # fmt: skip
BART = _REPLACE(
    WIDE, decoder=_REPLACE(WIDE.decoder, **{name: getattr(miniature.BART.decoder, name) for name in (
        "num_key_value_heads", "mrope_section", "max_position_embeddings", "encoder")})
)  # fmt: skip
GROUP, LENGTH, ROWS = 3, 7, 4


def _whole(prompt):
    """The prompts with nothing padded and nothing missing."""
    full = jnp.full_like
    windows, of_frame = prompt.windows.shape, prompt.windows[0, 0].size
    return prompt._replace(
        length=full(prompt.length, prompt.tokens.shape[1]),
        audio_frames=full(prompt.audio_frames, prompt.audio.shape[2]),
        patches=jnp.zeros((*windows[:2], of_frame, *prompt.patches.shape[3:]), jnp.uint8),
        cell_positions=jnp.zeros((*windows[:2], of_frame, 2), jnp.int32),
        windows=jnp.broadcast_to(jnp.arange(of_frame).reshape(windows[2:]), windows),
    )


@pytest.mark.parametrize(
    "trainable, config",
    [((".*",), WIDE), ((r"language_model\..*",), WIDE), ((r"visual\..*",), WIDE), ((".*",), BART)],
    ids=["everything", "decoder", "vision", "bart"],
)
def test_model_flops_are_those_that_xla_counts(trainable, config):
    """Forward and gradient, with frozen parts, whose weights get no gradient."""
    prompt, tokens = _whole(miniature.prompts(ROWS)), jnp.ones((ROWS, GROUP, LENGTH), jnp.int32)
    graphdef, params = abstract_model(config, mesh())
    trained, frozen = split_params(params, trainable)
    flops = ModelFlops(graphdef, trained, frozen)
    counts = jax.device_get(count(prompt, jnp.ones(ROWS, bool), (jnp.ones(tokens.shape, bool),)))

    def loss(model, batch, shared):
        return jnp.sum(score_completions(model, batch, tokens).logprobs), ()

    forward = jax.jit(lambda p: loss(nnx.merge(graphdef, p), prompt, None)).lower(params)
    assert flops.forward(counts) == pytest.approx(forward.cost_analysis()["flops"], rel=0.1)
    draw = Draw(np.uint32(0), np.uint32(0), jnp.zeros(ROWS, jnp.int32))
    gradient = make_gradient(graphdef, trained, loss).lower(trained, None, frozen, prompt, None, draw)
    assert flops.gradient(counts) == pytest.approx(gradient.cost_analysis()["flops"], rel=0.1)


def test_only_what_counts_is_counted():
    """Neither padding nor rows that fill up, nor media that are not there."""
    prompt, mask = miniature.prompts(3), np.arange(LENGTH) < np.array([[2, 0, 7], [1, 1, 1], [3, 3, 3]])[..., None]
    valid = np.array([True, True, False])
    counts = jax.device_get(count(prompt, valid, (mask,)))
    longer = miniature.pad_right(prompt, 5)
    wider = np.pad(mask, ((0, 0), (0, 0), (0, 4)))
    padded = jax.device_get(count(longer, valid, (wider,)))
    assert counts == padded
    (first, second, _) = map(int, prompt.length)
    assert counts.clips == 2 and counts.prompt_tokens == first + second and counts.completion_tokens == 9 + 3
    pairs = sum(n * first + n * (n + 1) // 2 for n in (2, 0, 7)) + 3 * (second + 1)
    assert counts.completion_pairs == pairs
    assert counts.prompt_pairs == sum(n * (n + 1) // 2 for n in (first, second))
    assert counts.audio_frames == np.asarray(prompt.audio_frames)[:2].sum()
    cells = np.asarray(prompt.windows[0] >= 0).sum(axis=2)  # the second has no video
    assert counts.patches == 4 * cells.sum() == 4 * 2 * 6
    assert counts.window_pairs == 16 * (cells**2).sum() == 16 * 2 * (4**2 + 2**2)
    assert counts.frame_pairs == 16 * 2 * 6**2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
    ],
)
def test_known_devices_have_their_makers_peak(kind, expected):
    on = SimpleNamespace(devices=np.array([SimpleNamespace(device_kind=kind, platform="tpu")]), size=4)
    assert peak_flops(on, "bfloat16") == 4 * expected


def test_the_peak_of_a_cpu_is_measured_once_and_not_per_simulated_device():
    assert not any(jax.devices()[0].device_kind.startswith(kind) for kind in PEAKS)
    alone = peak_flops(mesh(), "float32")
    assert alone > 1e9 and peak_flops(mesh(8), "float32") == alone


def test_rates_are_of_the_whole_step():
    did = {"num_clips": 8.0, "num_prompt_tokens": 800.0, "num_completion_tokens": 160.0, "flops": 6e9}
    metrics = {**did, "timing_s/step": 2.0, "timing_s/update": 0.5, "flops/update": 4e9}
    assert throughput(metrics, 1e10) == {
        "perf/clips_per_s": 4.0,
        "perf/prompt_tokens_per_s": 400.0,
        "perf/completion_tokens_per_s": 80.0,
        "perf/mfu": pytest.approx(0.3),
        "perf/mfu/update": pytest.approx(0.8),
    }
    assert "perf/mfu" not in throughput(metrics, 0.0) and throughput({"loss": 1.0, "timing_s/step": 1.0}, 1e10) == {}
