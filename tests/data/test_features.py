"""Model inputs equal those of the published processors."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import get_pool_indices
from transformers.models.qwen2_vl import image_processing_qwen2_vl as image_processing
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from mecap_jax.data.features import audio_tokens, log_mel, smart_resize, vision_patches
from mecap_jax.data.resize import resize_bicubic
from mecap_jax.data.media import decode_audio, decode_video
from mecap_jax.model_config import ModelConfig, VisionTowerConfig
from mecap_jax.models.vision_tower import normalised
from tests.data.clips import SHARED, needs_shared_data

TINY = ModelConfig.tiny().vision
OMNI = dataclasses.replace(TINY, window_size=112)


# --- audio ------------------------------------------------------------------------------------------------------


def reference_log_mel(waveform: np.ndarray, num_mel_bins: int, seconds: int = 300) -> np.ndarray:
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, hop_length=160, n_fft=400, chunk_length=seconds)
    features = extractor(
        waveform, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="np"
    )
    return features.input_features[0].T[features.attention_mask[0].astype(bool)]


def voice_like(samples: int) -> np.ndarray:
    """Noise and a gliding tone that fade, so that edges, the loudest frame and the floor all matter."""
    time = np.arange(samples) / 16_000
    noise = np.random.default_rng(samples).normal(size=samples)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time) * np.exp(-0.8 * time) + 1e-3 * noise
    wave[-40:] += 0.5 * np.hanning(40)[: len(wave[-40:])]  # a click at the very end
    return wave.astype(np.float32)


@pytest.mark.parametrize("num_mel_bins", [64, 80, 128])
@pytest.mark.parametrize("samples", [1, 100, 159, 160, 201, 1_600, 1_601, 8_000, 40_037, 192_000])
def test_log_mel_equals_whisper_feature_extractor(samples, num_mel_bins):
    waveform = voice_like(samples)
    expected = reference_log_mel(waveform, num_mel_bins, seconds=30)
    ours = log_mel(waveform, num_mel_bins)
    assert ours.shape == (-(-samples // 160), num_mel_bins) and ours.dtype == np.float32
    # Their spectrum is computed in float32 by torch; their own NumPy version differs from it by as much (3e-5).
    np.testing.assert_allclose(ours, expected, atol=5e-5)


def test_log_mel_of_long_audio_up_to_the_mirrored_edge_at_300_seconds():
    for samples in (16_000 * 31, 16_000 * 300 - 250, 16_000 * 300 - 30, 16_000 * 300):
        waveform = voice_like(samples)
        waveform[-2000:] += 0.2 * np.sin(np.arange(2000) / 5).astype(np.float32)
        np.testing.assert_allclose(log_mel(waveform, 64), reference_log_mel(waveform, 64), atol=5e-5)
    with pytest.raises(ValueError, match="longer than 300 s"):
        log_mel(np.zeros(16_000 * 300 + 1, np.float32), 64)


def test_log_mel_of_silence_and_of_nothing():
    silence = np.zeros(1600, np.float32)
    np.testing.assert_allclose(log_mel(silence, 80), reference_log_mel(silence, 80), atol=1e-6)
    assert log_mel(np.zeros(0, np.float32), 80).shape == (0, 80)


@needs_shared_data
def test_log_mel_of_real_voices():
    for path in sorted((SHARED / "audio").glob("*/*.flac"))[::50]:
        waveform = decode_audio(path.read_bytes())
        np.testing.assert_allclose(log_mel(waveform, 128), reference_log_mel(waveform, 128, 30), atol=5e-5)


def test_audio_tokens_count_what_the_tower_pools():
    for n_window in (50, 100):
        for frames in [*range(2, 2 * n_window + 5), 337, 999, 1000, 3000]:
            assert audio_tokens(frames, n_window) == len(get_pool_indices(torch.tensor([frames]))), frames
    assert audio_tokens(1, 50) == 0


# --- vision -----------------------------------------------------------------------------------------------------


def random_frames(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, height, width, 3), dtype=np.uint8)


def reference_patches(frames: np.ndarray, config: VisionTowerConfig) -> tuple[np.ndarray, torch.Tensor]:
    """The flat patches of transformers' video processor, without resizing, and their grid."""
    processor = Qwen2VLVideoProcessor(cap_pixels_per_frame=False)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    output = processor([video], do_resize=False, do_sample_frames=False, return_tensors="pt")
    return output["pixel_values_videos"].numpy(), output["video_grid_thw"]


