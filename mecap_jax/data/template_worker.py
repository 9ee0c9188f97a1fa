"""The program that renders chat templates, in a process of its own (`template_sandbox`): a JSON object a line.

A request holds "source", "variables" and "limits" (seconds of the processor, seconds of the clock), an answer "text" or
"error". Whatever a template does to time and memory it does here, where the operating system ends it. Nothing of the
package is imported, so that the program starts at once.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import resource
import signal
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 448 * 2**20
OUT_OF_MEMORY = 3  # exit status
LONGEST_SOURCE, LONGEST_OUTPUT = 100_000, 2**20  # characters


def main() -> None:
    """Answers requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in (signal.SIGINT, signal.SIGTERM):  # meant for the process that asks; without it, the requests end
        signal.signal(name, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            _limit(*request.pop("limits"))
            answer = json.dumps(_answer(**request))
            _limit(0, 0)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        print(answer, flush=True)


def _limit(cpu_seconds: float, wall_seconds: float) -> None:
    """Ends the process after a time, wherever it is by then, also within one operation on huge values; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def _answer(source: str, variables: dict[str, Any]) -> dict[str, str]:
    if len(source) > LONGEST_SOURCE:
        return {"error": f"has {len(source)} characters, more than {LONGEST_SOURCE}"}
    try:
        text = _compile(source).render(variables)
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"cannot be read, line {error.lineno}: {error}"}
    except MemoryError:
        raise
    except Exception as error:  # a template can raise whatever Python's operators raise
        name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        return {"error": f"fails: {name}{str(error):.1000}"}
    if len(text) > LONGEST_OUTPUT:
        return {"error": f"makes {len(text)} characters, more than {LONGEST_OUTPUT}"}
    return {"text": text}


@functools.lru_cache(maxsize=4)
def _compile(source: str) -> jinja2.Template:
    """Compiles a template with transformers' white-space rules and helper functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    environment.filters["tojson"] = _to_json
    return environment.from_string(source)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote; it is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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


if __name__ == "__main__":
    main()
