"""JSON that the project writes, for anybody to read, and files that others wrote: whether they are there, and the JSON
in them, read strictly; errors name the file.
"""

from __future__ import annotations

import collections
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LARGEST = 2**24  # bytes: what is parsed takes twenty times as much memory, at worst


def to_json(value: Any, indent: int | None = None, *, sort_keys: bool = False) -> str:
    """Returns a JSON text in one line, or indented; a number that is not finite becomes null.

    Half a surrogate pair, which no UTF-8 file can hold, is escaped.

    Raises:
      TypeError: a value that JSON does not have.
    """
    text = json.dumps(_without_nan(value), indent=indent, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_json(value: Any) -> Any:
    """Returns `value` as it will be read back: tuples are lists, numbers that are not finite None."""
    return json.loads(to_json(value))


def write_json(path: Path, value: Any) -> None:
    """Writes an indented JSON file as a whole: a reader finds the old one or the new one.

    Raises:
      TypeError: as `to_json` does.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def parse_json(text: str | bytes, unique: bool = False) -> Any:
    """Returns the value of a JSON text, of which every number is finite (NaN and Infinity are Python's, not JSON's).

    Args:
      unique: whether an object may name a key only once; otherwise the last of them counts.

    Raises:
      ValueError: not UTF-8, not JSON, a number that no float holds, a key twice, or nested too deeply.
    """
    try:
        decoder = _UNIQUE_DECODER if unique else _DECODER
        return decoder.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: Path, largest: int = _LARGEST, unique: bool = False) -> dict[str, Any]:
    """Reads the JSON object in a file; `unique` as in `parse_json`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, is larger than `largest` bytes, or holds something else.
    """
    return read_json(path, dict, largest, unique)


def read_json(path: Path, kind: type, largest: int = _LARGEST, unique: bool = False) -> Any:
    """Reads the JSON value in a file, which must be of this type. Raises as `read_json_object`."""
    content = read_file(path, largest)
    try:
        value = parse_json(content, unique)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, kind):
        wanted = "object" if kind is dict else kind.__name__
        raise ValueError(f"{path} must hold a JSON {wanted}, got {type(value).__name__}")
    return value


def read_file(path: Path, largest: int = _LARGEST) -> bytes:
    """Reads a whole file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or is larger than `largest` bytes.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise ValueError(f"{path} cannot be read: it is not a file")
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}{_link(path)}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > largest:
        raise ValueError(f"{path} has more than {largest} bytes")
    return content


def is_named(path: Path) -> bool:
    """Whether a directory has an entry of this name. A link to nowhere is one: it must fail, not be passed over."""
    return os.path.lexists(path)


def why_unreadable(path: Path, error: OSError) -> str:
    """Says in words why a file cannot be opened."""
    return f"no such file{_link(path)}" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def _link(path: Path) -> str:
    return f" (it is a link to {os.readlink(path)}, which is not there)" if path.is_symlink() else ""


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = collections.Counter(key for key, _ in pairs)
    if twice := [key for key, count in counts.items() if count > 1]:
        more = f" (and {len(twice) - 5} more)" if len(twice) > 5 else ""
        raise ValueError(f"there is more than one value of {', '.join(map(repr, twice[:5]))}{more}")
    return dict(pairs)


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_UNIQUE_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite, object_pairs_hook=_once)