@pytest.mark.parametrize("config", [TINY, OMNI], ids=["window-56", "window-112"])
@pytest.mark.parametrize("size", [(28, 28), (56, 56), (84, 140), (112, 112), (140, 252), (224, 196)])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_vision_patches_are_those_of_transformers_and_so_are_its_windows(config, size, count):
    frames = random_frames(count, *size)
    flat, grid = reference_patches(frames, config)
    window_index, boundaries = get_vision_window_index(grid, 2, config.window_size, config.patch_size)
    positions = get_vision_position_ids(grid, 2).numpy()

    ours = vision_patches(frames, config)

    times, cells, patches, values = ours.patches.shape
    assert (times, patches, values) == (-(-count // 2), 4, config.patch_dim) and ours.patches.dtype == np.uint8
    # As the vision tower takes them, in the order in which transformers' processor hands them over.
    np.testing.assert_allclose(normalised(jnp.asarray(ours.patches)).reshape(flat.shape), flat, atol=1e-6, rtol=0)
    places = 2 * ours.positions[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]
    np.testing.assert_array_equal(np.tile(places, (times, 1, 1)), positions.reshape(-1, 4, 2))

    windows = ours.windows
    assert windows.shape == ((len(boundaries) - 1) // times, config.window_cells)
    np.testing.assert_array_equal(np.tile((windows >= 0).sum(axis=1), times), np.diff(boundaries) // 4)
    # Inside a window the cells come first, then the empty places.
    assert (np.diff((windows >= 0).astype(int), axis=-1) <= 0).all()
    shown = np.concatenate([t * cells + windows[windows >= 0] for t in range(times)])
    np.testing.assert_array_equal(shown, window_index)
    assert windows.dtype == np.int32 and ours.positions.dtype == np.int32


def test_vision_patches_refuse_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="30 x 56 pixels"):
        vision_patches(random_frames(2, 30, 56), TINY)


def test_smart_resize_equals_transformers():
    random = np.random.default_rng(1)
    for height, width in random.integers(20, 2000, size=(300, 2)).tolist():
        if max(height, width) > 200 * min(height, width):
            continue
        for low, high in ((56 * 56, 112 * 112), (4 * 784, 16384 * 784), (128 * 784, 768 * 784)):
            expected = image_processing.smart_resize(height, width, 28, low, high)
            assert smart_resize(height, width, 28, low, high) == expected
    with pytest.raises(ValueError, match="aspect ratio"):
        smart_resize(3000, 10, 28, 56 * 56, 112 * 112)
    for limits in ((28, 2**31, 2**31), (10**6, 1, 100)):
        with pytest.raises(ValueError, match=r"a picture of 100 x 90 would become \d+ x \d+"):
            smart_resize(100, 90, *limits)


def smooth_frames(count: int, height: int, width: int) -> np.ndarray:
    """Shading, an edge and fine stripes: what a picture has."""
    y, x = np.mgrid[0:height, 0:width]
    shade = 120 + 80 * np.sin(x / 37) * np.cos(y / 23)
    frame = np.where((x + y) % 97 < 40, shade, 255 - shade) + 20 * np.sin(x * 1.3)
    rolled = [np.roll(frame, 5 * i, axis=1) for i in range(count)]
    return np.stack([np.stack([r, 255 - r, np.sqrt(np.abs(r)) * 15], -1) for r in rolled]).clip(0, 255).astype(np.uint8)


def check_resizing(frames: np.ndarray) -> None:
    """Ours is transformers' resized video, bit for bit."""
    processor = Qwen2VLVideoProcessor(cap_pixels_per_frame=False, size={"shortest_edge": 3136, "longest_edge": 50_176})
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    output = processor([video], do_rescale=False, do_normalize=False, do_sample_frames=False, return_tensors="pt")
    flat, (times, rows, columns) = output["pixel_values_videos"].float().numpy(), output["video_grid_thw"][0].tolist()
    height, width = smart_resize(*frames.shape[1:3], 28, 3136, 50_176)
    assert (rows * 14, columns * 14) == (height, width)
    ours = resize_bicubic(frames, height, width)
    theirs = flat.reshape(times, rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)
    theirs = theirs.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(ours.shape)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(360, 640), (480, 360), (100, 90), (40, 52), (31, 333), (720, 1280)])
def test_resizing_is_that_of_transformers(size):
    check_resizing(smooth_frames(4, *size))
    check_resizing(random_frames(2, *size))


@needs_shared_data
def test_resizing_real_frames():
    for path in sorted((SHARED / "video").glob("*.mp4")):
        check_resizing(decode_video(path.read_bytes(), max_frames=8, fps=0).pixels)


def test_resizing_to_the_same_size_changes_nothing():
    frames = random_frames(2, 56, 84)
    np.testing.assert_array_equal(resize_bicubic(frames, 56, 84), frames)
