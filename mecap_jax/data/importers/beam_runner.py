"""Apache Beam reads and decodes clips (extra `beam`): for corpora that take one machine too long.

The driver does what needs the tables alone. Workers read ranges of the clips and leave what became of them in a
directory beside the output, which they share with the driver as they do the input; the driver takes the ranges in
order, while later ones are still being read, and writes the same shards as without Beam.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack

from mecap_jax.data.building import building
from mecap_jax.data.importers.files import ImporterError
from mecap_jax.data.inspection import Inspected, Pending
from mecap_jax.data.inspection import inspect as inspect_here
from mecap_jax.data.manifest import BadClip, Duplicate
from mecap_jax.data.utterance import deserialize, serialize
from mecap_jax.threads import ahead

_CLIPS_PER_PART = 32
_POLL_S = 0.05
# Beam's own DirectRunner tries another one first, which it downloads.
_LOCAL = {"DirectRunner": "apache_beam.runners.portability.fn_api_runner.FnApiRunner"}
_KINDS = {kind.__name__: kind for kind in (BadClip, Duplicate)}


def inspect(
    clips: Iterable[Pending], max_seconds: float, *, beside: Path, runner: str, options: Sequence[str] = ()
) -> Iterator[Inspected]:
    """Inspects clips on a runner; yields what became of each, in order.

    Args:
      beside: the output; what workers leave stands next to it, on a file system that all of them have.
      runner: Beam's name of a runner ("DirectRunner").
      options: Beam's options, as on its command line.

    Raises:
      ImporterError: no Beam, an option that it does not know, or the runner failed.
    """
    clips = list(clips)
    ranges = [clips[start : start + _CLIPS_PER_PART] for start in range(0, len(clips), _CLIPS_PER_PART)]
    pipeline = _open_pipeline(runner, options)
    with building(beside.with_name(f"{beside.name}.parts")) as parts:
        work = _Work(pipeline, functools.partial(_write_part, parts, max_seconds), ranges)
        for number in range(len(ranges)):
            path = _part(parts, number)
            while not path.is_file():
                work.check()
                time.sleep(_POLL_S)
            yield from _read_part(path)
            path.unlink()
        work.finish()


class _Work(threading.Thread):
    """A pipeline that runs while its results are taken."""

    def __init__(self, pipeline: Any, write: functools.partial, ranges: list[list[Pending]]):
        import apache_beam

        super().__init__(name="beam", daemon=True)
        (
            pipeline
            | "Ranges" >> apache_beam.Create(list(enumerate(ranges)), reshuffle=True)
            | "Read" >> apache_beam.MapTuple(write)
        )
        self._pipeline, self._failure = pipeline, None
        self.start()

    def run(self) -> None:
        try:
            self._pipeline.run().wait_until_finish()
        except BaseException as error:  # whatever a runner raises is told by `check`
            self._failure = error

    def check(self) -> None:
        """Raises `ImporterError` where the pipeline has ended, and results are waited for."""
        if not self.is_alive():
            reason = str(self._failure or "it ended without a result").strip().splitlines()
            raise ImporterError(f"Beam: {reason[0] if reason else self._failure!r}") from self._failure

    def finish(self) -> None:
        """Waits for the end of the pipeline."""
        self.join()
        if self._failure is not None:
            self.check()


def _open_pipeline(runner: str, options: Sequence[str]) -> Any:
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImporterError(f"--runner needs Apache Beam: pip install -e '.[beam]' ({error})") from error
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    words = [f"--{option.removeprefix('--')}" for option in options]
    try:
        quiet = "--default_sdk_harness_log_level=WARNING"
        asked = PipelineOptions([f"--runner={_LOCAL.get(runner, runner)}", quiet, *words])
        known = asked.get_all_options()
        pipeline = apache_beam.Pipeline(options=asked)
    except SystemExit as error:  # its parser has printed what a value should be
        raise ImporterError(f"Beam refuses an option of {runner}: {' '.join(words)}") from error
    except Exception as error:  # unknown runners raise half a dozen types
        raise ImporterError(f"Beam: {error}") from error
    if unknown := [word for word in words if word[2:].partition("=")[0] not in known]:
        raise ImporterError(f"Beam does not know the option {unknown[0]}")
    return pipeline


# --- what workers leave -----------------------------------------------------------------------------------------


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.msgpack"


def _write_part(parts: Path, max_seconds: float, number: int, clips: list[Pending]) -> None:
    """Inspects a range; a part is there when it is complete, whoever else works on it."""
    path = _part(parts, number)
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
    packer = msgpack.Packer(use_bin_type=True)
    with unfinished.open("wb") as file:
        for result in ahead(functools.partial(inspect_here, max_seconds=max_seconds), clips):
            if isinstance(result, tuple):
                utterance, facts = result
                result = ("Utterance", serialize(utterance), facts)
            else:
                result = (type(result).__name__, *vars(result).values())
            file.write(packer.pack(result))
    os.replace(unfinished, path)


def _read_part(path: Path) -> Iterator[Inspected]:
    with path.open("rb") as file:
        for kind, *values in msgpack.Unpacker(file, max_buffer_size=0, raw=False):
            yield (deserialize(values[0]), values[1]) if kind == "Utterance" else _KINDS[kind](*values)
