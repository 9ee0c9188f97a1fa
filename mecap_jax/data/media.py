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
import itertools
from collections.abc import Callable, Sequence

import av
import numpy as np
import soxr
from av.sidedata.sidedata import Type as SideData

from mecap_jax.data.containers import MediaError, parts
from mecap_jax.data.demuxing import MAX_PIXELS, VIDEO_KINDS, OpenClip, check_length, open_clip, promised_end

__all__ = ["Frames", "MediaError", "MediaInfo", "decode_audio", "decode_video", "probe", "streams"]

MAX_SECONDS = 600.0
MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 192_000
MAX_FRAME_RATE = 240
MAX_PIXELS_IN_ALL = 1 << 36  # ten minutes of 1920 x 1080 at 50 Hz
MIN_FRAMES = 4  # Qwen2VLVideoProcessor.min_frames
TEMPORAL_PATCH_SIZE = 2  # of the Qwen2-VL family
# Time stamps are rounded and jitter; sound within this many seconds of them is where it belongs.
_JITTER = 0.05


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
            reason = " ".join(str(error).split()) or type(error).__name__
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
    _packet_timeline(joined[0], kind)  # finds lies about time
    decoded = _read_audio(joined, kind, max_seconds)
    if decoded is None:
        raise MediaError("has no audio stream")
    waveform, rate = decoded
    return _resampled(waveform, rate, sample_rate)


@_raises_media_error
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
    kind, (data, *_) = parts(data)
    decoded = _read_video(data, kind, max_seconds, lambda timeline: _sample(timeline, max_frames, fps), shrink)
    if decoded is None:
        raise MediaError("has no video stream")
    timeline, wanted, pixels = decoded
    return Frames(
        pixels=np.stack([pixels[i] for i in wanted]),
        timestamps=np.array([timeline.starts[i] for i in wanted]),
        seconds_per_frame=timeline.seconds / len(wanted),
    )


@_raises_media_error
def probe(data: bytes, max_seconds: float = MAX_SECONDS) -> MediaInfo:
    """Decodes a whole clip and says what is in it.

    Raises:
      MediaError: neither sound nor video, unsupported, corrupt, truncated, or longer than `max_seconds`.
    """
    kind, joined = parts(data)
    audio = _read_audio(joined, kind, max_seconds)
    video = _read_video(joined[0], kind, max_seconds, lambda timeline: [0], lambda frame: frame)
    if audio is None and video is None:
        raise MediaError("has neither an audio nor a video stream")
    info = MediaInfo(audio_seconds=None if audio is None else len(audio[0]) / audio[1])
    if video is None:
        return info
    timeline, _, pixels = video
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
def streams(data: bytes) -> tuple[bool, bool]:
    """Whether a clip has sound and whether it has moving pictures, from its header alone.

    Raises:
      MediaError: unsupported or corrupt.
    """
    kind, (data, *_) = parts(data)
    if kind not in VIDEO_KINDS:
        return True, False
    with open_clip(data, kind) as clip:
        return clip.sound is not None, clip.picture is not None


# --- sound ------------------------------------------------------------------------------------------------------


def _read_audio(joined: Sequence[bytes], kind: str, max_seconds: float) -> tuple[np.ndarray, int] | None:
    """Returns the mono waveform at the rate of the first part and that rate, or None without an audio stream."""
    waveforms, rate, left = [], 0, max_seconds
    for part in joined:
        with open_clip(part, kind) as clip:
            if clip.sound is None:
                return None
            waveform, own = _read_sound(clip, max_seconds, left)
        rate = rate or own
        left -= len(waveform) / own
        waveforms.append(_resampled(waveform, own, rate))
    waveform = np.concatenate(waveforms)
    if not np.isfinite(waveform).all():
        raise MediaError("holds samples that are not finite")
    if kind not in VIDEO_KINDS and not waveform.any():
        raise MediaError("holds nothing but silence: every sample is 0")
    return waveform, rate


