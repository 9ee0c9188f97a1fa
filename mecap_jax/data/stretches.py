"""Clips longer than what a model was trained on: which stretches of them it is shown, and what it sees in each."""

from __future__ import annotations

import functools
import math

import numpy as np

from mecap_jax.config import DataConfig
from mecap_jax.data.clips import DecodedClip, join_features, resize_frame
from mecap_jax.data.features import SAMPLE_RATE, log_mel
from mecap_jax.data.media import MediaError, Stretch, decode_audio, decode_stretches
from mecap_jax.data.utterance import Utterance
from mecap_jax.model_config import ModelConfig

LONG = ("trim", "windows", "refuse")  # what becomes of a clip that is too long
MAX_WINDOWS = 100
_HOP = SAMPLE_RATE // 100


def show_stretches(
    utterance: Utterance, has_audio: bool, picture_seconds: float, data: DataConfig, model: ModelConfig, long: str
) -> tuple[float, list[tuple[Stretch, DecodedClip]]]:
    """Decodes what a model reads of an utterance, each stretch of at most `data.max_seconds` as a clip of its own.

    Args:
      has_audio, picture_seconds: as `media.streams` has them, 0 for no pictures.
      long: one of `LONG`; "trim" shows the loudest stretch, "windows" as many as cover the clip.

    Returns:
      The length of the utterance in seconds, and the stretches with what is in them.

    Raises:
      MediaError: as `decode_clip` does; or the utterance is too long for `long`.
    """
    waveform, seconds = None, 0.0
    if "audio" in data.modalities and has_audio:
        waveform = decode_audio(utterance.audio if utterance.audio is not None else utterance.video, SAMPLE_RATE)
        seconds = len(waveform) / SAMPLE_RATE
    reads_video = "video" in data.modalities and utterance.video is not None
    if reads_video:
        seconds = max(seconds, picture_seconds)
    stretches = choose_stretches(seconds, data.max_seconds, waveform, long)
    frames = [None] * len(stretches)
    if reads_video:
        shrink = functools.partial(resize_frame, data=data, model=model)
        frames = decode_stretches(utterance.video, stretches, data.max_frames, data.fps, shrink=shrink)
    features = None
    if "features" in data.modalities and utterance.features:
        features = join_features(utterance.features, model.features)
    clips = []
    for (begin, end), video in zip(stretches, frames, strict=True):
        mel = None
        if waveform is not None and len(heard := waveform[round(begin * SAMPLE_RATE) : round(end * SAMPLE_RATE)]):
            mel = log_mel(heard, model.audio.num_mel_bins)
        pixels, pace = (None, 0.0) if video is None else (video.pixels, video.seconds_per_frame)
        clips.append(DecodedClip(mel, pixels, pace, features))
    return seconds, list(zip(stretches, clips, strict=True))


def choose_stretches(seconds: float, longest: float, waveform: np.ndarray | None, long: str) -> list[Stretch]:
    """The stretches that a model is shown of a clip of so many seconds; all of it where it is not too long.

    Raises:
      MediaError: `long` is "refuse", or "windows" and there would be more than `MAX_WINDOWS`.
    """
    if seconds <= longest + 1 / 100:  # lengths are rounded
        return [(0.0, seconds)]
    if long == "trim":
        begin = _loudest(waveform, seconds, longest)
        return [(begin, begin + longest)]
    too_long = f"lasts {seconds:.2f} s, longer than the {longest:g} s that the model was trained on"
    if long == "refuse":
        raise MediaError(too_long)
    count = math.ceil(seconds / longest)
    if count > MAX_WINDOWS:
        raise MediaError(f"{too_long}: that makes {count} windows (at most {MAX_WINDOWS})")
    return [(begin, begin + longest) for begin in np.linspace(0.0, seconds - longest, count).tolist()]


def _loudest(waveform: np.ndarray | None, seconds: float, longest: float) -> float:
    """Where the stretch begins whose sound has the largest sum of amplitudes; the middle one where there is no sound.

    Amplitudes, not energies: a click is loud, but short.
    """
    if waveform is None or not waveform.any():
        return (seconds - longest) / 2
    hops = np.zeros(math.ceil(seconds * 100) + 1)
    blocks = np.abs(np.pad(waveform, (0, -len(waveform) % _HOP))).reshape(-1, _HOP).sum(axis=1)
    hops[: len(blocks)] = blocks
    total = np.concatenate([[0.0], np.cumsum(hops)])
    width = round(longest * 100)
    return min(int(np.argmax(total[width:] - total[:-width])) / 100, seconds - longest)
