"""A log that somebody may still be writing: its lines since the last look, and any one of them again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mecap_jax.config import ConfigError

LARGEST_STEP, LARGEST = 2**53, 1e100  # what is larger is no number of ours, and its square is no float's
_LONGEST = 2**24  # bytes of a line; what is longer is no row of ours


def open_own(path: Path) -> BinaryIO:
    """Opens a file of a run for reading.

    Raises:
      FileNotFoundError: there is none.
      ConfigError: it is a link that leads out of its directory, or no plain file (a pipe would never end).
    """
    place = os.path.realpath(path)
    if not Path(place).is_relative_to(os.path.realpath(path.parent)):
        raise ConfigError(f"{path.name} is not read: it is a link that leads out of its directory")
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path.name} is not read: it is no plain file")
    return os.fdopen(descriptor, "rb")


class GrowingLog:
    """Lines of a file that grows at its end, or is replaced by a shorter one where a run takes up an earlier step.

    Attributes:
      problem: why it cannot be opened, in one line; "" where it can, or is not there.
    """

    def __init__(self, path: Path):
        self.path, self.problem = path, ""
        self._inode, self._end = 0, 0

    def restarted(self) -> bool:
        """Whether what was read before no longer counts; reading begins anew then. A file that is gone has no lines."""
        try:
            found = os.stat(self.path)
        except OSError:
            inode, size = 0, 0
        else:
            inode, size = found.st_ino, found.st_size
        if inode == self._inode and size >= self._end:
            return False
        began, self._inode, self._end = bool(self._inode), inode, 0
        return began

    def new_lines(self) -> Iterator[tuple[int, bytes]]:
        """Yields each complete line that has not been read yet, with the byte at which it begins.

        A line without an end is left for the next time: somebody is writing it. Of one that is too long, nothing is
        kept and b"" is given.
        """
        self.problem = ""
        try:
            file = open_own(self.path)
        except FileNotFoundError:
            return
        except ConfigError as error:
            self.problem = str(error)
            return
        with file:
            file.seek(self._end)
            while (line := file.readline(_LONGEST)).endswith(b"\n") or len(line) == _LONGEST:
                begin = self._end
                if not line.endswith(b"\n"):
                    line = b""
                    while (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
                        pass
                self._end = file.tell()
                yield begin, line

    def line(self, begin: int) -> bytes:
        """The line that begins at a byte. Raises as `open_own` does."""
        with open_own(self.path) as file:
            file.seek(begin)
            return file.readline(_LONGEST)
