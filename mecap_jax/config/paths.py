"""Which values of a configuration are paths, and how they mean the same from any working directory."""

from __future__ import annotations

import ast
import dataclasses
import os
from typing import Any

from mecap_jax.config.overrides import parse_terms
from mecap_jax.config.schema import Config, RewardSpec, RowConfig
from mecap_jax.text_files import is_address

_TERMS = "grpo.reward.terms"
_PATHS = (
    "backbone",
    "init_from",
    "compilation_cache",
    "data.path",
    "data.input",
    "encoder.path",
    "encoder.anchors",
    "task.judge",
    "task.wheels",
)
_NAMES_OR_FILES = ("task.labels", "task.places")
# What ends so is a file; in options, which only the task understands, what has a separator is a path, too.
_FILE_SUFFIXES = (".toml", ".csv", ".tsv")


def lookup(config: Config, key: str) -> Any:
    """Returns the value at a dotted key, or None where a part of the path is None."""
    node: Any = config
    for name in key.split("."):
        if node is None:
            return None
        node = getattr(node, name)
    return node


def is_custom(name: str) -> bool:
    """Whether a reward term's name is that of a user's own function, "path/to/file.py:function"."""
    return ":" in name


def is_path(value: Any) -> bool:
    """Whether a value that may be a name or a path is a path: it has a separator, or ends as a table's file does."""
    return isinstance(value, str) and ("/" in value or os.sep in value or value.endswith(_FILE_SUFFIXES))


def addresses(config: Config) -> list[tuple[str, str]]:
    """(key, value) of what should be a path and is an address ("gs://bucket/shards")."""
    named = [(key, lookup(config, key)) for key in (*_PATHS, *_NAMES_OR_FILES) if key != "task.judge"]
    named += [("evaluation.others", other) for other in config.evaluation.others]
    return [(key, value) for key, value in named if is_address(value or "")]


def with_absolute_paths(config: Config) -> Config:
    """The configuration, its rows of comparison included, with every relative path spelt out from the root."""
    for key in (*_PATHS, *_NAMES_OR_FILES):
        parent, _, name = key.rpartition(".")
        part = getattr(config, parent) if parent else config
        part = dataclasses.replace(part, **{name: _rooted(key, getattr(part, name))})
        config = dataclasses.replace(config, **{parent: part}) if parent else part
    if config.grpo is not None:
        reward = dataclasses.replace(config.grpo.reward, terms=tuple(map(_rooted_term, config.grpo.reward.terms)))
        config = dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, reward=reward))
    evaluation = dataclasses.replace(config.evaluation, others=tuple(map(absolute, config.evaluation.others)))
    return dataclasses.replace(config, evaluation=evaluation, rows=tuple(map(_rooted_row, config.rows)))


def absolute(path: str) -> str:
    """A path spelt out from the root; "" stays."""
    return os.path.abspath(os.path.expanduser(path)) if path else path


def _rooted(key: str, value: str) -> str:
    name = value == "endpoint" if key == "task.judge" else key in _NAMES_OR_FILES and not is_path(value)
    return value if name or "://" in value else absolute(value)


def _rooted_term(term: RewardSpec) -> RewardSpec:
    options = {key: absolute(value) if is_path(value) else value for key, value in term.options.items()}
    return dataclasses.replace(term, name=_rooted_name(term.name), gate=_rooted_name(term.gate), options=options)


def _rooted_name(name: str) -> str:
    return absolute(name) if is_custom(name) else name


def _rooted_row(row: RowConfig) -> RowConfig:
    return dataclasses.replace(row, changes=tuple(map(_rooted_change, row.changes)))


def _rooted_change(change: str) -> str:
    """`key=value` of a row with its paths spelt out; a list of terms becomes a literal of plain mappings."""
    key, _, value = change.partition("=")
    if key in (*_PATHS, *_NAMES_OR_FILES):
        return f"{key}={_rooted(key, value)}"
    if key == _TERMS:
        terms = [_rooted_term(term) for term in parse_terms(value)]
        return f"{key}={[dataclasses.asdict(term) for term in terms]!r}"
    if not key.startswith(f"{_TERMS}."):
        return change
    name, _, field = key.removeprefix(f"{_TERMS}.").rpartition(".")
    if field == "gate":
        value = _rooted_name(value)
    elif field == "options":
        value = repr(dict(_rooted_term(RewardSpec("", options=ast.literal_eval(value))).options))
    return f"{_TERMS}.{_rooted_name(name)}.{field}={value}"
