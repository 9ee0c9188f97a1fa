"""Opens a frozen encoder in a Hugging Face directory, and runs it over batches of clips."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from PIL import Image

from mecap_jax import json_files
from mecap_jax.data.features import HOP, SAMPLE_RATE, log_mel
from mecap_jax.models.bert import fill_network
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.encoders import pictures, waveform, whisper

POOLED, LAST_FOUR = "pooled", "last4"
_WHISPER_SAMPLES = 30 * SAMPLE_RATE
_LADDER = 1.25  # padded lengths of sound grow by this factor: few programs, at most a quarter of the work for nothing


class EncoderError(ValueError):
    """A directory that holds no encoder this package can run; the message names the file or the key."""


class Prepared(NamedTuple):
    """A piece of a medium as an encoder takes it, and how many states it makes."""

    array: np.ndarray
    states: int


def load_encoder(path: str | Path) -> FrozenEncoder:
    """Opens the encoder in directory `path`: `config.json`, safetensors, and `preprocessor_config.json`.

    Raises:
      EncoderError: a file is missing or ill-formed, or asks for what is not implemented.
      CheckpointError: the weights do not fit the configuration.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise EncoderError(f"no such directory: {directory}")
    config = _read(directory / "config.json")
    kind = str(config.get("model_type")).partition("_")[0]
    if kind not in _KINDS:
        raise EncoderError(
            f"{directory / 'config.json'}: model_type {config.get('model_type')!r:.40} is none of {', '.join(_KINDS)}"
        )
    settings = _read(directory / "preprocessor_config.json")
    try:
        return _KINDS[kind](directory, config, settings)
    except KeyError as error:
        raise EncoderError(f"{directory / 'preprocessor_config.json'}: {error} is missing") from error
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise EncoderError(f"{directory}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return json_files.read_json_object(path)
    except (OSError, ValueError) as error:
        raise EncoderError(str(error)) from None


def _checksum(tensors: TensorFiles) -> str:
    digest = hashlib.sha256()
    for file in sorted({location.file for location in tensors.values()}):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _choose(states: Sequence[Array], layer: int | str) -> Array:
    return sum(states[-4:]) if layer == LAST_FOUR else states[layer]


class FrozenEncoder:
    """What turns media into features.

    Attributes:
      name: of the directory.
      weights_sha256: of the files of weights, in order of their names.
      modality: "audio" or "video": what `prepare` takes.
      rate: states a second of sound; None for pictures.
      layers: how many; state 0 is what goes into the first, -1 and `layers` what comes out of the last.
    """

    modality = "audio"
    rate: float | None = None

    def __init__(self, directory: Path, tensors: TensorFiles, network: nnx.Module, layers: int):
        self.name, self.layers = directory.resolve().name, layers
        self.weights_sha256 = _checksum(tensors)
        graphdef, state = nnx.split(network)
        self._params = jax.device_put(state)
        self._run = jax.jit(functools.partial(self._apply, graphdef), static_argnames="layer")

    def encode(self, inputs: Sequence[Prepared], layer: int | str) -> list[np.ndarray]:
        """Returns float32 `[T, D]` for each of a batch.

        Args:
          layer: a layer's states by number; `LAST_FOUR`, the sum of the last four (as MER's and EmotionTalk's
            extractors have it for HuBERT and wav2vec 2.0); or, of pictures, `POOLED`: the one vector of each, where a
            layer gives the mean over its patches.

        Raises:
          EncoderError: there is no such layer.
        """
        self.check(layer)
        arrays = [x.array for x in inputs]
        batch, lengths = jnp.asarray(self._batch(arrays)), jnp.array([len(x) for x in arrays], jnp.int32)
        found = np.asarray(self._run(self._params, batch, lengths, layer=layer), np.float32)
        return [row[: x.states] for row, x in zip(found, inputs)]

    def check(self, layer: int | str) -> None:
        """Raises `EncoderError` where there is no such layer."""
        known = {LAST_FOUR, *((POOLED,) if self.modality == "video" else ())}
        if not (layer in known if isinstance(layer, str) else -self.layers - 1 <= layer <= self.layers):
            names = ", ".join([*sorted(known), f"0 to {self.layers}"])
            raise EncoderError(f"{self.name} has no layer {layer!r:.40}, only {names}")
        if layer == LAST_FOUR and self.layers < 4:
            raise EncoderError(f"{self.name} has {self.layers} layers, not four")

    def prepare(self, medium: np.ndarray) -> list[Prepared]:
        """Cuts samples `[S]` at 16 kHz, or frames uint8 `[F, H, W, 3]` that `shrink` gave, into what `encode` takes.

        Raises:
          ValueError: too little of it.
        """
        raise NotImplementedError

    def shrink(self, frame: np.ndarray) -> np.ndarray:
        """Cuts a frame uint8 `[H, W, 3]` down to what the encoder sees of it; many whole ones would fill the memory."""
        return frame

    def shape(self, piece: Prepared) -> tuple[int, ...]:
        """The shape that a piece has in a batch: those of one shape can be encoded together."""
        return piece.array.shape

    def _batch(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    @staticmethod
    def _apply(graphdef: nnx.GraphDef, params: Any, batch: Array, lengths: Array, layer: int | str) -> Array:
        # Accelerators multiply float32 matrices in lower precision unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return _choose(nnx.merge(graphdef, params)(batch, lengths), layer)


class _Whisper(FrozenEncoder):
    rate = 50.0

    def __init__(self, directory: Path, config: Mapping[str, Any], settings: Mapping[str, Any]):
        read = whisper.WhisperConfig.from_hugging_face(config)
        if read.positions != _WHISPER_SAMPLES // HOP // 2:
            raise ValueError(f"max_source_positions {read.positions} is not implemented, only 1500 is")
        if settings.get("feature_size", read.bands) != read.bands:
            raise ValueError(f"num_mel_bins is {read.bands}, feature_size {settings['feature_size']!r:.40}")
        tensors = TensorFiles(directory)
        prefix = next((p for p in ("model.encoder.", "encoder.") if f"{p}conv1.weight" in tensors), "")
        network = fill_network(
            lambda: whisper.WhisperEncoder(read, rngs=nnx.Rngs(0)),
            tensors,
            whisper.rules(prefix),
            whisper.IGNORED,
            directory,
        )
        self._bands = read.bands
        super().__init__(directory, tensors, network, read.layers)

    def prepare(self, medium: np.ndarray) -> list[Prepared]:
        """Log-mel frames of the sound, by windows of 30 s of which the last is filled up with silence."""
        if not len(medium):
            raise ValueError("no samples")
        return [self._window(medium[i : i + _WHISPER_SAMPLES]) for i in range(0, len(medium), _WHISPER_SAMPLES)]

    def _window(self, samples: np.ndarray) -> Prepared:
        filled = np.pad(samples.astype(np.float32), (0, _WHISPER_SAMPLES - len(samples)))
        return Prepared(
            log_mel(filled, self._bands, _WHISPER_SAMPLES), whisper.state_count(math.ceil(len(samples) / HOP))
        )


class _Waveform(FrozenEncoder):
    rate = 50.0

    def __init__(self, directory: Path, config: Mapping[str, Any], settings: Mapping[str, Any]):
        self._config = read = waveform.WaveformConfig.from_hugging_face(config)
        if settings.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
            raise ValueError(f"sampling_rate {settings['sampling_rate']!r:.40} is not implemented, only 16000 is")
        self._normalise = settings.get("do_normalize", True)
        tensors = TensorFiles(directory, waveform.published_name)
        first = "feature_projection.projection.weight"
        prefix = next((p for p in ("hubert.", "wav2vec2.") if f"{p}{first}" in tensors), "")
        network = fill_network(
            lambda: waveform.WaveformEncoder(read, rngs=nnx.Rngs(0)),
            tensors,
            waveform.rules(read, prefix),
            waveform.IGNORED,
            directory,
        )
        super().__init__(directory, tensors, network, read.layers)

    def prepare(self, medium: np.ndarray) -> list[Prepared]:
        """The whole sound, with mean 0 and variance 1 where the extractor has it so."""
        samples = medium.astype(np.float32)
        if len(samples) < self._config.shortest:
            raise ValueError(f"{len(samples)} samples are fewer than the {self._config.shortest} of one state")
        if self._normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return [Prepared(samples, self._config.state_count(len(samples)))]

    def shape(self, piece: Prepared) -> tuple[int, ...]:
        """See `FrozenEncoder.shape`."""
        return (padded_length(len(piece.array)),)

    def _batch(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        size = padded_length(max(map(len, inputs)))
        return np.stack([np.pad(x, (0, size - len(x))) for x in inputs])


class _Pictures(FrozenEncoder):
    modality = "video"

    def __init__(self, directory: Path, config: Mapping[str, Any], settings: Mapping[str, Any]):
        read = pictures.PictureConfig.from_hugging_face(config)
        self._settings = PictureSettings.read(settings, read.image)
        tensors = TensorFiles(directory)
        prefix = "vision_model." if any(key.startswith("vision_model.") for key in tensors) else ""
        network = fill_network(
            lambda: pictures.PictureEncoder(read, rngs=nnx.Rngs(0)),
            tensors,
            pictures.rules(read, prefix),
            pictures.IGNORED,
            directory,
            read.patch_shape,
        )
        super().__init__(directory, tensors, network, read.layers)

    def prepare(self, medium: np.ndarray) -> list[Prepared]:
        """Every frame, normalised."""
        if not len(medium):
            raise ValueError("no frames")
        return [Prepared(self._settings.normalise(frame), 1) for frame in medium]

    def shrink(self, frame: np.ndarray) -> np.ndarray:
        """See `FrozenEncoder.shrink`."""
        return self._settings.fit(frame)

    @staticmethod
    def _apply(graphdef: nnx.GraphDef, params: Any, batch: Array, lengths: Array, layer: int | str) -> Array:
        states, pooled = nnx.merge(graphdef, params)(batch)
        # Of a layer, the mean over patches.
        return (pooled if layer == POOLED else _choose(states, layer).mean(axis=1))[:, None]


_KINDS = {
    "whisper": _Whisper,
    "wav2vec2": _Waveform,
    "hubert": _Waveform,
    "clip": _Pictures,
    "siglip": _Pictures,
}


def padded_length(samples: int) -> int:
    """The length that sound is padded to: one of a ladder of lengths from a second on."""
    steps = math.ceil(math.log(max(samples / SAMPLE_RATE, 1.0), _LADDER) - 1e-9)
    return max(samples, math.ceil(SAMPLE_RATE * _LADDER**steps))


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """What `preprocessor_config.json` says: sizes in pixels, statistics by channel.

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
          KeyError, ValueError: what is missing, or not implemented.
        """
        implemented = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
        implemented |= {"rescale_factor": 1 / 255}
        for name, value in implemented.items():
            if settings.get(name, value) != value:
                raise ValueError(f"{name} {settings[name]!r:.40} is not implemented, only {value!r} is")
        size = settings["size"]
        size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = settings.get("crop_size", image) if settings.get("do_center_crop", False) else None
        crop = crop["height"] if isinstance(crop, dict) and crop.get("height") == crop.get("width") else crop
        shortest = size.get("shortest_edge") if isinstance(size, dict) else None
        both = (size.get("height"), size.get("width")) if isinstance(size, dict) and shortest is None else None
        given = crop or (both if both and both[0] == both[1] else None)
        if (given if isinstance(given, int) else (given or (None,))[0]) != image or (shortest or image) < image:
            raise ValueError(f"pictures of size {size} and crop {crop} do not come out as {image} x {image}")
        mean, std = (settings[name] for name in ("image_mean", "image_std"))
        if not all(
            isinstance(x, list) and len(x) == 3 and all(type(v) in (int, float) for v in x) for x in (mean, std)
        ):
            raise ValueError(f"image_mean and image_std must be three numbers each, got {mean!r:.60} and {std!r:.60}")
        if not all(np.isfinite([*mean, *std])) or min(std) <= 0:
            raise ValueError(f"image_std must be positive, got {std}")
        return cls(shortest, both, crop, tuple(mean), tuple(std))

    def fit(self, frame: np.ndarray) -> np.ndarray:
        """Returns uint8 `[image, image, 3]` of a frame uint8 `[H, W, 3]`: resized and cut."""
        picture = Image.fromarray(frame)
        if self.size:
            picture = picture.resize(self.size[::-1], Image.Resampling.BICUBIC)
        else:
            width, height = picture.size
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
