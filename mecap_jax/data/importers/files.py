"""Files of a directory that somebody else filled: found without what operating systems leave there, read with care."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePath

MAX_CLIP_BYTES = 1 << 28
_LEFT_BY_SYSTEMS = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})


class ImporterError(ValueError):
    """Raw data that cannot be imported at all; the message names the file or the setting."""


def is_junk(path: PurePath) -> bool:
    """Whether an operating system or an archiver left this there ("._a.wav", "__MACOSX/...", ".DS_Store")."""
    return any(part in _LEFT_BY_SYSTEMS or part.startswith("._") for part in path.parts)


def walk(directory: Path, allow_outside: bool = False) -> Iterator[Path]:
    """Yields all files under a directory but junk, relative to it, ordered by name and then by place.

    Args:
      allow_outside: also enter directories that are links; each directory is entered once.
    """
    entered: set[str] = set()
    found = []
    for folder, below, names in os.walk(directory, followlinks=allow_outside):
        real = os.path.realpath(folder)
        if real in entered:
            below.clear()
            continue
        entered.add(real)
        below.sort()
        found += [Path(os.path.relpath(os.path.join(folder, name), directory)) for name in names]
    for path in sorted(found, key=lambda path: (path.name, path)):
        if not is_junk(path) and os.path.isfile(directory / path):
            yield path


def read_clip(directory: Path, name: str, allow_outside: bool = False) -> bytes:
    """Reads a file that `directory` holds.

    A name that is not there as it is written is also looked for in the other forms that the same name takes: Unicode
    composed and decomposed (archives of macOS), and as Latin-1 bytes.

    Args:
      allow_outside: absolute paths and links out of the directory are followed.

    Raises:
      ValueError: the path leads out of the directory (absolute, through "..", through a link), or names no plain file,
        or one too large to be a clip.
    """
    try:
        path = (directory / _as_stored(directory, name)).resolve()
        inside = not Path(name).is_absolute() and path.is_relative_to(directory.resolve())
        if not inside and not allow_outside:
            raise ValueError(f"path leads out of the input directory: {name!r} (--allow_outside follows it)")
        if not path.is_file():
            raise ValueError(f"no such file: {name!r}")
        if path.stat().st_size > MAX_CLIP_BYTES:
            raise ValueError(f"{name!r} has {path.stat().st_size} bytes (at most {MAX_CLIP_BYTES})")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # no permission, a name too long, links in a circle
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"cannot read {name!r:.200}: {reason}") from error


def _as_stored(directory: Path, name: str) -> str:
    if name.isascii() or os.path.lexists(directory / name):
        return name
    forms = [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]
    forms += [os.fsdecode(name.encode("latin-1"))] if max(map(ord, name)) < 256 else []
    return next((form for form in forms if os.path.lexists(directory / form)), name)
