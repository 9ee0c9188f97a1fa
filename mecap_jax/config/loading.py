"""A configuration from a recipe and overrides, to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mecap_jax import json_files
from mecap_jax.config.overrides import override
from mecap_jax.config.rows import chosen_rows, row_config
from mecap_jax.config.schema import Config, ConfigError
from mecap_jax.config.validation import validate
from mecap_jax.config.values import parse
from mecap_jax.shipped import shipped


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Loads `path/to/recipe.py[:arg]`, or `NAME[:arg]` of a recipe that comes along, and applies `key.path=value`
    overrides.

    Raises:
      ConfigError: no such file, no `get_config`, an unknown key, a value of the wrong type, an impossible combination.
    """
    config = validate(override(_run_recipe(*recipe.partition(":")[::2]), overrides))
    for row in chosen_rows(config):
        row_config(config, row)
    return config


def _run_recipe(path: str, arg: str) -> Config:
    if not Path(path).is_file():
        recipes = shipped("configs")
        if path not in recipes:
            close = difflib.get_close_matches(Path(path).stem, recipes, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"recipes that come along: {', '.join(recipes)}"
            raise ConfigError(f"--config: no such file: {path}; {hint}")
        path = str(recipes[path])
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
