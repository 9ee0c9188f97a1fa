"""One writer at a time: a lock file that says who holds it, and that dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


class LockedError(RuntimeError):
    """Another process is writing there; the message says which."""


@contextlib.contextmanager
def locked(path: Path, purpose: str, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds the lock `path` (`flock`: the kernel releases it when the process ends, however that happens).

    Args:
      purpose: what is locked, for messages.
      wait: told who is waited for; without it, a lock that another process holds is an error.

    Raises:
      LockedError: another process holds the lock.
      OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while (file := _acquire(path)) is None:
        holder = _holder(path)
        if wait is None:
            raise LockedError(f"{purpose} is in use by {holder}")
        if not told:
            wait(f"{purpose} is in use by {holder}; waiting for it")
            told = True
        time.sleep(0.5)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _acquire(path: Path) -> IO[str] | None:
    """The open, locked file, or None where another process has it."""
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        # The file system has no locks: the file still says who was the last to come.
    if not _is(path, file):  # who held it has removed it between the two calls
        file.close()
        return _acquire(path)
    file.truncate(0)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    json.dump(me, file, allow_nan=False)
    file.flush()
    return file


def _is(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        me: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return f"process {me['pid']} on {me['host']} since {me['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or was just removed
        return "another process"
