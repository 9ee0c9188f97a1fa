"""Checksums of a directory: written last, they say that it is complete; compared later, that nothing in it changed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mecap_jax.data.manifest import sha256
from mecap_jax.json_files import read_json_object, write_json

CHECKSUMS = "sha256.json"


def write_checksums(directory: Path, without: str) -> None:
    """Writes the sha256 of every file below `directory`, but for one name, into its `sha256.json` as a whole."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != without]
    names = sorted(path.relative_to(directory).as_posix() for path in files)
    write_json(directory / CHECKSUMS, dict(zip(names, _sums(directory, names))))


def find_damage(directory: Path, part: str = "") -> str | None:
    """Compares the files below `directory` whose relative path begins with `part`; reads each of them once.

    Returns what is wrong with the first bad one, or None.
    """
    try:
        expected = read_json_object(directory / CHECKSUMS)
        names = [name for name in expected if name.startswith(part)]
        outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
        if outside:
            return f"{CHECKSUMS} names {outside[0]!r}"
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            return f"{missing[0]} is missing"
        changed = [name for name, found in zip(names, _sums(directory, names)) if found != expected[name]]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{changed[0]} is not what was written" if changed else None


def _sums(directory: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: sha256(directory / name), names))
