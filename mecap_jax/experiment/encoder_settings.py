"""What `preprocessor_config.json` says of a frozen encoder's input: read before any clip, and within bounds, so that a
setting which cannot work is not taken for a bad clip. What is not implemented is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from mecap_jax.data.features import HOP, N_FFT, SAMPLE_RATE
from mecap_jax.models.encoders.blocks import read_fields

WHISPER_SECONDS = 30
_LARGEST_PICTURE = 4096  # pixels a side
_MOST_SHRINKING = 8  # how much larger than the picture it may be before it is cut
_LONGEST_SIDE = 200  # times the shorter one, as `features.smart_resize` has it
_STATISTICS = 1000.0  # of pixels between 0 and 1


@dataclasses.dataclass(frozen=True)
class WhisperSettings:
    """Windows of log-mel frames; the encoder knows one kind of them."""

    window_seconds: int = WHISPER_SECONDS

    @classmethod
    def read(cls, settings: Mapping[str, Any], bands: int) -> WhisperSettings:
        """Checks the settings for so many mel bands; raises ValueError that names what is not implemented."""
        implemented = {"feature_size": bands, "sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": N_FFT}
        implemented |= {"chunk_length": WHISPER_SECONDS, "padding_value": 0.0, "padding_side": "right", "dither": 0.0}
        # What is left out is the default of the extractor's class, which has 80 bands.
        read_fields({"feature_size": 80, **settings}, {}, implemented)
        return cls()


@dataclasses.dataclass(frozen=True)
class WaveformSettings:
    """Samples of a whole sound; `do_normalize` says whether they get mean 0 and variance 1."""

    do_normalize: bool

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> WaveformSettings:
        """Reads the settings; raises ValueError that names what is not implemented."""
        read_fields(settings, {}, {"feature_size": 1, "sampling_rate": SAMPLE_RATE})
        normalise = settings.get("do_normalize", True)
        if type(normalise) is not bool:
            raise ValueError(f"do_normalize must be true or false, got {normalise!r:.40}")
        return cls(normalise)


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """Sizes in pixels, statistics by channel.

    Attributes:
      shortest, size: what the shorter side is resized to, or else both (height, width).
      crop: side of the middle that is cut out, or None.
    """

    shortest: int | None
    size: tuple[int, int] | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, settings: Mapping[str, Any], image: int) -> PictureSettings:
        """Reads the settings for pictures of `image` pixels a side.

        Raises:
          ValueError: names what is missing, ill-formed, out of range or not implemented.
        """
        implemented = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
        read_fields(settings, {}, implemented | {"rescale_factor": 1 / 255})
        for name in ("do_pad", "do_center_crop"):
            if settings.get(name) not in (None, False, True):
                raise ValueError(f"{name} must be true or false, got {settings[name]!r:.40}")
        if settings.get("do_pad"):
            raise ValueError("do_pad True is not implemented")
        if image > _LARGEST_PICTURE:
            raise ValueError(f"pictures of {image} pixels a side are too large (at most {_LARGEST_PICTURE})")
        resized = _sides(settings, "size", "shortest_edge")
        crop = _sides({"crop_size": image, **settings}, "crop_size") if settings.get("do_center_crop") else None
        if (crop or resized) != (image, image):
            raise ValueError(
                f"pictures of {_told(resized)}, cut to {_told(crop)}, do not come out as {image} x {image}"
            )
        if not all(image <= side <= _MOST_SHRINKING * image for side in resized):
            raise ValueError(f"size {_told(resized)} is not between {image} and {_MOST_SHRINKING * image} pixels")
        mean, std = (_statistics(settings, name) for name in ("image_mean", "image_std"))
        if min(std) < 1 / _STATISTICS:
            raise ValueError(f"image_std must be at least {1 / _STATISTICS}, got {list(std)}")
        both = resized if len(resized) == 2 else None
        return cls(None if both else resized[0], both, crop and crop[0], mean, std)

    def fit(self, frame: np.ndarray) -> np.ndarray:
        """Returns uint8 `[image, image, 3]` of a frame uint8 `[H, W, 3]`: resized and cut.

        Raises:
          ValueError: one side is so much longer than the other that what is resized would fill the memory.
        """
        picture = Image.fromarray(frame)
        if self.size:
            picture = picture.resize(self.size[::-1], Image.Resampling.BICUBIC)
        else:
            width, height = picture.size
            if max(width, height) > _LONGEST_SIDE * min(width, height):
                raise ValueError(f"aspect ratio of {height} x {width} exceeds {_LONGEST_SIDE}")
            # The longer side is cut off, not rounded.
            short, long = self.shortest, int(self.shortest * max(width, height) / min(width, height))
            picture = picture.resize((short, long) if width <= height else (long, short), Image.Resampling.BICUBIC)
        if self.crop:
            left, top = ((side - self.crop) // 2 for side in picture.size)
            picture = picture.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(picture)

    def normalise(self, frame: np.ndarray) -> np.ndarray:
        """Returns float32 pixels with the statistics of training taken off."""
        pixels = frame.astype(np.float32) / np.float32(255)
        return (pixels - np.float32(self.mean)) / np.float32(self.std)


def _sides(settings: Mapping[str, Any], name: str, edge: str | None = None) -> tuple[int, ...]:
    """(height, width), or the one side that `edge` names; a number stands for the edge, or for both."""
    value = settings.get(name)
    if not isinstance(value, Mapping):
        value = {edge: value} if edge else {"height": value, "width": value}
    for keys in ((edge,), ("height", "width")):
        if set(value) == set(keys) and all(type(value[key]) is int and value[key] > 0 for key in keys):
            return tuple(value[key] for key in keys)
    kinds = f"{edge}, or height and width" if edge else "height and width"
    raise ValueError(f"{name} must be {kinds} in pixels, got {settings.get(name)!r:.80}")


def _told(sides: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, sides)) + (" (the shorter side)" if len(sides) == 1 else "") if sides else "nothing else"


def _statistics(settings: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = settings.get(name)
    if not (
        isinstance(values, list)
        and len(values) == 3
        and all(type(x) in (int, float) and abs(x) <= _STATISTICS for x in values)
    ):
        raise ValueError(f"{name} must be three numbers up to {_STATISTICS}, got {values!r:.80}")
    return tuple(map(float, values))
