"""A configuration from a tree of plain values, each checked against the type of its field."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mecap_jax.config.schema import Config, ConfigError

Part = TypeVar("Part")
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
    return _parse(text, Config)


def checked(part: Part, key: str) -> Part:
    """A part of a configuration by itself, each value checked against the type of its field; `key` is where it stands.

    Raises:
      ConfigError: as `build`.
    """
    return _parse(json.dumps(dataclasses.asdict(part), allow_nan=True, default=repr), type(part), key)


def _parse(text: str | bytes, kind: type[Part], key: str = "") -> Part:
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(found, key) for found in error.errors(include_url=False))) from None


@functools.cache
def _adapter(kind: type[Part]) -> TypeAdapter[Part]:
    return TypeAdapter(kind)


def _describe(error: Mapping[str, Any], prefix: str) -> str:
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    key = f"{prefix}{parts}".removeprefix(".")
    problem = _WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not key:  # no JSON, or no object
        return problem
    got = "" if error["type"] == "missing" else f" (got {error['input']!r})"
    return f"config key {key!r}: {problem}{got}"
