"""Every key of a configuration with its value and what it means, read from the dataclasses' own docstrings."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mecap_jax.config.loading import load
from mecap_jax.config.schema import Config, ConfigError

# "name: text" or "name, name: text" in a section of attributes, indented by two.
_ENTRY = re.compile(r"^  (\w+(?:, \w+)*): (.*)$")


class Key(NamedTuple):
    """One key: its dotted path, its value (a class where the recipe has none), and its docstring's text."""

    path: str
    value: Any
    text: str


def keys(config: Config | type[Config]) -> Iterator[Key]:
    """The keys of a configuration, or of the class with its defaults, in the order in which they are declared."""
    yield from _keys(config, "")


def _keys(node: Any, prefix: str) -> Iterator[Key]:
    kind = node if isinstance(node, type) else type(node)
    texts, hints = attribute_texts(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        value = _default(field) if isinstance(node, type) else getattr(node, field.name)
        inner = (
            value if dataclasses.is_dataclass(value) else _dataclass_in(hints[field.name]) if value is None else None
        )
        path = prefix + field.name
        if inner is not None and value is None:
            yield Key(path, None, texts.get(field.name, ""))
        if inner is not None:
            yield from _keys(inner, path + ".")
        else:
            yield Key(path, value, texts.get(field.name, ""))


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of `Dataclass` or `Dataclass | None`."""
    return next((option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option)), None)


def attribute_texts(kind: type) -> dict[str, str]:
    """What a dataclass' docstring says of each attribute, on one line; several that share a line share its text."""
    texts: dict[str, str] = {}
    names: list[str] = []
    lines = iter((inspect.getdoc(kind) or "").splitlines())
    for line in lines:
        if line.strip() == "Attributes:":
            break
    for line in lines:
        if found := _ENTRY.match(line):
            names = found[1].split(", ")
            texts |= dict.fromkeys(names, found[2])
        elif line.startswith("    ") and names:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return texts


def help_of_keys(argv: Sequence[str]) -> str:
    """What `--help` says of the keys: of the recipe that `--config=` names, else their defaults; "" where no help is
    asked for."""
    if not {"--help", "-help", "--helpfull", "-h", "-?"} & set(argv):
        return ""
    recipe = next((a.partition("=")[2] for a in argv if a.startswith("--config=")), "")
    shown: Config | type[Config] = Config
    with contextlib.suppress(ConfigError):  # help is also for those whose recipe does not load
        shown = load(recipe, []) if recipe else Config
    whose = "with their defaults; --config=RECIPE shows a recipe's" if shown is Config else f"as {recipe} has them"
    return f"\nKeys of the configuration, {whose}:\n\n{help_text(shown)}\n"


def help_text(config: Config | type[Config], width: int = 100) -> str:
    """The keys as a command's help shows them: key, value in this recipe, and text."""
    blocks = []
    for path, value, text in keys(config):
        wrapped = textwrap.fill(text, width, initial_indent="      ", subsequent_indent="      ") if text else ""
        blocks.append(f"  --config.{path}={_shown(value)}" + (f"\n{wrapped}" if wrapped else ""))
    return "\n".join(blocks)


def _shown(value: Any) -> str:
    plain = str(value) if isinstance(value, (bool, int, float, str)) or value is None else repr(value)
    return textwrap.shorten(plain, 160, placeholder=" …")
