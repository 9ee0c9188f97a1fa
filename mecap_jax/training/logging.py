"""Logs of a run: a live display, `metrics.jsonl`, `completions.jsonl`, TensorBoard, and trackers where there are some.

On a terminal a progress bar shows the numbers that matter and the time left; elsewhere a line appears now and then.
Only the first process writes.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mecap_jax.json_files import parse_json, to_json
from mecap_jax.text_files import printable
from mecap_jax.training.profiling import StepTrace
from mecap_jax.training.trackers import COMPLETIONS, METRICS, Tracker

# What a person watches; everything is in metrics.jsonl.
_SHOWN = {
    "loss": "loss {:.3f}",
    "validation/token_nll": "val nll {:.3f}",
    "reward": "reward {:.3f}",
    "rewards/emotion/mean": "emotion {:.3f}",
    "kl": "kl {:.3f}",
    "entropy": "entropy {:.2f}",
    "completions/mean_length": "len {:.0f}",
    "validation/reward": "val reward {:.3f}",
    "timing_s/step": "{:.2f} s/step",
    "perf/clips_per_s": "{:.1f} clips/s",
    "perf/mfu": "mfu {:.0%}",
}
_SECONDS_BETWEEN_LINES = 20.0
_SPEED_WINDOW = 600.0  # seconds; two steps must fit in, or there is no estimate


class RunLogger(contextlib.AbstractContextManager):
    """Writes the logs of a run into its working directory."""

    def __init__(
        self,
        workdir: Path | None,
        enabled: bool = True,
        console: Console | None = None,
        traced: tuple[int, int] | None = None,
    ):
        """`enabled` is False for all but the first process; without `workdir` there is only the display.

        `traced` are the first and the last step of every stage of which a trace is written.
        """
        self._workdir, self._enabled, self._traced = workdir, enabled, traced
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._tensorboard = _summary_writer(workdir / "tensorboard") if enabled and workdir else None
        self._files: dict[str, Any] = {}
        self._trackers: list[Tracker] = []

    def mirror(self, open_all: Callable[[Callable[[str], None]], list[Tracker]]) -> None:
        """From now on the logs go to these trackers, too; `open_all` is told how to say something."""
        if self._enabled:
            self._trackers = open_all(self.say)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        for tracker in self._trackers:
            tracker.close(error)
        for file in self._files.values():
            file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def say(self, message: str) -> None:
        """What a person should know; names in it cannot write to the terminal."""
        if self._enabled:
            self._console.print(printable(message, keep="\n"), markup=False, soft_wrap=True)

    def rewind(self, stage: str, step: int) -> None:
        """Drops what an interrupted run logged of a stage beyond `step`, where its checkpoint takes up again."""
        if not self._enabled:
            return
        while self._files:  # a file that is open would go on in the old copy
            self._files.popitem()[1].close()
        for name in (METRICS, COMPLETIONS):
            path = self._workdir / name
            if not path.exists():
                continue
            temporary, last = path.with_suffix(".tmp"), step
            with temporary.open("w", encoding="utf-8") as file:
                for row in jsonl_rows(path):
                    if row.get("stage") != stage or row.get("step", 0) <= step:
                        file.write(f"{to_json(row)}\n")
                    else:
                        last = max(last, row["step"])
            temporary.replace(path)
            for tracker in self._trackers:
                tracker.rewind(stage, name, last)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of one step."""
        if not self._enabled:
            return
        self._write(METRICS, {"stage": stage, "step": step, "time": round(time.time(), 3), **values})
        for name, value in values.items():
            if math.isfinite(value):
                self._tensorboard.add_scalar(f"{stage}/{name}", value, step)
        for tracker in self._trackers:
            tracker.metrics(stage, step, values)

    def completions(self, stage: str, step: int, groups: Iterable[Mapping[str, Any]]) -> None:
        """Logs sampled groups with every reward term and advantage."""
        if self._enabled:
            groups = list(groups)
            for group in groups:
                self._write(COMPLETIONS, {"stage": stage, "step": step, **group})
            for tracker in self._trackers:
                tracker.completions(stage, step, groups)

    def trace(self, stage: str) -> StepTrace:
        """What traces the stage's steps that are to be traced, into `profile/STAGE`."""
        if not self._enabled or self._workdir is None or self._traced is None:
            return StepTrace(stage, None)
        return StepTrace(stage, self._workdir / "profile" / stage, *self._traced)

    @contextlib.contextmanager
    def progress(self, title: str, total: int, start: int = 0) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
        """Shows the progress of `total` steps, of which `start` are done; call what it gives with (step, metrics)."""
        if self._enabled and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            with Progress(*columns, console=self._console, speed_estimate_period=_SPEED_WINDOW) as bar:
                # Rich estimates from the steps after the first one it is told of, whose time is mostly compilation.
                task = bar.add_task(title, total=total, completed=start, numbers="compiling")
                yield lambda step, values: bar.update(task, completed=step, numbers=_numbers(values))
        else:
            yield _Lines(self.say, title, total, start)

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            self._files[name] = (self._workdir / name).open("a", encoding="utf-8")
        self._files[name].write(f"{to_json(row)}\n")
        self._files[name].flush()


class _Lines:
    """A line of text now and then, where there is no terminal to draw on.

    The first step is left out of the estimate of the time left: most of it is compilation.
    """

    def __init__(self, say, title: str, total: int, start: int):
        self._say, self._title, self._total = say, title, total
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()
        if start < total:
            say(f"{title} {start}/{total}  compiling")

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        first, began = self._first = self._first or (step, now)
        if step < self._total and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        known = step > first or step == self._total
        left = _duration((now - began) / max(step - first, 1) * (self._total - step)) if known else "?"
        self._say(f"{self._title} {step}/{self._total}  {_numbers(values)}  {left} left")


def _summary_writer(directory: Path):
    # Where it finds PyTorch, tensorboardX imports it: a second and 190 MB, for tensors that nobody logs here.
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(directory))


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(text.format(values[name]) for name, text in _SHOWN.items() if name in values)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}"


def jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a log, one in memory at a time; what is none, such as a last line that a crash cut short, is
    left out."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, see `jsonl_rows`."""
    return list(jsonl_rows(path))
