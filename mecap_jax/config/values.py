"""A configuration from a tree of plain values, each checked against the type of its field."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mecap_jax.config.schema import Config, ConfigError

_WORDS = {"unexpected_keyword_argument": "is unknown", "missing": "is required", "dataclass_type": "must have fields"}


def build(tree: Mapping[str, Any]) -> Config:
    """Returns the configuration that nested mappings describe.

    Raises:
      ConfigError: names every key that is unknown, missing, of the wrong type or out of range.
    """
    # NaN, and what JSON does not have, get as far as the check that refuses them by name.
    return parse(json.dumps(tree, allow_nan=True, default=repr))


def parse(text: str | bytes) -> Config:
    """The same from JSON, whose arrays become tuples."""
    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_describe, error.errors(include_url=False)))) from None


@functools.cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)


def _describe(error: Mapping[str, Any]) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    problem = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not key:  # no JSON, or no object
        return problem
    got = "" if error["type"] == "missing" else f" (got {error['input']!r})"
    return f"config key {key!r}: {problem}{got}"
