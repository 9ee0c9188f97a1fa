"""The embedded synthetic corpus as an importer: nothing is read, clips are rendered in all processor cores."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from mecap_jax.data.importers import BadClip, ImportSettings, Item
from mecap_jax.data.synthetic.corpus import ClipSpec, plan, render
from mecap_jax.data.synthetic.espeak import SpeechError
from mecap_jax.data.utterance import Utterance

_CLIPS_PER_TASK = 8
_TASKS_AHEAD = 4  # per process; bounds what waits in memory for a slow consumer


def count(input: None, settings: ImportSettings) -> int:
    """Returns how many clips `read` yields."""
    return settings.synthetic.clips


def read(input: None, settings: ImportSettings) -> Iterator[Item]:
    """Yields the clips of the corpus in the order of its plan.

    Args:
      input: None, the corpus is generated.
      settings: size, seed and languages of the corpus.

    Raises:
      ConfigError: a setting that the corpus cannot have.
    """
    specs = iter(plan(settings.synthetic))
    tasks = iter(lambda: list(itertools.islice(specs, _CLIPS_PER_TASK)), [])
    processes = os.cpu_count() or 1
    # Spawned processes start clean: a fork would copy the threads and devices that JAX holds in the parent.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    running: collections.deque[Future] = collections.deque()
    try:
        for task in tasks:
            running.append(pool.submit(_render_all, task))
            if len(running) == _TASKS_AHEAD * processes:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def render_or_report(spec: ClipSpec) -> Utterance | BadClip:
    """Returns a clip, or why it cannot be rendered."""
    try:
        return render(spec)
    except SpeechError as error:
        return BadClip(id=spec.id, reason=str(error))


def _render_all(specs: list[ClipSpec]) -> list[Utterance | BadClip]:
    return [render_or_report(spec) for spec in specs]
