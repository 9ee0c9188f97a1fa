"""A log that somebody may still be writing: its lines since the last look, and any one of them again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 2**24  # bytes of a line; what is longer is no row of ours


class GrowingLog:
    """Lines of a file that grows at its end, or is replaced by a shorter one where a run takes up an earlier step."""

    def __init__(self, path: Path):
        self.path = path
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
        try:
            file = self.path.open("rb")
        except OSError:
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
        """The line that begins at a byte. Raises OSError where the file is gone."""
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.readline(_LONGEST)
