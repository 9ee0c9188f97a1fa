"""Traces of some steps, for TensorBoard and Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax


class StepTrace(contextlib.AbstractContextManager):
    """Traces steps of a stage: XLA's programs, what the host does, and where each step begins.

    `directory` gets what TensorBoard's profile plugin reads (`plugins/profile/*/*.xplane.pb`), and beside it
    `perfetto_trace.json.gz` for ui.perfetto.dev.
    """

    def __init__(self, stage: str, directory: Path | None, first: int = 0, last: int = -1):
        """Traces the steps from `first` to `last`, counted from 1; without a directory, none."""
        self._stage, self._directory, self._first, self._last = stage, directory, first, last
        self._running = False

    def __exit__(self, *exception):
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step."""
        if self._directory is None or not self._first <= number <= self._last:
            yield
            return
        if not self._running:
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._running = True
        with jax.profiler.StepTraceAnnotation(self._stage, step_num=number):
            yield
        if number == self._last:
            self.__exit__()
