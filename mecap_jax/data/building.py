"""Directories that are built beside their place, and what builds that were killed leave of them.

A builder holds a shared lock on the directory that it builds, so that whoever finds one can tell a running build from
the rest of one. Where the file system has no locks, a day without a change tells it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mecap_jax.text_files import printable

_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.building")
_ABANDONED_S = 24 * 3600.0


@contextlib.contextmanager
def building(directory: Path, attempt: str | None = None, owner: bool = True) -> Iterator[Path]:
    """Makes a directory beside `directory`, to be renamed to it when complete; afterwards nothing else is left.

    Args:
      attempt: eight hexadecimal digits that no other build has; processes that build one directory together share them.
      owner: whether this process removes what is not complete; one of those that build together does.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.parent / f".{directory.name}.{attempt or uuid.uuid4().hex[:8]}.building"
    lock = _claim(path)
    try:
        yield path
    finally:
        if owner:
            shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_unfinished(parent: Path) -> None:
    """Removes what killed builds left in `parent`, with a line for each; running builds are left alone."""
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        if not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        lock = None
        try:
            lock = _lock(path, fcntl.LOCK_EX)
        except (BlockingIOError, FileNotFoundError):  # somebody builds in it, or has just finished
            continue
        except OSError:
            if time.time() - _last_change(path) < _ABANDONED_S:
                continue
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        print(f"removed {printable(str(path))}, which an interrupted build left", file=sys.stderr, flush=True)


def _claim(path: Path) -> int | None:
    """Makes and locks a directory; returns the lock, None where the file system has none."""
    while True:
        path.mkdir(exist_ok=True)
        try:
            return _lock(path, fcntl.LOCK_SH)
        except (BlockingIOError, FileNotFoundError):  # it was taken for an abandoned one before it was locked
            continue
        except OSError:
            return None


def _lock(path: Path, kind: int) -> int:
    """Returns the descriptor of a locked directory.

    Raises:
      BlockingIOError: another process has locked it.
      FileNotFoundError: it is gone.
      OSError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _last_change(path: Path) -> float:
    try:
        return max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
    except OSError:  # it changes at this moment
        return time.time()
