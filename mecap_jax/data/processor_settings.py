"""What a directory in the Hugging Face layout says about media, read and written.

Older directories hold one flat `preprocessor_config.json` for pictures and sound; newer ones add
`video_preprocessor_config.json` or nest all three in `processor_config.json`. A value that the code here does not
implement is an error, not a surprise in the results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mecap_jax.data.features import HOP, MAX_SAMPLES, N_FFT, SAMPLE_RATE
from mecap_jax.data.pictures import MIN_FRAMES
from mecap_jax.families import FAMILIES
from mecap_jax.json_files import is_named, read_json_object, write_json
from mecap_jax.model_config import PIXEL_MEAN, PIXEL_STD, ModelConfig

_CELL = 28 * 28  # pixels behind one decoder token
_BICUBIC = 3  # PIL's number
_MOST = 2**31  # pixels, frames: beyond any picture, and exact in every number format


@dataclasses.dataclass(frozen=True)
class ProcessorSettings:
    """How media become model inputs; the defaults are those of transformers' Qwen2-VL processors.

    Attributes:
      image_min_pixels, image_max_pixels: area that pictures are resized into.
      video_min_pixels, video_max_pixels: the same for each frame of a video.
      fps: frames a second to take from a video file.
      max_frames: most frames to take from one.
    """

    image_min_pixels: int = 4 * _CELL
    image_max_pixels: int = 1280 * _CELL
    video_min_pixels: int = 128 * _CELL
    video_max_pixels: int = 768 * _CELL
    fps: float = 2.0
    max_frames: int = 768

    def __post_init__(self):
        for kind in ("image", "video"):
            low, high = getattr(self, f"{kind}_min_pixels"), getattr(self, f"{kind}_max_pixels")
            if not 0 < low <= high:
                raise ValueError(f"{kind}_min_pixels = {low} and {kind}_max_pixels = {high} leave no size")
        if self.fps <= 0 or self.max_frames < 1:
            raise ValueError(f"fps = {self.fps} and max_frames = {self.max_frames} must be positive")


def read_settings(directory: Path, model: ModelConfig) -> ProcessorSettings:
    """Reads what the model's towers need.

    Raises:
      FileNotFoundError: the model has a tower and no file says what it is fed.
      ValueError: a file cannot be read or holds a value that is not implemented; the message names file and field.
    """
    settings: dict[str, Any] = {}
    if model.audio is not None:
        _refuse_others(*_section(directory, "feature_extractor", "preprocessor_config.json"), _sound(model))
    if model.vision is not None:
        pictures = _pictures(model)
        file, image = _section(directory, "image_processor", "preprocessor_config.json")
        _refuse_others(file, image, pictures)
        settings |= _area("image", file, image)
        names = ("video_preprocessor_config.json", "preprocessor_config.json")
        file, video = _section(directory, "video_processor", *names)
        _refuse_others(file, video, pictures | {"cap_pixels_per_frame": (False,) * 2, "min_frames": (MIN_FRAMES,) * 2})
        if FAMILIES[model.family].limits_in_call:
            whole = directory / "processor_config.json"
            video = {**video, "min_pixels": None, "max_pixels": None, "size": None}
            if is_named(whole) and (limits := read_json_object(whole).get("videos_kwargs")) is not None:
                file, video = f"{whole}: videos_kwargs", video | _object(f"{whole}: videos_kwargs", limits)
        settings |= _area("video", file, video) | _rates(file, video)
    try:
        return ProcessorSettings(**settings)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


def write_settings(settings: ProcessorSettings, directory: Path, model: ModelConfig) -> None:
    """Writes the files that transformers' processor of the family reads; nothing for text families."""
    family = FAMILIES[model.family]
    if (name := family.processor) is None:
        return
    vision = {} if model.vision is None else {key: value for key, (value, _) in _pictures(model).items()}
    image = vision | _size(settings.image_min_pixels, settings.image_max_pixels)
    image |= {"processor_class": name, "image_processor_type": "Qwen2VLImageProcessor"}
    if family.media.audio is not None:
        sound = {} if model.audio is None else {key: value for key, (value, _) in _sound(model).items()}
        image |= sound | {"feature_extractor_type": "WhisperFeatureExtractor", "return_attention_mask": True}
    write_json(directory / "preprocessor_config.json", image)
    size = _size(settings.video_min_pixels, settings.video_max_pixels)
    rates = {"fps": settings.fps, "max_frames": settings.max_frames}
    video = vision | size | rates | {"min_frames": MIN_FRAMES, "video_processor_type": "Qwen2VLVideoProcessor"}
    write_json(directory / "video_preprocessor_config.json", video | {"processor_class": name})
    whole: dict[str, Any] = {"processor_class": name}
    if family.limits_in_call:
        whole["videos_kwargs"] = {"size": size["size"]} | rates
    write_json(directory / "processor_config.json", whole)


