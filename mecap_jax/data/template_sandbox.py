"""Runs chat templates that strangers wrote: with the helpers that transformers gives them, within bounds.

Jinja's sandbox keeps a template from Python's internals, but not from taking all memory or never ending. So loops,
calls, filters and operators that make long values are counted here, and whatever goes wrong is a ValueError.
"""

from __future__ import annotations

import contextvars
import datetime
import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

_LONGEST_SOURCE = 100_000  # characters
_LONGEST_OUTPUT = 2**22
_LONGEST_VALUE = 2**23  # characters and elements of one value
_ALL_VALUES = 2**27  # of everything that one rendering makes
_SECONDS = 5.0  # of this thread's own work
_LARGEST_NUMBER = 2**64
# Methods and filters whose result may be as long as the product of what they are given.
_MULTIPLYING = frozenset(
    "batch center expandtabs format format_map indent join ljust replace rjust round slice to_bytes tojson translate "
    "wordwrap zfill".split()
)
_SHORT = 32  # such arguments are no factor of that product: separators, fillers, widths


def run_template(source: str, **variables: Any) -> str:
    """Renders a template.

    Raises:
      ValueError: it cannot be read, fails, or makes too much; the message says what.
    """
    if len(source) > _LONGEST_SOURCE:
        raise ValueError(f"the chat template has {len(source)} characters, more than {_LONGEST_SOURCE}")
    spent = _SPENT.set(_Spent())
    try:
        pieces, length = [], 0
        for piece in _compile(source).generate(**variables):
            pieces.append(piece)
            length += len(piece)
            if length > _LONGEST_OUTPUT:
                raise SecurityError(f"its output exceeds {_LONGEST_OUTPUT} characters")
        return "".join(pieces)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template cannot be read, line {error.lineno}: {error}") from error
    except Exception as error:  # a template can raise whatever Python's operators raise
        name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        raise ValueError(f"the chat template fails: {name}{error}") from error
    finally:
        _SPENT.reset(spent)


class _Spent:
    """What one rendering has used."""

    def __init__(self):
        self._length, self._start = 0, time.thread_time()

    def add(self, length: int) -> None:
        self._length += length
        if self._length > _ALL_VALUES:
            raise SecurityError("its values take too much memory")
        if time.thread_time() - self._start > _SECONDS:
            raise SecurityError(f"it runs for more than {_SECONDS:g} s")


# Threads share a compiled template.
_SPENT: contextvars.ContextVar[_Spent] = contextvars.ContextVar("spent")


def _length(value: Any) -> int:
    """Characters and elements of a value; one that stands in it twice counts twice, as it does in print."""
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        total += 1
        if isinstance(item, str | bytes | range):
            total += len(item)
        elif isinstance(item, Mapping):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            rest += item
        if total + len(rest) > _LONGEST_VALUE:
            raise SecurityError(f"a value exceeds {_LONGEST_VALUE} characters")
    return total


def _made(value: Any) -> Any:
    _SPENT.get().add(_length(value))
    return value


def _refuse_long(name: str, value: Any, arguments: Iterable[Any]) -> None:
    """Refuses an operation that may make a long value, before it does."""
    if name not in _MULTIPLYING:
        return
    if name in ("format", "format_map") and isinstance(value, str) and re.search(r"\d{4}", value):
        raise SecurityError("a format is wider than 999 characters")
    factors = [abs(x) if isinstance(x, int | float) else _length(x) for x in arguments]
    numbers = [abs(n) for x in arguments if isinstance(x, tuple | list) for n in x if isinstance(n, int | float)]
    if _length(value) * math.prod(factor for factor in factors + numbers if factor > _SHORT) > _LONGEST_VALUE:
        raise SecurityError(f"{name!r} may make a value of more than {_LONGEST_VALUE} characters")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int | float) and isinstance(right, int | float):
            if max(abs(left), abs(right)) > _LARGEST_NUMBER or operator == "**" and abs(right) > 64:
                raise SecurityError(f"the numbers of {operator!r} are too large")
        elif operator == "%":
            _refuse_long("format", left, [right])
        elif operator == "*":
            value, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and _length(value) * times > _LONGEST_VALUE:
                raise SecurityError(f"'*' makes a value of more than {_LONGEST_VALUE} characters")
        return _made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        _refuse_long(name, owner, [*args, *kwargs.values()])
        return _made(super().call(__context, __obj, *args, **kwargs))


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter under the same rules."""
    first = int(hasattr(function, "jinja_pass_arg"))  # the context or the environment comes before the value

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _refuse_long(name, args[first], [*args[first + 1 :], *kwargs.values()])
        return _made(function(*args, **kwargs))

    return bounded


def _counted(iterable: Iterable[Any]) -> Iterator[Any]:
    spent = _SPENT.get()
    for item in iterable:
        spent.add(1)
        yield item


class _Counting(NodeTransformer):
    """Makes loops count, and `a ~ b` the sum of two strings, which the sandbox sees."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        node = self.generic_visit(node)
        texts = [nodes.Filter(n, "string", [], [], None, None, lineno=node.lineno) for n in node.nodes]
        return functools.reduce(lambda left, right: nodes.Add(left, right, lineno=node.lineno), texts)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote; it is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    """Compiles a template with transformers' white-space rules and helper functions."""

    @jinja2.pass_context  # what needs the context is not computed while compiling
    def finalize(context: Any, value: Any) -> Any:
        return _made(value)

    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        optimized=False,  # constants would be folded, that is computed, outside the bounds
        finalize=finalize,
    )
    del environment.globals["lipsum"]
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    filters = environment.filters | {"tojson": _to_json}
    environment.filters = {name: _bounded(name, function) for name, function in filters.items()}
    environment.filters["counted"] = _counted
    return environment.from_string(_Counting().visit(environment.parse(source)))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