def _resampled(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    return soxr.resample(waveform, rate, wanted, quality="HQ") if rate != wanted else waveform


def _read_sound(clip: OpenClip, max_seconds: float, left: float) -> tuple[np.ndarray, int]:
    """Decodes a clip's sound onto its time line; returns it in mono, and its rate.

    Args:
      left: how much of `max_seconds` is left for this part of the clip.
    """
    stream, rate, blocks = clip.sound, 0, []
    origin = clip.origin if clip.kind in VIDEO_KINDS else None
    position = frames = moved = 0
    for frame in clip.container.decode(stream):
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
        frames, moved = frames + 1, moved + bool(blocks and gap)
        blocks += [np.zeros(max(gap, 0), np.float32), block[max(-gap, 0) :]]
        position += len(blocks[-2]) + len(blocks[-1])
    if not position:
        raise MediaError("has no audio samples")
    if moved > 3 + frames // 64:
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


# --- video ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Timeline:
    """From when on each frame of a video stands, in seconds on the clip's time line, and where the last one ends."""

    starts: list[float]
    seconds: float

    @classmethod
    def of(cls, spans: list[tuple[float | None, float]], rate: float, origin: float) -> _Timeline:
        """Builds it from (start, duration) pairs in order; a pair without timing follows from the frame rate."""
        if any(start is None for start, _ in spans):
            spans = [(i / rate + origin, 1 / rate) for i in range(len(spans))]
        starts = [start - origin for start, _ in spans]
        if any(later < earlier for earlier, later in itertools.pairwise(starts)):
            raise MediaError("corrupt: frames go back in time")
        last = spans[-1][1] or (starts[-1] - starts[0]) / max(1, len(starts) - 1) or 1 / rate
        return cls([0.0, *starts[1:]], starts[-1] + last)


def _sample(timeline: _Timeline, max_frames: int, fps: float) -> list[int]:
    """Returns the indices of the frames to take."""
    total, seconds = len(timeline.starts), timeline.seconds
    count = min(max_frames, total)
    if fps > 0:
        even = count - count % TEMPORAL_PATCH_SIZE
        count = int(min(max(seconds * fps, MIN_FRAMES), even))
        count = max(count - count % TEMPORAL_PATCH_SIZE, 1)
    starts = np.array(timeline.starts)
    interval = seconds / total
    if np.abs(starts - interval * np.arange(total)).max() <= interval:
        return [i * total // count for i in range(count)]
    shown = np.searchsorted(starts, seconds / count * np.arange(count) + 1e-6, side="right") - 1
    return shown.tolist()


def _packet_timeline(data: bytes, kind: str) -> _Timeline | None:
    """Reads the timing of a clip's pictures from its packets, without decoding any; None without a video stream.

    Raises:
      MediaError: sound and pictures differ so much in length that the header of one of them lies.
    """
    if kind not in VIDEO_KINDS:
        return None
    with open_clip(data, kind) as clip:
        if clip.picture is None:
            return None
        spans, sound = [], 0.0
        for packet in clip.container.demux([stream for stream in (clip.sound, clip.picture) if stream]):
            if not packet.size or packet.is_discard:
                continue
            stamp = packet.dts if packet.pts is None else packet.pts  # AVI knows no other
            start, seconds = None if stamp is None else float(stamp * packet.time_base), _duration(packet)
            if packet.stream_index == clip.picture.index:
                spans.append((start, seconds))
            elif start is not None:
                sound = max(sound, start + seconds - clip.origin)
        if not spans:
            raise MediaError("has no video frames")
        spans.sort(key=lambda span: -1.0 if span[0] is None else span[0])
        timeline = _Timeline.of(spans, _rate(clip.picture), clip.origin)
        shorter, longer = sorted((sound, timeline.seconds))
        if sound and len(spans) > 1 and longer > 3 * shorter + 1:  # a still picture may end when it likes
            raise MediaError(f"corrupt: {sound:.2f} s of sound and {timeline.seconds:.2f} s of pictures do not agree")
        return timeline


def _read_video(
    data: bytes,
    kind: str,
    max_seconds: float,
    choose: Callable[[_Timeline], list[int]],
    shrink: Callable[[np.ndarray], np.ndarray],
) -> tuple[_Timeline, list[int], dict[int, np.ndarray]] | None:
    """Decodes all frames; returns their timing, which ones are chosen, and those; None without a video stream."""
    timeline = _packet_timeline(data, kind)
    if timeline is None:
        return None
    wanted = choose(timeline)
    decoded, pixels = _decode_frames(data, kind, max_seconds, timeline, wanted, shrink)
    if decoded is not timeline:
        wanted = choose(decoded)
        decoded, pixels = _decode_frames(data, kind, max_seconds, decoded, wanted, shrink)
    return decoded, wanted, pixels


def _decode_frames(
    data: bytes,
    kind: str,
    max_seconds: float,
    expected: _Timeline,
    wanted: Sequence[int],
    shrink: Callable[[np.ndarray], np.ndarray],
) -> tuple[_Timeline, dict[int, np.ndarray]]:
    """Decodes all frames; returns their timing and the wanted ones as upright RGB.

    Their timing is `expected`, but where packets had no picture, as VP8's hidden references have none.
    """
    if expected.seconds > max_seconds:
        raise MediaError(f"longer than {max_seconds:g} s")
    with open_clip(data, kind) as clip:
        spans: list[tuple[float | None, float]] = []
        pixels, keep, seen = {}, set(wanted), 0
        for i, frame in enumerate(clip.container.decode(clip.picture)):
            start = None if frame.pts is None else float(frame.pts * frame.time_base)
            if frame.is_corrupt:
                raise MediaError(f"corrupt or truncated: frame {i} is damaged")
            if frame.width * frame.height > MAX_PIXELS:
                raise MediaError(f"frames of {frame.width} x {frame.height} pixels (at most {MAX_PIXELS} pixels)")
            seen += frame.width * frame.height
            if seen > MAX_PIXELS_IN_ALL:
                raise MediaError(f"more than {MAX_PIXELS_IN_ALL} pixels in all its frames")
            spans.append((start, _duration(frame)))
            if i > max_seconds * MAX_FRAME_RATE:
                raise MediaError(f"longer than {max_seconds:g} s")
            if i in keep:
                pixels[i] = shrink(_upright(frame))
        if not spans:
            raise MediaError("has no video frames")
        timeline = expected
        if len(spans) != len(expected.starts):
            timeline = _Timeline.of(spans, _rate(clip.picture), clip.origin)
        check_length(clip, clip.picture, timeline.seconds, max(0.1, 2 / _rate(clip.picture)))
        return timeline, pixels


def _duration(item: av.Packet | av.VideoFrame) -> float:
    return float((item.duration or 0) * item.time_base)


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """Converts a frame to RGB and applies its display matrix, as a phone writes it: quarter turns and mirroring."""
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    side_data = frame.side_data.get(SideData.DISPLAYMATRIX)
    if side_data is None:
        return pixels
    # Row vectors: (x, y) shown = (x, y) stored @ [[a, b], [c, d]] (ISO 14496-12, 8.3.2).
    a, b, _, c, d = np.sign(np.frombuffer(bytes(side_data), dtype=np.int32)[:5])
    if not (b == c == 0 and a and d) and not (a == d == 0 and b and c):
        raise MediaError(f"rotated by {frame.rotation} degrees, which is not a quarter turn")
    if b:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: int(d), :: int(a)])
