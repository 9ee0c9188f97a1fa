"""Text that others wrote: tables and lists in whatever encoding they came, and names made fit for a terminal."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Control characters, halves of surrogate pairs (bytes of a file name that are no UTF-8), line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def decode_text(data: bytes) -> str:
    """Decodes the bytes of a text file, whatever they are. A byte order mark is not part of the text."""
    return data.decode(find_encoding(data))


def find_encoding(data: bytes) -> str:
    """Returns the name of an encoding in which the bytes are text.

    That of their byte order mark, else UTF-8, else Latin-1 (as Windows extends it, where it fits): a guess, because
    every sequence of bytes is some Latin-1 text.
    """
    marked = next((encoding for bom, encoding in _BOMS if data.startswith(bom)), "utf-8")
    for encoding in (marked, "cp1252"):
        try:
            data.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def is_address(name: str) -> bool:
    """Whether a name is an address ("gs://bucket/run") and no path, which nothing here reads or writes."""
    return bool(_ADDRESS.match(name))


def split_lines(text: str) -> list[str]:
    """Returns the lines of a text without their ends.

    A line ends with LF or CRLF and with nothing else: U+2028 and its like, at which `str.splitlines` breaks, are
    characters that a transcript may hold.
    """
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file.

    Raises:
      OSError: it cannot be read.
    """
    return split_lines(decode_text(path.read_bytes()))


def printable(text: str, keep: str = "") -> str:
    r"""Returns `text` with what must not reach a terminal or a JSON file escaped: "a\nb" becomes "a\\nb".

    That is control characters, bytes of a file name that are no UTF-8, and what turns the direction of writing.

    Args:
      keep: characters that stay, such as the line ends of a message in several lines.
    """
    if text.isprintable():
        return text
    return "".join(character if character in keep else _escape(character) for character in text)


def error_message(error: BaseException) -> str:
    """Returns what a script says of an error at its end; names in it cannot write to the terminal."""
    return f"error: {printable(str(error), keep=chr(10))}"


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in _UNPRINTABLE or character in _DIRECTION:
        return character.encode("unicode_escape").decode("ascii")
    return character
