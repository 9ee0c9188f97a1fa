"""The pictures of a clip: when each of them is seen on the clip's time line, which ones to take, and their pixels."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Collection

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData

from mecap_jax.data.containers import MediaError
from mecap_jax.data.demuxing import MAX_PIXELS, VIDEO_KINDS, check_length, frames, open_clip
from mecap_jax.data.resize import resize_bicubic

MAX_FRAME_RATE = 240
MAX_KEPT = 1 << 29  # bytes of a clip's pictures as the model sees them; a prompt of 100,000 tokens
MAX_PIXELS_IN_ALL = 1 << 36  # ten minutes of 1920 x 1080 at 50 Hz
MIN_FRAMES = 4  # Qwen2VLVideoProcessor.min_frames
TEMPORAL_PATCH_SIZE = 2  # of the Qwen2-VL family


@dataclasses.dataclass(frozen=True)
class Timeline:
    """From when on each frame of a video stands, in seconds on the clip's time line, and where the last one ends."""

    starts: list[float]
    seconds: float

    @classmethod
    def of(cls, spans: list[tuple[float | None, float]], rate: float, origin: float) -> Timeline:
        """Builds it from (start, duration) pairs in order; a pair without timing follows from the frame rate."""
        if any(start is None for start, _ in spans):
            spans = [(i / rate + origin, 1 / rate) for i in range(len(spans))]
        starts = [start - origin for start, _ in spans]
        if any(later < earlier for earlier, later in itertools.pairwise(starts)):
            raise MediaError("corrupt: frames go back in time")
        last = spans[-1][1] or (starts[-1] - starts[0]) / max(1, len(starts) - 1) or 1 / rate
        return cls([0.0, *starts[1:]], starts[-1] + last)

    def within(self, begin: float, end: float) -> tuple[int, Timeline | None]:
        """The frames that are seen in a stretch: the number of the first, and their time line from `begin` on."""
        if begin >= self.seconds:
            return 0, None
        first = bisect.bisect_right(self.starts, begin) - 1
        seen = self.starts[first : max(bisect.bisect_left(self.starts, end), first + 1)]
        return first, Timeline([max(start - begin, 0.0) for start in seen], min(end, self.seconds) - begin)


def sample(timeline: Timeline, max_frames: int, fps: float) -> list[int]:
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


def packet_timeline(data: bytes, kind: str) -> Timeline | None:
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
        timeline = Timeline.of(spans, _rate(clip.picture), clip.origin)
        shorter, longer = sorted((sound, timeline.seconds))
        if sound and len(spans) > 1 and longer > 3 * shorter + 1:  # a still picture may end when it likes
            raise MediaError(f"corrupt: {sound:.2f} s of sound and {timeline.seconds:.2f} s of pictures do not agree")
        return timeline


def read_video(
    data: bytes,
    kind: str,
    max_seconds: float,
    choose: Callable[[Timeline], Collection[int]],
    shrink: Callable[[np.ndarray], np.ndarray],
) -> tuple[Timeline, dict[int, np.ndarray]] | None:
    """Decodes all frames; returns their timing and those that are chosen; None without a video stream."""
    timeline = packet_timeline(data, kind)
    if timeline is None:
        return None
    decoded, pixels = _decode_frames(data, kind, max_seconds, timeline, choose(timeline), shrink)
    if decoded is not timeline:
        return _decode_frames(data, kind, max_seconds, decoded, choose(decoded), shrink)
    return decoded, pixels


def _decode_frames(
    data: bytes,
    kind: str,
    max_seconds: float,
    expected: Timeline,
    wanted: Collection[int],
    shrink: Callable[[np.ndarray], np.ndarray],
) -> tuple[Timeline, dict[int, np.ndarray]]:
    """Decodes all frames; returns their timing and the wanted ones as upright RGB, as large as the first.

    Their timing is `expected`, but where packets had no picture, as VP8's hidden references have none.
    """
    if expected.seconds > max_seconds:
        raise MediaError(f"longer than {max_seconds:g} s")
    with open_clip(data, kind) as clip:
        spans: list[tuple[float | None, float]] = []
        pixels, keep, seen, kept, size = {}, set(wanted), 0, 0, None
        for i, frame in enumerate(frames(clip, clip.picture)):
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
            if i in keep or size is None:
                picture = _upright(frame)
                size = size or picture.shape[:2]
            if i in keep:
                pixels[i] = shrink(_fit(picture, *size))
                kept += pixels[i].nbytes
                if kept > MAX_KEPT:
                    raise MediaError(f"its pictures take more than {MAX_KEPT >> 20} MB as the model is to see them")
        if not spans:
            raise MediaError("has no video frames")
        timeline = expected
        if len(spans) != len(expected.starts):
            timeline = Timeline.of(spans, _rate(clip.picture), clip.origin)
        check_length(clip, clip.picture, timeline.seconds, max(0.1, 2 / _rate(clip.picture)))
        return timeline, pixels


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Brings a picture to the size of those before it, which a recorded call changes midway; its proportions stay, and
    what they leave over is black."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    high, wide = (max(1, round(side * scale)) for side in picture.shape[:2])
    if (high, wide) == (height, width) == picture.shape[:2]:
        return picture
    framed = np.zeros((height, width, 3), np.uint8)
    top, left = (height - high) // 2, (width - wide) // 2
    framed[top : top + high, left : left + wide] = resize_bicubic(picture[None], high, wide)[0]
    return framed


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
