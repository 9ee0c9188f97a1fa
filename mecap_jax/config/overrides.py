"""`key.path=value` on the command line, and in a row of comparison: one setting of a configuration changed."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mecap_jax.config.schema import Config, ConfigError, RewardSpec
from mecap_jax.config.values import build


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Applies `key.path=value` overrides, one after the other; what the whole must fulfil together is not checked.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type.
    """
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"override {item!r} must have the form key.path=value")
        config = build(dataclasses.asdict(_replace(config, key.split("."), value, key)))
    return config


def _replace(node: Any, path: list[str], text: str, key: str) -> Any:
    """Returns a copy of dataclass `node` with the field at `path` set to what `text` says, not yet checked."""
    hints = typing.get_type_hints(type(node))
    name = path[0]
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1) or difflib.get_close_matches(key, _all_keys(Config), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(hints)}"
        raise ConfigError(f"unknown config key {key!r}: {type(node).__name__} has no {name!r}{hint}")
    if len(path) == 1:
        return dataclasses.replace(node, **{name: _parse(text, hints[name])})
    child = getattr(node, name)
    if isinstance(child, tuple) and child and isinstance(child[0], RewardSpec):
        return dataclasses.replace(node, **{name: _replace_named(child, path[1:], text, key)})
    if not dataclasses.is_dataclass(child):
        reason = "is not set in this recipe" if child is None else f"has no fields (it is a {type(child).__name__})"
        raise ConfigError(f"config key {key!r}: {name!r} {reason}")
    return dataclasses.replace(node, **{name: _replace(child, path[1:], text, key)})


def _all_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a dataclass and of those within it."""
    for name, hint in typing.get_type_hints(kind).items():
        yield prefix + name
        options = [hint] if dataclasses.is_dataclass(hint) else typing.get_args(hint)
        if typing.get_origin(hint) is not tuple:
            for option in filter(dataclasses.is_dataclass, options):
                yield from _all_keys(option, f"{prefix}{name}.")


def _replace_named(specs: tuple[RewardSpec, ...], path: list[str], text: str, key: str) -> tuple[RewardSpec, ...]:
    """Returns the terms with one field of one of them, `NAME.FIELD`, or one option, `NAME.options.KEY`, set."""
    fields = 2 if path[-2:-1] == ["options"] else 1
    name = ".".join(path[:-fields])  # "file.py:function" has dots
    if name not in [spec.name for spec in specs]:
        known = ", ".join(spec.name for spec in specs)
        raise ConfigError(f"config key {key!r}: no reward term {name!r}; there are {known}")
    return tuple(_replace_in(spec, path[-fields:], text, key) if spec.name == name else spec for spec in specs)


def _replace_in(spec: RewardSpec, path: list[str], text: str, key: str) -> RewardSpec:
    if len(path) == 1:
        return _replace(spec, path, text, key)
    return dataclasses.replace(spec, options={**spec.options, path[1]: _parse(text, Any)})


def parse_terms(text: str) -> tuple[RewardSpec, ...]:
    """Reward terms as the command line spells them.

    Raises:
      ConfigError: they are none.
    """
    try:
        return TypeAdapter(tuple[RewardSpec, ...]).validate_json(
            json.dumps(_parse(text, tuple[RewardSpec, ...]), allow_nan=True, default=dataclasses.asdict)
        )
    except ValidationError as error:
        raise ConfigError(f"config key 'grpo.reward.terms': {text!r} spells no terms: {error}") from None


def _parse_specs(value: Any) -> Any:
    """Reward terms, of which each may be "NAME=WEIGHT" or "NAME"."""

    def spec(item: Any) -> Any:
        if not isinstance(item, str):
            return item
        name, _, weight = item.rpartition("=")
        try:
            return RewardSpec(name, float(weight)) if name and ":" not in weight else RewardSpec(item)
        except ValueError:
            raise ConfigError(f"reward term {item!r}: the weight {weight!r} is no number") from None

    return [spec(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parse(text: str, hint: Any) -> Any:
    """A Python literal, or the text itself where it is none; `a,b` for a tuple of strings or of reward terms."""
    if hint is str:
        return text
    try:
        value = ast.literal_eval(text)
        json.dumps(value, allow_nan=True)  # what JSON does not have (sets, bytes) no field has
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        value = text
    if isinstance(value, str) and typing.get_origin(hint) is tuple:
        value = [part for part in value.split(",") if part]
    return _parse_specs(value) if RewardSpec in typing.get_args(hint) else value
