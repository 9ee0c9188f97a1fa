"""Decoding of encoded clips: speech to a mono waveform, faces to RGB frames, both on the clip's time line.

Clips are decoded from memory by PyAV (libav). The time line of a clip begins with the earlier of its streams: sound
that begins later has silence in front of it, and so have gaps; a picture stands until the next one, the first from the
beginning on. Whatever is wrong with a clip comes out as one `MediaError` with a one-line reason; a clip never comes out
shorter than its container promises, and limits on length, channels and picture size keep a hostile file from filling
the memory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from mecap_jax.data.containers import MediaError, parts
from mecap_jax.data.demuxing import VIDEO_KINDS, open_clip
from mecap_jax.data.pictures import Timeline, packet_timeline, read_video, sample
from mecap_jax.data.sound import read_audio, resampled

__all__ = [
    "Frames",
    "MediaError",
    "MediaInfo",
    "Stretch",
    "decode_audio",
    "decode_stretches",
    "decode_video",
    "probe",
    "streams",
]

MAX_SECONDS = 600.0
Stretch = tuple[float, float]  # beginning and end on a clip's time line, in seconds


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames sampled from a video, upright.

    Attributes:
      pixels: uint8 `[F, H, W, 3]`, RGB.
      timestamps: float64 `[F]`, seconds on the clip's time line from which each stands.
      seconds_per_frame: length of the video on that time line divided by F.
    """

    pixels: np.ndarray
    timestamps: np.ndarray
    seconds_per_frame: float


@dataclasses.dataclass(frozen=True)
class MediaInfo:
    """What is in a clip; None where it has no such stream.

    Attributes:
      audio_seconds, video_seconds: where sound and pictures end on the clip's time line.
      frames: decoded frames.
      width, height: pixels of an upright frame.
      fps: mean frame rate.
    """

    audio_seconds: float | None = None
    video_seconds: float | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None


def _raises_media_error(function: Callable) -> Callable:
    """Turns whatever a decoder raises into a `MediaError` of one line."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except MediaError:
            raise
        except Exception as error:  # the libraries raise a dozen unrelated types on hostile bytes
            said = getattr(error, "strerror", None) or str(error)  # without the number of an error of libav's
            reason = " ".join(said.split()) or type(error).__name__
            raise MediaError(f"cannot be decoded, corrupt or truncated: {reason:.200}") from error

    return wrapper


@_raises_media_error
def decode_audio(data: bytes, sample_rate: int = 16_000, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decodes the sound of an encoded audio or video file.

    Returns:
      float32 `[samples]`, full scale 1, at `sample_rate` Hz: the mean of the channels, resampled by soxr (HQ), from the
      beginning of the clip's time line.

    Raises:
      MediaError: no sound, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    kind, joined = parts(data)
    packet_timeline(joined[0], kind)  # finds lies about time
    decoded = read_audio(joined, kind, max_seconds)
    if decoded is None:
        raise MediaError("has no audio stream")
    waveform, rate = decoded
    return resampled(waveform, rate, sample_rate)


def decode_video(
    data: bytes,
    max_frames: int,
    fps: float,
    max_seconds: float = MAX_SECONDS,
    shrink: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
) -> Frames:
    """Decodes and samples the frames of an encoded video file.

    A positive `fps` takes that many frames a second as transformers' `Qwen2VLVideoProcessor.sample_frames` does: at
    least 4 and at most `max_frames`, an even number, evenly spaced from the first frame on. `fps` 0 takes `max_frames`
    evenly spaced ones, or all where there are fewer. With a variable frame rate, or a picture that begins after the
    sound, frames are evenly spaced in time.

    Args:
      shrink: what is kept of a frame uint8 `[H, W, 3]`; many large ones would fill the memory.

    Raises:
      MediaError: no video, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    (frames,) = decode_stretches(data, [(0.0, math.inf)], max_frames, fps, max_seconds, shrink)
    return frames


@_raises_media_error
def decode_stretches(
    data: bytes,
    stretches: Sequence[Stretch],
    max_frames: int,
    fps: float,
    max_seconds: float = MAX_SECONDS,
    shrink: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
) -> list[Frames | None]:
    """Decodes a video once and samples each of some stretches of it, as `decode_video` does with a whole one.

    Args:
      stretches: their beginning and end in seconds on the clip's time line; what lies behind the clip's end does not
        count.

    Returns:
      Frames of each stretch; None of one that begins behind the last picture.

    Raises:
      MediaError: as `decode_video` does.
    """
    kind, (data, *_) = parts(data)

    def choose(timeline: Timeline) -> list[tuple[list[int], float]]:
        inside = [timeline.within(*stretch) for stretch in stretches]
        return [([first + i for i in sample(t, max_frames, fps)], t.seconds) if t else ([], 0.0) for first, t in inside]

    decoded = read_video(data, kind, max_seconds, lambda timeline: sum((i for i, _ in choose(timeline)), []), shrink)
    if decoded is None:
        raise MediaError("has no video stream")
    timeline, pixels = decoded
    return [
        Frames(
            pixels=np.stack([pixels[i] for i in wanted]),
            timestamps=np.array([timeline.starts[i] for i in wanted]),
            seconds_per_frame=seconds / len(wanted),
        )
        if wanted
        else None
        for wanted, seconds in choose(timeline)
    ]


@_raises_media_error
def probe(data: bytes, max_seconds: float = MAX_SECONDS) -> MediaInfo:
    """Decodes a whole clip and says what is in it.

    Raises:
      MediaError: neither sound nor video, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    kind, joined = parts(data)
    audio = read_audio(joined, kind, max_seconds)
    video = read_video(joined[0], kind, max_seconds, lambda timeline: [0], lambda frame: frame)
    if audio is None and video is None:
        raise MediaError("has neither an audio nor a video stream")
    info = MediaInfo(audio_seconds=None if audio is None else len(audio[0]) / audio[1])
    if video is None:
        return info
    timeline, pixels = video
    height, width, _ = pixels[0].shape
    frames = len(timeline.starts)
    return dataclasses.replace(
        info,
        video_seconds=timeline.seconds,
        frames=frames,
        width=width,
        height=height,
        fps=frames / timeline.seconds,
    )


@_raises_media_error
def streams(data: bytes) -> tuple[bool, float | None]:
    """Whether a clip has sound, and where its moving pictures end in seconds (None: none), without decoding.

    Raises:
      MediaError: unsupported or corrupt.
    """
    kind, (data, *_) = parts(data)
    if kind not in VIDEO_KINDS:
        return True, None
    with open_clip(data, kind) as clip:
        sound = clip.sound is not None
    timeline = packet_timeline(data, kind)
    return sound, timeline and timeline.seconds
