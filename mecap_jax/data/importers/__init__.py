"""Importers: one module a corpus, each turning raw files into utterances.

An importer has `read(input, synthetic) -> Iterator[Utterance | BadClip]` and `count(...) -> int`, the number of items
to expect (of the input directory, or of the synthetic settings). It yields a `BadClip` for whatever it cannot read, so
that nothing is lost silently; `prepare` checks the media of the rest, writes the shards and records every bad clip in
the manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from mecap_jax.config import SyntheticConfig
from mecap_jax.data import media, shards
from mecap_jax.data.shards import BadClip

__all__ = ["IMPORTERS", "BadClip", "ImporterError", "prepare", "read_clip"]

IMPORTERS = {
    "synthetic": "mecap_jax.data.importers.synthetic",
    "folder": "mecap_jax.data.importers.folder",
    "ravdess": "mecap_jax.data.importers.ravdess",
}
MAX_CLIP_BYTES = 1 << 28

T = TypeVar("T")


class ImporterError(ValueError):
    """Raw data that cannot be imported at all; the message names the file or the setting."""


def prepare(
    source: str,
    input: str | os.PathLike | None,
    output: str | os.PathLike,
    synthetic: SyntheticConfig | None = None,
    command: str = "",
    progress: bool = True,
    max_seconds: float = media.MAX_SECONDS,
    max_bad_fraction: float = 0.02,
) -> dict[str, Any]:
    """Turns raw files into a directory of shards and returns its manifest.

    A finished directory made from the same source and the same input files is reused. Every clip is decoded once; the
    bad ones are quarantined. Progress and a summary go to stderr.

    Args:
      source: name of an importer, a key of `IMPORTERS`.
      input: the raw files; None for the synthetic corpus.
      output: directory of shards.
      synthetic: settings of the synthetic corpus, by default `SyntheticConfig()`; the other importers have none.
      command: what was run, for the manifest.
      max_seconds: longer clips are bad.
      max_bad_fraction: more than this share of bad clips is an error, and nothing is left at `output`.

    Raises:
      ImporterError: no such importer, no such input, or input that is not of its format.
      ShardError: `output` holds something else, an id occurs twice, or too many clips are bad.
    """
    if source not in IMPORTERS:
        raise ImporterError(f"unknown source {source!r}; known: {', '.join(IMPORTERS)}")
    importer = importlib.import_module(IMPORTERS[source])
    output = Path(output)
    settings: dict[str, Any] = {"importer": source, "max_seconds": max_seconds}
    synthetic = synthetic or SyntheticConfig()
    if source == "synthetic":
        if input:
            raise ImporterError(f"source 'synthetic' reads no input directory, got {str(input)!r}")
        input = None
        settings["synthetic"] = dataclasses.asdict(synthetic)
    else:
        if not input or not Path(input).is_dir():
            raise ImporterError(f"source {source!r} needs an input directory, got {str(input or '')!r}")
        input = Path(input)
        settings["input"] = str(input.resolve())
        settings["fingerprint"] = _fingerprint(input, without=output)
    finished = shards.find_finished(output, settings)
    if finished is not None:
        _say(f"{output} is finished already and made from the same source: reused")
        return finished

    items = importer.read(input, synthetic)
    if progress:
        items = _show_progress(items, importer.count(synthetic if input is None else input), f"importing {source}")
    manifest = shards.write(
        items, output, command, settings, max_seconds=max_seconds, max_bad_fraction=max_bad_fraction
    )
    _say(_summary(output, manifest))
    return manifest


def read_clip(directory: Path, name: str) -> bytes:
    """Reads a file that `directory` holds, for importers.

    Raises:
      ValueError: the path leads out of the directory (absolute, through "..", through a link), or names no plain file,
        or one too large to be a clip.
    """
    try:
        path = (directory / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(directory.resolve()):
            raise ValueError(f"path leads out of the input directory: {name!r}")
        if not path.is_file():
            raise ValueError(f"no such file: {name!r}")
        if path.stat().st_size > MAX_CLIP_BYTES:
            raise ValueError(f"{name!r} has {path.stat().st_size} bytes (at most {MAX_CLIP_BYTES})")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # no permission, a name too long, links in a circle
        raise ValueError(f"cannot read {name!r:.200}: {error}") from error


def _fingerprint(directory: Path, without: Path) -> str:
    """Hashes the names and sizes of all files and the content of tables, so that changed input is noticed."""
    directory, without = directory.resolve(), without.resolve()
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_relative_to(without):
            digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
            if path.suffix in (".jsonl", ".csv"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _summary(output: Path, manifest: dict[str, Any]) -> str:
    lines = [f"{output}: {manifest['records']} clips"]
    for split, counts in manifest["splits"].items():
        labels = ", ".join(f"{label} {count}" for label, count in counts["labels"].items())
        lines.append(
            f"  {split}: {counts['records']} clips, {counts['speakers']} speakers, {counts['seconds'] / 60:.1f} min"
            + (f" ({labels})" if labels else "")
        )
    if manifest["quarantined"]:
        bad = [BadClip(**clip) for clip in manifest["quarantined"]]
        lines += [f"quarantined {len(bad)} bad clips:", shards.summarise_bad(bad)]
    return "\n".join(lines)


def _show_progress(items: Iterable[T], total: int, description: str, every_s: float = 10.0) -> Iterator[T]:
    """Passes items on, with a bar on a terminal and a line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from track(items, description, total=total, console=Console(stderr=True))
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            _say(f"{description}: {done} of {total} clips after {last - start:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
