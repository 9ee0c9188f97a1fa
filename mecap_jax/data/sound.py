"""The sound of an open clip, decoded onto the clip's time line."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
import soxr

from mecap_jax.data.containers import MediaError
from mecap_jax.data.demuxing import VIDEO_KINDS, OpenClip, check_length, frames, open_clip, promised_end

MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 192_000
# Time stamps are rounded and jitter; sound within this many seconds of them is where it belongs.
_JITTER = 0.05
# Files of floats may hold the integers of 24 bits; what is far beyond them overflows in resampling.
_LOUDEST = 1e9


def read_audio(joined: Sequence[bytes], kind: str, max_seconds: float) -> tuple[np.ndarray, int] | None:
    """Returns the mono waveform at the rate of the first part and that rate, or None without an audio stream."""
    waveforms, rate, left = [], 0, max_seconds
    for part in joined:
        with open_clip(part, kind) as clip:
            if clip.sound is None:
                return None
            waveform, own = _read_sound(clip, max_seconds, left)
        rate = rate or own
        left -= len(waveform) / own
        waveforms.append(resampled(waveform, own, rate))
    waveform = np.concatenate(waveforms)
    if not (np.abs(waveform) < _LOUDEST).all():
        raise MediaError("holds samples that are not finite, or a billion times full scale")
    if kind not in VIDEO_KINDS and not waveform.any():
        raise MediaError("holds nothing but silence: every sample is 0")
    return waveform, rate


def resampled(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    return soxr.resample(waveform, rate, wanted, quality="HQ") if rate != wanted else waveform


def _read_sound(clip: OpenClip, max_seconds: float, left: float) -> tuple[np.ndarray, int]:
    """Decodes a clip's sound onto its time line; returns it in mono, and its rate.

    Args:
      left: how much of `max_seconds` is left for this part of the clip.
    """
    stream, rate, blocks = clip.sound, 0, []
    origin = clip.origin if clip.kind in VIDEO_KINDS else None
    position = count = moved = 0
    for frame in frames(clip, stream):
        rate = rate or _checked_rate(frame.sample_rate)
        if frame.is_corrupt:
            raise MediaError("corrupt or truncated: its sound is damaged")
        if frame.sample_rate != rate:
            raise MediaError(f"its sampling rate changes from {rate} to {frame.sample_rate} Hz")
        block, gap = _mono(frame), 0
        if frame.pts is not None:
            start = float(frame.pts * frame.time_base)
            origin = start if origin is None else origin
            gap = round((start - origin) * rate) - position
            if blocks and abs(gap) <= _JITTER * rate:
                gap = 0
        if gap < -len(block) - _JITTER * rate:
            raise MediaError(f"corrupt: its sound goes back in time at {position / rate:.2f} s")
        if position + gap + len(block) > left * rate:
            raise MediaError(f"longer than {max_seconds:g} s")
        count, moved = count + 1, moved + bool(blocks and gap)
        blocks += [np.zeros(max(gap, 0), np.float32), block[max(-gap, 0) :]]
        position += len(blocks[-2]) + len(blocks[-1])
    if not position:
        raise MediaError("has no audio samples")
    if moved > 3 + count // 64:
        raise MediaError("corrupt: time stamps and sampling rate of its sound contradict each other")
    slack = max(0.1, 4 * (stream.codec_context.frame_size or 0) / rate)  # encoder delay and padding
    check_length(clip, stream, position / rate, slack)
    waveform = np.concatenate(blocks)
    if clip.kind == "ogg" and (end := promised_end(clip, stream)) is not None:
        waveform = waveform[: round(end * rate)]  # the last block is longer than its sound (RFC 7845, section 4.4)
    return waveform, rate


def _checked_rate(rate: int) -> int:
    if not 0 < rate <= MAX_SAMPLE_RATE:
        raise MediaError(f"sampling rate of {rate} Hz (at most {MAX_SAMPLE_RATE})")
    return rate


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """The mean of a frame's channels: float32 [samples], full scale 1."""
    channels = frame.layout.nb_channels
    if channels > MAX_CHANNELS:
        raise MediaError(f"{channels} audio channels (at most {MAX_CHANNELS})")
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    offset, scale = 0, 1
    if samples.dtype.kind != "f":
        scale = 2 ** (8 * samples.itemsize - 1)
        offset = scale if samples.dtype.kind == "u" else 0
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found later
        return (samples.astype(np.float32) - offset).mean(axis=0, dtype=np.float32) / scale
