"""Opens a frozen encoder in a Hugging Face directory, and runs it over batches of clips."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from mecap_jax import json_files
from mecap_jax.data.features import HOP, SAMPLE_RATE, log_mel
from mecap_jax.experiment.encoder_settings import WHISPER_SECONDS, PictureSettings, WaveformSettings, WhisperSettings
from mecap_jax.models.bert import fill_network
from mecap_jax.models.checkpoints.safetensors_files import TensorFiles
from mecap_jax.models.encoders import pictures, waveform, whisper

POOLED, LAST_FOUR, ALL = "pooled", "last4", "all"
_WHISPER_SAMPLES = WHISPER_SECONDS * SAMPLE_RATE
# Seconds that a window of sound is padded to, the last one being the longest window: few programs, and memory that does
# not grow with the sound. MER's and EmotionTalk's extractors cut at 10 s, too.
_LADDER = (1, 1.6, 2.5, 4, 6.3, 10)
Parsed = TypeVar("Parsed")


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
    kind = _parsed(directory / "config.json", _kind)
    config = _parsed(directory / "config.json", kind.config.from_hugging_face)
    settings = _parsed(directory / "preprocessor_config.json", lambda found: kind.read_settings(found, config))
    return kind(directory, config, settings)


def _kind(config: Mapping[str, Any]) -> type[FrozenEncoder]:
    kind = str(config.get("model_type")).partition("_")[0]
    if kind not in _KINDS:
        raise ValueError(f"model_type {config.get('model_type')!r:.40} is none of {', '.join(_KINDS)}")
    return _KINDS[kind]


def _parsed(path: Path, read: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """What `read` makes of the JSON object in a file; its errors name the file."""
    try:
        found = json_files.read_json_object(path)
    except (OSError, ValueError) as error:
        raise EncoderError(str(error)) from None
    try:
        return read(found)
    except ValueError as error:
        raise EncoderError(f"{path}: {error}") from error


def _checksum(tensors: TensorFiles) -> str:
    digest = hashlib.sha256()
    for file in sorted({location.file for location in tensors.values()}):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _choose(states: Sequence[Array], layer: int | str) -> Array:
    if layer == ALL:
        return jnp.concatenate(states, axis=-1)
    return sum(states[-4:]) if layer == LAST_FOUR else states[layer]


class FrozenEncoder:
    """What turns media into features.

    Attributes:
      name: of the directory.
      weights_sha256: of the files of weights, in order of their names.
      modality: "audio" or "video": what `prepare` takes.
      rate: states a second of sound; None for pictures.
      layers: how many; state 0 is what goes into the first, -1 and `layers` what comes out of the last.
      described: what states depend on beside the weights, as JSON types by dotted name.
    """

    modality = "audio"
    rate: float | None = None
    config: type

    def __init__(self, directory: Path, tensors: TensorFiles, network: nnx.Module, config: Any, settings: Any):
        self.name, self.layers = directory.resolve().name, config.layers
        self.weights_sha256 = _checksum(tensors)
        parts = {"config": dataclasses.asdict(config), "preprocessor": dataclasses.asdict(settings)}
        self.described = {name: value for part in parts.items() for name, value in _dotted(*part)}
        graphdef, state = nnx.split(network)
        self._params = jax.device_put(state)
        self._run = jax.jit(functools.partial(self._apply, graphdef), static_argnames="layer")

    def encode(self, inputs: Sequence[Prepared], layer: int | str) -> list[np.ndarray]:
        """Returns float32 `[T, D]` for each of a batch.

        Args:
          layer: a layer's states by number; `LAST_FOUR`, the sum of the last four (as MER's and EmotionTalk's
            extractors have it for HuBERT and wav2vec 2.0); `ALL`, every state from 0 on side by side, of which a
            projector learns a mix (`FeatureProjectorConfig.layers`); or, of pictures, `POOLED`: the one vector of each,
            where a layer gives the mean over its patches.

        Raises:
          EncoderError: there is no such layer.
        """
        self.check(layer)
        batch, lengths = jnp.asarray(self._batch(inputs)), jnp.array([len(x.array) for x in inputs], jnp.int32)
        found = np.asarray(self._run(self._params, batch, lengths, layer=layer), np.float32)
        return [row[: x.states] for row, x in zip(found, inputs)]

    def check(self, layer: int | str) -> None:
        """Raises `EncoderError` where there is no such layer."""
        known = {ALL, LAST_FOUR, *((POOLED,) if self.modality == "video" else ())}
        if not (layer in known if isinstance(layer, str) else -self.layers - 1 <= layer <= self.layers):
            names = ", ".join([*sorted(known), f"0 to {self.layers}"])
            raise EncoderError(f"{self.name} has no layer {layer!r:.40}, only {names}")
        if layer == LAST_FOUR and self.layers < 4:
            raise EncoderError(f"{self.name} has {self.layers} layers, not four")

    @classmethod
    def read_settings(cls, settings: Mapping[str, Any], config: Any) -> Any:
        """Reads a `preprocessor_config.json`; raises ValueError that names what is not implemented."""
        raise NotImplementedError

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

    def _batch(self, inputs: Sequence[Prepared]) -> np.ndarray:
        return np.stack([x.array for x in inputs])

    @staticmethod
    def _apply(graphdef: nnx.GraphDef, params: Any, batch: Array, lengths: Array, layer: int | str) -> Array:
        # Accelerators multiply float32 matrices in lower precision unless told otherwise.
        with jax.default_matmul_precision("highest"):
            return _choose(nnx.merge(graphdef, params)(batch, lengths), layer)


class _Whisper(FrozenEncoder):
    rate = 50.0
    config = whisper.WhisperConfig

    def __init__(self, directory: Path, config: whisper.WhisperConfig, settings: WhisperSettings):
        tensors = TensorFiles(directory)
        network = whisper.load(directory, tensors, config)
        self._bands = config.bands
        super().__init__(directory, tensors, network, config, settings)

    @classmethod
    def read_settings(cls, settings: Mapping[str, Any], config: whisper.WhisperConfig) -> WhisperSettings:
        """See `FrozenEncoder.read_settings`."""
        return WhisperSettings.read(settings, config.bands)

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
    rate = SAMPLE_RATE / waveform.STRIDE
    config = waveform.WaveformConfig

    def __init__(self, directory: Path, config: waveform.WaveformConfig, settings: WaveformSettings):
        self._config, self._normalise = config, settings.do_normalize
        self._counts = tuple(config.state_count(int(seconds * SAMPLE_RATE)) for seconds in _LADDER)
        tensors = TensorFiles(directory, waveform.published_name)
        first = "feature_projection.projection.weight"
        prefix = next((p for p in ("hubert.", "wav2vec2.") if f"{p}{first}" in tensors), "")
        network = fill_network(
            lambda: waveform.WaveformEncoder(config, rngs=nnx.Rngs(0)),
            tensors,
            waveform.rules(config, prefix),
            waveform.IGNORED,
            directory,
        )
        super().__init__(directory, tensors, network, config, settings)
        self.described["window_states"] = self._counts[-1]

    @classmethod
    def read_settings(cls, settings: Mapping[str, Any], config: waveform.WaveformConfig) -> WaveformSettings:
        """See `FrozenEncoder.read_settings`."""
        return WaveformSettings.read(settings)

    def prepare(self, medium: np.ndarray) -> list[Prepared]:
        """The sound, with mean 0 and variance 1 where the extractor has it so, by windows of at most 10 s.

        All are about equally long, so that no state is left with nothing around it, and they overlap by the 5 ms that
        the convolutions look ahead: together they have the states of the whole sound, one every 20 ms.
        """
        samples, shortest = medium.astype(np.float32), self._config.shortest
        if len(samples) < shortest:
            raise ValueError(f"{len(samples)} samples are fewer than the {shortest} of one state")
        if self._normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        states = self._config.state_count(len(samples))
        windows = math.ceil(states / self._counts[-1])
        edges = [states * n // windows for n in range(windows + 1)]
        ends = [(edge - 1) * waveform.STRIDE + shortest for edge in edges[1:-1]] + [len(samples)]
        return [
            Prepared(samples[first * waveform.STRIDE : end], last - first)
            for first, last, end in zip(edges, edges[1:], ends)
        ]

    def shape(self, piece: Prepared) -> tuple[int, ...]:
        """See `FrozenEncoder.shape`."""
        states = next(count for count in self._counts if piece.states <= count)
        return (self._config.shortest + states * waveform.STRIDE - 1,)  # the longest sound of so many states

    def _batch(self, inputs: Sequence[Prepared]) -> np.ndarray:
        (size,) = max(map(self.shape, inputs))
        return np.stack([np.pad(x.array, (0, size - len(x.array))) for x in inputs])


class _Pictures(FrozenEncoder):
    modality = "video"
    config = pictures.PictureConfig

    def __init__(self, directory: Path, config: pictures.PictureConfig, settings: PictureSettings):
        self._settings = settings
        tensors = TensorFiles(directory)
        network = pictures.load(directory, tensors, config)
        super().__init__(directory, tensors, network, config, settings)

    @classmethod
    def read_settings(cls, settings: Mapping[str, Any], config: pictures.PictureConfig) -> PictureSettings:
        """See `FrozenEncoder.read_settings`."""
        return PictureSettings.read(settings, config.image)

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
        return (pooled if layer == POOLED else _choose(states, layer).mean(axis=1))[:, None]


_KINDS = {
    "whisper": _Whisper,
    "wav2vec2": _Waveform,
    "hubert": _Waveform,
    "clip": _Pictures,
    "siglip": _Pictures,
}


def _dotted(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in nested dictionaries, by their path."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from _dotted(f"{name}.{key}", inner)
