"""The commands: `python -m mecap_jax COMMAND [flags]`, or `mecap-COMMAND [flags]` where the package is installed.

Without a command, or with --help, they are listed; --version says which version this is. A command is a script of
`scripts/`, and runs as if it were called by its path.
"""

from __future__ import annotations

import ast
import difflib
import importlib.metadata
import runpy
import sys
from pathlib import Path

from mecap_jax.shipped import shipped


def main() -> None:
    """Runs the command that the program's name ends with ("mecap-train"), else the one of the first argument."""
    program, *arguments = sys.argv
    name = Path(program).stem.partition("mecap-")[2]
    if not name:
        name, *arguments = arguments or ["--help"]
    if name in ("--help", "-h", "--version"):
        print(_list() if name != "--version" else importlib.metadata.version("mecap_jax"))
        return
    known = commands()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [str(known[name]), *arguments]
    runpy.run_path(str(known[name]), run_name="__main__")


def commands() -> dict[str, Path]:
    """Path of the script by command: "prepare-data", "export"."""
    return {name.removesuffix("_hf").replace("_", "-"): path for name, path in shipped("scripts").items()}


def _list() -> str:
    first_lines = {name: _docstring(path).splitlines()[0].partition(": `")[0] for name, path in commands().items()}
    width = max(map(len, first_lines))
    lines = [f"  {name:{width}}  {text}" for name, text in first_lines.items()]
    usage = "python -m mecap_jax COMMAND [flags]; COMMAND --help says more."
    return "\n".join([usage, "", *lines])


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    main()
