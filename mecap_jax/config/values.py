"""Values of a configuration from outside (a command line, JSON), checked against the type hints of its fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from mecap_jax.config.schema import ConfigError


def coerce(value: Any, hint: Any, key: str) -> Any:
    """Checks `value` against a type hint, turning lists into tuples, dicts into dataclasses and ints into floats."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        (hint,) = [option for option in options if option is not type(None)]
        return coerce(value, hint, key)
    if origin is tuple:
        items = typing.get_args(hint)
        if isinstance(value, str) and items[0] is str:
            value = [part for part in value.split(",") if part]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"config key {key!r}: expected a tuple, got {value!r}")
        if items[-1] is Ellipsis:
            return tuple(coerce(v, items[0], f"{key}[{i}]") for i, v in enumerate(value))
        if len(items) != len(value):
            raise ConfigError(f"config key {key!r}: expected {len(items)} values, got {len(value)}")
        return tuple(coerce(v, t, f"{key}[{i}]") for i, (v, t) in enumerate(zip(value, items)))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(value, hint, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"config key {key!r}: expected {hint.__name__}, got {value!r}")
    return value


def from_mapping(value: Any, cls: type, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"config key {key!r}: expected the fields of {cls.__name__}, got {value!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ConfigError(f"config key {key!r}: {cls.__name__} has no {unknown}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in value and _required(f)]
    if missing:
        raise ConfigError(f"config key {key!r}: {cls.__name__} lacks {missing}")
    return cls(**{name: coerce(v, hints[name], f"{key}.{name}") for name, v in value.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
