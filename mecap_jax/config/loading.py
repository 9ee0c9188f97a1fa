"""A configuration from a recipe and overrides, to JSON and back."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mecap_jax import json_files
from mecap_jax.config.schema import Config, ConfigError, RewardSpec, RowConfig
from mecap_jax.config.validation import validate
from mecap_jax.config.values import build, parse


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Loads `path/to/recipe.py[:arg]` and applies `key.path=value` overrides.

    Raises:
      ConfigError: no such file, no `get_config`, an unknown key, a value of the wrong type, an impossible combination.
    """
    config = validate(_override(_run_recipe(*recipe.partition(":")[::2]), overrides))
    for row in chosen_rows(config):
        row_config(config, row)
    return config


def chosen_rows(config: Config) -> list[RowConfig]:
    """The rows of comparison that are trained, in the order in which they were asked for."""
    offered = {row.name: row for row in config.rows}
    return [offered[name] for name in config.evaluation.rows]


def row_config(config: Config, row: RowConfig) -> Config:
    """The configuration of a row of comparison: the run's own, with its changes.

    Raises:
      ConfigError: a change that the run cannot have; names the row.
    """
    for change in row.changes:
        if change.partition(".")[0] not in ("task", "data", "sft", "grpo"):
            raise ConfigError(f"row {row.name!r}: {change!r} changes more than task, data, sft or grpo")
    evaluation = dataclasses.replace(config.evaluation, rows=())
    try:
        return validate(_override(dataclasses.replace(config, evaluation=evaluation), row.changes))
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from error


def _override(config: Config, overrides: Sequence[str]) -> Config:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} must have the form key.path=value")
        config = build(dataclasses.asdict(_replace(config, key.split("."), value, key)))
    return config


def _run_recipe(path: str, arg: str) -> Config:
    if not Path(path).is_file():
        raise ConfigError(f"--config: no such file: {path}")
    spec = importlib.util.spec_from_file_location("mecap_jax_recipe", path)
    if spec is None:
        raise ConfigError(f"--config: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"--config: {path} defines no get_config(arg)")
        config = module.get_config(arg)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config: {path} raised {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"--config: get_config of {path} returned {type(config).__name__}, expected Config")
    return config


def _replace(node: Any, path: list[str], text: str, key: str) -> Any:
    """Returns a copy of dataclass `node` with the field at `path` set to what `text` says, not yet checked."""
    hints = typing.get_type_hints(type(node))
    name = path[0]
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
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


def _replace_named(specs: tuple[RewardSpec, ...], path: list[str], text: str, key: str) -> tuple[RewardSpec, ...]:
    """Returns the terms with one field of one of them, `NAME.FIELD`, set."""
    name = ".".join(path[:-1])  # "file.py:function" has dots
    if name not in [spec.name for spec in specs]:
        known = ", ".join(spec.name for spec in specs)
        raise ConfigError(f"config key {key!r}: no reward term {name!r}; there are {known}")
    return tuple(_replace(spec, path[-1:], text, key) if spec.name == name else spec for spec in specs)


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


def to_json(config: Config) -> str:
    """Writes a configuration as JSON."""
    return json_files.to_json(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str | bytes) -> Config:
    """Reads what `to_json` wrote; unknown or ill-typed keys raise `ConfigError`."""
    return parse(text)


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, old value, new value) for every leaf in which two JSON trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new
