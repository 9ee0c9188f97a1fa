"""Types of configuration fields beyond pydantic's own: a constraint stands on the field that it holds for."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    return pattern


def _is_file_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("must be the name of a directory, and no path")
    return name


FileName = Annotated[str, AfterValidator(_is_file_name)]
"""The name of a directory that there may be."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A share of something, in [0, 1]."""

ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""A share in [0, 1): of what some must always remain, or the decay of a moving average."""

Seconds = Annotated[float, Field(gt=0, le=1e6)]
"""How long to wait for something."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What a generator of random numbers starts from."""

Regex = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""
