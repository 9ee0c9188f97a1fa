"""Players of clips as HTML that holds their media: no file is served, and none is left on the disk."""

from __future__ import annotations

import base64

# What browsers play, by container.
MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
    "mov": "video/mp4",
    "matroska": "video/webm",
}


def media_element(media_type: str, data: bytes) -> str:
    """An element that plays encoded sound or pictures, of one of `MEDIA_TYPES`."""
    tag = media_type.partition("/")[0]
    return f'<{tag} controls preload="metadata" src="{data_address(media_type, data)}"></{tag}>'


def data_address(media_type: str, data: bytes) -> str:
    """The bytes as an address that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