def _sound(model: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Fields of WhisperFeatureExtractor: what is implemented, and what a missing field means."""
    return {
        "feature_size": (model.audio.num_mel_bins, 80),
        "sampling_rate": (SAMPLE_RATE, 16_000),
        "hop_length": (HOP, 160),
        "n_fft": (N_FFT, 400),
        "chunk_length": (MAX_SAMPLES // SAMPLE_RATE, 30),
        "padding_value": (0.0, 0.0),
        "padding_side": ("right", "right"),
        "dither": (0.0, 0.0),
    }


def _pictures(model: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The same for the Qwen2-VL image and video processors."""
    vision = model.vision
    return {
        "image_mean": (list(PIXEL_MEAN), PIXEL_MEAN),
        "image_std": (list(PIXEL_STD), PIXEL_STD),
        "patch_size": (vision.patch_size, 14),
        "temporal_patch_size": (vision.temporal_patch_size, 2),
        "merge_size": (vision.spatial_merge_size, 2),
        "do_resize": (True, True),
        "do_rescale": (True, True),
        "do_normalize": (True, True),
        "rescale_factor": (1 / 255, 1 / 255),
        "resample": (_BICUBIC, _BICUBIC),
    }


def _refuse_others(file: str, content: Mapping[str, Any], implemented: Mapping[str, tuple[Any, Any]]) -> None:
    for field, (expected, default) in implemented.items():
        value = default if content.get(field) is None else content[field]
        if not _same(value, expected):
            raise ValueError(
                f"{file}: {field} = {value!r:.80} is not implemented for this model, which takes {expected!r}"
            )


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(expected) and all(map(_same, value, expected))
    if isinstance(expected, str | bool):
        return value is expected or value == expected and isinstance(value, type(expected))
    return _is_number(value) and math.isclose(value, expected, rel_tol=1e-6)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST  # NaN is not


def _area(kind: str, file: str, content: Mapping[str, Any]) -> dict[str, int]:
    size = {} if content.get("size") is None else _object(f"{file}: size", content["size"])
    found = {}
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        candidates = {key: content.get(key), f"size.{edge}": size.get(edge), f"size.{key}": size.get(key)}
        for field, value in candidates.items():
            if value is not None:
                found[f"{kind}_{key}"] = _count(file, field, value)
                break
    return found


def _rates(file: str, content: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (fps := content.get("fps")) is not None:
        if not _is_number(fps) or fps <= 0:
            raise ValueError(f"{file}: fps = {fps!r:.60} is not a positive number")
        found["fps"] = fps
    if (frames := content.get("max_frames")) is not None:
        found["max_frames"] = _count(file, "max_frames", frames)
    return found


def _count(file: str, field: str, value: Any) -> int:
    if not _is_number(value) or value != int(value) or value < 1:
        raise ValueError(f"{file}: {field} = {value!r:.60} is not a whole number from 1 to {_MOST}")
    return int(value)


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} = {value!r:.60} is not an object")
    return value


def _size(low: int, high: int) -> dict[str, Any]:
    """Limits under their old and their new names."""
    return {"min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}}


def _section(directory: Path, part: str, *names: str) -> tuple[str, dict[str, Any]]:
    """A processor's fields and where they stand: nested in `processor_config.json`, or in the first file there is."""
    for where, content in _candidates(directory, part, names):
        return where, content
    raise FileNotFoundError(f"{directory} has no {names[-1]}, which says what the model's {part} does")


def _candidates(directory: Path, part: str, names: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = directory / "processor_config.json"
    if is_named(whole) and part in (content := read_json_object(whole)):
        yield f"{whole}: {part}", _object(f"{whole}: {part}", content[part])
    for path in (directory / name for name in names):
        if is_named(path):
            yield str(path), read_json_object(path)
