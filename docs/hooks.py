"""What pages of the site take from elsewhere, so that nothing stands in two places.

A line `{{ section: README.md, Quick start }}` of a page becomes that section, `{{ page: CHANGELOG.md }}` a whole file,
`{{ file: docs/cluster/train.slurm }}` a file as a block of code, `{{ config }}` and `{{ commands }}` what the code says
of its keys and flags. Every package gets a page of its docstrings in `api/`. Links of what is taken lead on from where
it stands now.
"""

from __future__ import annotations

import ast
import html
import os
import re
from pathlib import Path
from typing import Any

from mecap_jax.__main__ import commands
from mecap_jax.config import Config
from mecap_jax.config.reference import Key, keys

_ROOT = Path(__file__).parents[1]
_DIRECTIVE = re.compile(r"^\{\{ (\w+)(?:: (.+?))? \}\}$", re.M)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
# Files outside docs/ that have a page.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "measured.md",
}
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".slurm": "sh"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the API."""
    from mkdocs.structure.files import File  # the rest does without

    for name, text in api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in what a page takes, and leads its links to pages of the site."""
    here = f"docs/{page.file.src_uri}"
    return _DIRECTIVE.sub(lambda found: _taken(*found.groups(), here), relink(markdown, here, here))


def _taken(kind: str, argument: str | None, here: str) -> str:
    if kind == "config":
        return configuration()
    if kind == "commands":
        return command_pages()
    name, _, title = argument.partition(", ")
    text = (_ROOT / name).read_text(encoding="utf-8")
    if kind == "file":
        return f"```{_LANGUAGES[Path(name).suffix]}\n{text.rstrip()}\n```"
    return relink(section(text, title) if kind == "section" else text, name, here)


def section(text: str, title: str) -> str:
    """Returns what stands under a heading of the second level.

    Raises:
      ValueError: there is no such heading.
    """
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    if title not in parts[1::2]:
        raise ValueError(f"no section {title!r}; there are {', '.join(parts[1::2])}")
    return parts[parts.index(title, 1) + 1].strip()


def relink(text: str, source: str, here: str) -> str:
    """Returns text of the file `source` with links that hold on the page `here`; to what has no page, as code."""

    def link(found: re.Match) -> str:
        mark, title, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = os.path.normpath(Path(source).parent / target)
        place = f"docs/{_PAGES[path]}" if path in _PAGES else path
        if not place.startswith("docs/"):
            if mark:  # a picture
                return found[0]
            return title if title.startswith("`") else f"`{path}`"
        return f"{mark}[{title}]({os.path.relpath(place, Path(here).parent)}{anchor})"

    return _LINK.sub(link, text)


def configuration() -> str:
    """Returns a table of all keys for every part of the configuration, from the dataclasses' docstrings."""
    parts: dict[str, list[Key]] = {"": []}
    heads = {key.path.partition(".")[0] for key in keys(Config) if "." in key.path}
    for key in keys(Config):
        head = key.path.partition(".")[0]
        parts.setdefault(head if head in heads else "", []).append(key)
    return "\n\n".join(
        f"## {f'`{part}`' if part else 'The run'}\n\n| key | default | meaning |\n|---|---|---|\n"
        + "\n".join(f"| `{key.path}` | {_default(key.value)} | {_cell(key.text)} |" for key in rows)
        for part, rows in parts.items()
    )


def _default(value: Any) -> str:
    text = repr(value) if value is not None else ""
    return f"`{_cell(text if len(text) <= 60 else text[:60] + ' …')}`" if text else ""


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def command_pages() -> str:
    """Returns every command with its docstring and flags, read from the scripts without running them."""
    pages = []
    for name, path in commands().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        rows = "\n".join(f"| `--{flag}` | {default} | {_cell(text)} |" for flag, default, text in _flags(tree))
        docstring = (ast.get_docstring(tree) or "").rstrip()
        pages.append(f"## {name}\n\n```text\n{docstring}\n```\n\n| flag | default | meaning |\n|---|---|---|\n{rows}")
    return "\n\n".join(pages)


def _flags(tree: ast.Module) -> list[tuple[str, str, str]]:
    """(name, default, help) of the flags that a script defines by name."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("DEFINE_"):
            first, default, *rest = node.args
            if isinstance(first, ast.Constant):
                text = rest[1] if node.func.attr in ("DEFINE_enum", "DEFINE_multi_enum") else rest[0]
                shown = "" if ast.unparse(default) in ("None", "''") else f"`{_cell(ast.unparse(default))}`"
                found.append((first.value, shown, _text(text)))
    return found


def _text(node: ast.expr) -> str:
    """A constant string, or an f-string with the names in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else ast.unparse(part.value) for part in node.values
        )
    return ast.literal_eval(node)


def api_pages() -> dict[str, str]:
    """Returns the page of every package by name, and "index", which lists them."""
    packages: dict[str, list[str]] = {"mecap_jax": []}
    for path in sorted((_ROOT / "mecap_jax").rglob("*.py")):
        *folders, name = path.relative_to(_ROOT).with_suffix("").parts
        if not name.startswith("__"):
            packages.setdefault(folders[1] if len(folders) > 1 else "mecap_jax", []).append(".".join([*folders, name]))
    pages = {
        package: "\n\n".join([f"# `{_full(package)}`", *(f"::: {module}" for module in modules)])
        for package, modules in packages.items()
    }
    listed = "\n".join(f"- [`{_full(name)}`]({name}.md)" for name in pages)
    return pages | {"index": f"# API\n\nPublic names and their docstrings, by package.\n\n{listed}\n"}


def _full(package: str) -> str:
    return package if package == "mecap_jax" else f"mecap_jax.{package}"
