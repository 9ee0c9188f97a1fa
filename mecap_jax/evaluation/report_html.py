"""`report.html`: the report as one page that needs no other file and loads none: pictures and the players of its
samples are in it, as data addresses. It runs no script, and its policy forbids all that is not in the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from mecap_jax.data.containers import MediaError, identify
from mecap_jax.evaluation.players import MEDIA_TYPES, data_address, media_element

# The files of a clip by its id: encoded sound or pictures.
Media = Callable[[str], Sequence[bytes]]

# Of one file and of all together, before base64 adds a third.
_MOST_BYTES, _MOST_BYTES_OF_ALL = 2_000_000, 24_000_000
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>Report</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-size: 0.88rem; }}
th, td {{ border: 1px solid #ddd; padding: 0.3rem 0.6rem; vertical-align: top; }}
th {{ background: #f5f5f5; text-align: left; }}
td {{ min-width: 6rem; }}
img {{ max-width: 100%; height: auto; }}
video {{ width: 160px; }} audio {{ width: 220px; }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: 1rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""  # noqa: E501


def to_page(markdown: str) -> str:
    """Returns a page of what `report_text.render` wrote; foreign text in it is escaped there already."""
    return _PAGE.format(body=MarkdownIt("gfm-like", {"linkify": False}).render(markdown))


def picture_address(path: Path) -> str:
    """Returns a PNG file as an address that holds it."""
    return data_address("image/png", path.read_bytes())


def players(ids: Iterable[str], media: Media) -> dict[str, str]:
    """Returns the players of clips as HTML by id, or why there is none, as long as all together are not too large."""
    found, left = {}, _MOST_BYTES_OF_ALL
    for clip in ids:
        parts = []
        for data in media(clip):
            if len(data) > min(_MOST_BYTES, left):
                parts.append(f"<em>{len(data) / 1e6:.1f} MB: too large for this page</em>")
                continue
            shown = _player(data)
            left -= len(data) if shown.startswith(("<audio", "<video")) else 0
            parts.append(shown)
        found[clip] = "<br>".join(parts)
    return found


def _player(data: bytes) -> str:
    try:
        container = identify(data)
    except MediaError:
        container = "not a media file"
    if container not in MEDIA_TYPES:
        return f"<em>{container}: no browser plays it</em>"
    return media_element(MEDIA_TYPES[container], data)
