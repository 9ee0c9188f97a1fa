"""Where the files are that come with the package: beside it in a checkout, within it where a wheel was installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(directory: str, package: Path = _PACKAGE) -> dict[str, Path]:
    """The Python files of "configs" or "scripts" by their names without ending, in alphabetical order."""
    within = package / directory
    place = within if within.is_dir() else package.parent / directory
    return {path.stem: path for path in sorted(place.glob("*.py"))}
