"""The commands that README and docs show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))


def commands() -> Iterator[tuple[Path, str, list[str], str]]:
    """(page, line, words after "python", comment) of every command of ours in a block of shell."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.finditer(r"^```(?:sh|bash|shell|console)\n(.*?)^```", text, re.M | re.S):
            for line in block[1].replace("\\\n", " ").splitlines():
                if line.startswith("python scripts/"):
                    yield page, line, shlex.split(line, comments=True)[1:], line.partition("   #")[2]


def training(workdir: str) -> list[str]:
    """The words of the README's command that trains in this workdir, as they stand there."""
    (words,) = (words for *_, words, _ in commands() if f"--workdir={workdir}" in words)
    return words


def overrides(workdir: str) -> list[str]:
    """What that command changes in its recipe."""
    return [word.removeprefix("--config.") for word in training(workdir) if word.startswith("--config.")]
