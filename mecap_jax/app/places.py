"""What the page may open: runs, stages and data inside the directories that it was started with, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mecap_jax.config import ConfigError
from mecap_jax.data.importers.folder import MANIFESTS
from mecap_jax.data.manifest import MANIFEST
from mecap_jax.experiment.weights import CONFIG_FILE
from mecap_jax.text_files import printable

COMPLETIONS, METRICS = "completions.jsonl", "metrics.jsonl"
_DEPTH = 4  # directories below the named one; runs/reproduce/seed-0 and the like
_MOST = 500  # of each kind


def inside(root: Path, name: str) -> Path:
    """The directory that a name stands for below `root`; "." is `root` itself.

    Raises:
      ConfigError: it leads out of `root`, by `..`, as an absolute path or by a link, or there is no such directory.
    """
    shown = printable(name)[:200]
    try:
        path = Path(os.path.realpath(root / name))
        outside = Path(name).is_absolute() or not path.is_relative_to(os.path.realpath(root))
        there = not outside and path.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ConfigError(f"{shown!r} is no directory of {root}: {error}") from error
    if outside:
        raise ConfigError(f"{shown!r} leads out of {root}; only what is in there is shown")
    if not there:
        raise ConfigError(f"{root} holds no directory {shown!r} (any more)")
    return path


def find_runs(root: Path) -> list[str]:
    """Names, below `root`, of directories that hold the logs of a run, in alphabetical order."""
    return _find(root, lambda names: COMPLETIONS in names or METRICS in names)


def find_data(root: Path) -> list[str]:
    """Names, below `root`, of directories of shards and of folders of clips with a manifest."""
    return _find(root, lambda names: MANIFEST in names or not names.isdisjoint(MANIFESTS))


def find_stages(root: Path) -> list[str]:
    """Names, below `root`, of the stages of runs: RUN/checkpoints/STAGE."""
    runs = _find(root, lambda names: CONFIG_FILE in names and "checkpoints" in names)
    stages = ((run, stage.name) for run in runs for stage in sorted((root / run / "checkpoints").glob("*/")))
    return [str(Path(run, "checkpoints", stage)) for run, stage in stages][:_MOST]


def _find(root: Path, wanted: Callable[[set[str]], bool]) -> list[str]:
    found = []
    for path, names in _directories(root, _DEPTH):
        if wanted(names):
            found.append(str(path.relative_to(root)))
        if len(found) == _MOST:
            break
    return sorted(found)


def _directories(directory: Path, depth: int) -> Iterator[tuple[Path, set[str]]]:
    """Directories with the names in them, those near the top first; links are not followed."""
    try:
        entries = list(os.scandir(directory))
    except OSError:  # gone, or not ours to read
        return
    names = {entry.name for entry in entries}
    yield directory, names
    if depth and CONFIG_FILE not in names:  # there is no run within a run
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _directories(directory / entry.name, depth - 1)
