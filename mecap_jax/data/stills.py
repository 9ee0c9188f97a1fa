"""Still pictures as clips: a JPEG becomes a video of one frame, whose bytes are the JPEG's own."""

from __future__ import annotations

import io
from fractions import Fraction

import av

from mecap_jax.data.demuxing import MAX_PIXELS
from mecap_jax.data.media import MediaError

_JPEG = b"\xff\xd8\xff"


def is_jpeg(data: bytes) -> bool:
    """Whether these are the bytes of a JPEG picture."""
    return data.startswith(_JPEG)


def one_frame_video(jpeg: bytes) -> bytes:
    """Puts a JPEG picture into a Matroska file, as it is: one frame of a second.

    Raises:
      MediaError: it cannot be decoded, or is larger than a frame may be.
    """
    try:
        decoder = av.CodecContext.create("mjpeg", "r")
        decoder.options = {"max_pixels": str(MAX_PIXELS)}  # checked before memory is taken
        (frame, *_) = [*decoder.decode(av.Packet(jpeg)), *decoder.decode(None)]
        if frame.is_corrupt:
            raise ValueError("damaged")
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(f"a JPEG picture that is damaged, or has more than {MAX_PIXELS} pixels") from error
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream("mjpeg", rate=1, width=frame.width, height=frame.height, pix_fmt="yuvj420p")
        packet = av.Packet(jpeg)
        packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, 1
        packet.time_base, packet.is_keyframe = Fraction(1), True
        output.mux(packet)
    return file.getvalue()
