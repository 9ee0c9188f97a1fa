"""JSON that others wrote, read strictly: an object, or one error that names the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text, of which every number is finite (NaN and Infinity are Python's, not JSON's).

    Raises:
      ValueError: not UTF-8, not JSON, a number that no float holds, or nested too deeply.
    """
    try:
        return _DECODER.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or holds something else.
    """
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
