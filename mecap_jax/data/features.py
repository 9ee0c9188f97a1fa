"""Model inputs from decoded media: log-mel spectrograms and vision patches, in NumPy.

Both follow the published processors of Qwen2.5-Omni, so that its weights see what they were trained on: audio as
transformers' `WhisperFeatureExtractor`, frames as its `Qwen2VLVideoProcessor`, whose last step is the vision tower's:
pixels travel as bytes and are normalised there. No jax here: this runs in reader processes.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from mecap_jax.model_config import VisionTowerConfig

SAMPLE_RATE = 16_000
HOP = 160
N_FFT = 400
MAX_SAMPLES = 300 * SAMPLE_RATE  # `chunk_length` of Qwen2.5-Omni's extractor
MAX_RESIZED = 1 << 24  # pixels of a picture as a model sees it; published processors stop at 12.8 million


def log_mel(waveform: np.ndarray, num_mel_bins: int, longest: int = MAX_SAMPLES) -> np.ndarray:
    """Computes Whisper's log-mel spectrogram (arXiv 2212.04356, section 2.2).

    Equals transformers' `WhisperFeatureExtractor` (padded to `longest`, 300 s) on the frames of its attention mask,
    without computing the padding.

    Args:
      waveform: float32 `[S]` at 16 kHz.
      num_mel_bins: mel bands between 0 and 8 kHz.
      longest: samples that the extractor pads to.

    Returns:
      float32 `[ceil(S / 160), num_mel_bins]`, one frame every 10 ms.

    Raises:
      ValueError: longer than `longest`, which the extractor would cut.
    """
    if len(waveform) > longest:
        raise ValueError(f"audio of {len(waveform) / SAMPLE_RATE:.1f} s is longer than {longest // SAMPLE_RATE} s")
    # Silence up to the last window that reaches into the signal; the extractor's own padding ends at `longest`, and
    # there its edge is mirrored as at the beginning.
    padded = np.pad(waveform.astype(np.float32), (0, min(N_FFT, longest - len(waveform))))
    padded = np.pad(padded, N_FFT // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:-1]
    spectrum = np.fft.rfft(windows * _hann_window())
    power = spectrum.real**2 + spectrum.imag**2
    log = np.log10(np.maximum(power @ _mel_filters(num_mel_bins), 1e-10))
    # The loudest frame sets the floor for all, also where only its window still touches the signal.
    log = np.maximum(log, log.max() - 8.0)
    return ((log[: math.ceil(len(waveform) / HOP)] + 4.0) / 4.0).astype(np.float32)


def audio_tokens(frames: int, n_window: int) -> int:
    """Returns how many decoder tokens the audio tower makes of so many mel frames.

    Each chunk of `2 * n_window` frames passes a convolution of stride 2 and is averaged in pairs (Qwen2.5-Omni,
    arXiv 2503.20215; transformers' `get_pool_indices`).
    """
    full, rest = divmod(frames, 2 * n_window)
    return full * (n_window // 2) + (rest + 1) // 2 // 2


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the size (height, width) that frames are resized to (Qwen2-VL, arXiv 2409.12191).

    Both sides are multiples of `factor`, the area lies within the limits and the aspect ratio is nearly kept.

    Raises:
      ValueError: one side is more than 200 times the other, or the area is more than any model is made for: the limits
        may be a stranger's.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"aspect ratio of {height} x {width} exceeds 200")
    size = round(height / factor) * factor, round(width / factor) * factor
    area = size[0] * size[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        size = tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        size = tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    if size[0] * size[1] > MAX_RESIZED:
        raise ValueError(
            f"a picture of {height} x {width} would become {size[0]} x {size[1]} (min_pixels = {min_pixels})"
        )
    return size


class VisionPatches(NamedTuple):
    """A clip's frames as the vision tower reads them: T pairs of frames of K merge cells of M patches.

    Attributes:
      patches: uint8 `[T, K, M, patch_dim]`, pixels of a patch in the order (channel, frame, row, column).
      positions: int32 `[K, 2]`, row and column of each cell.
      windows: int32 `[W, C]`, which cells stand in each attention window; those of a partial one come first, then -1.
    """

    patches: np.ndarray
    positions: np.ndarray
    windows: np.ndarray


def vision_patches(frames: np.ndarray, config: VisionTowerConfig) -> VisionPatches:
    """Cuts frames into patches, grouped by merge cell (Qwen2.5-VL, arXiv 2502.13923, section 2.1.1).

    Cells (m x m patches) come in raster order, patches in raster order inside a cell: the order of transformers'
    processor. Windows are those of its `get_vision_window_index`. An odd number of frames is filled up by repeating the
    last one.

    Args:
      frames: uint8 `[F, H, W, 3]`, both sides multiples of `patch_size * spatial_merge_size`.

    Raises:
      ValueError: the sides are not such multiples.
    """
    merge, patch, pair = config.spatial_merge_size, config.patch_size, config.temporal_patch_size
    _, height, width, channels = frames.shape
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"frames of {height} x {width} pixels do not divide into cells of {patch * merge}")
    rows, columns = height // (patch * merge), width // (patch * merge)
    if missing := -len(frames) % pair:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    times = len(frames) // pair
    cells = frames.reshape(times, pair, rows, merge, patch, columns, merge, patch, channels)
    cells = cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # time, cell row and column, patch row and column, channel, ...
    return VisionPatches(cells.reshape(times, rows * columns, merge**2, -1), *_cell_layout(rows, columns, config))


@functools.lru_cache(maxsize=64)
def _cell_layout(rows: int, columns: int, config: VisionTowerConfig) -> tuple[np.ndarray, np.ndarray]:
    """Positions and windows of a frame of so many cells, see `VisionPatches`."""
    side = config.window_size // (config.patch_size * config.spatial_merge_size)
    index = np.arange(rows * columns, dtype=np.int32)
    grid = index.reshape(rows, columns)
    windows = [
        grid[top : top + side, left : left + side].ravel()
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    places = np.full((len(windows), config.window_cells), -1, np.int32)
    for window, cells in zip(places, windows, strict=True):
        window[: len(cells)] = cells
    return np.stack(np.divmod(index, np.int32(columns)), axis=-1), places


@functools.cache
def _hann_window() -> np.ndarray:
    return np.hanning(N_FFT + 1)[:-1].astype(np.float32)


@functools.cache
def _mel_filters(num_mel_bins: int) -> np.ndarray:
    """Slaney's mel filter bank, float32 `[201, num_mel_bins]`: triangles of equal area (Auditory Toolbox, 1998).

    Bit for bit those of `transformers`; librosa's differ in the last one, and would cost every reader 1.2 s of import.
    """
    edges = _mel_to_hertz(np.linspace(0.0, _hertz_to_mel(SAMPLE_RATE / 2), num_mel_bins + 2))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (edges[2:] - edges[:-2])).astype(np.float32)


# Slaney's scale: linear below 1 kHz (15 mel), logarithmic above with 27 mel per factor 6.4.
def _hertz_to_mel(hertz: float) -> float:
    return 15.0 + 27.0 * math.log(hertz / 1000.0) / math.log(6.4)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))
