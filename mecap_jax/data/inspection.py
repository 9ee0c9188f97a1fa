"""What is read of a clip before it is stored: its media are decoded once, here or in other processes.

Importers name clips by functions that read them (`Pending`), which any process can call. Whoever inspects them returns
what became of each, in order, so that the shards are the same whoever it was (`importers.beam_runner` is another one).
"""

from __future__ import annotations

import collections
import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from mecap_jax.data import media
from mecap_jax.data.manifest import BadClip, Duplicate
from mecap_jax.data.utterance import Utterance
from mecap_jax.threads import ahead

Item = Utterance | BadClip | Duplicate
Pending = Item | Callable[[], Item]
Inspected = tuple[Utterance, dict[str, Any]] | BadClip | Duplicate
Inspect = Callable[[Iterable[Pending], float], Iterator[Inspected]]

_CLIPS_PER_TASK = 8
_TASKS_AHEAD = 4  # per process; bounds what waits in memory for a slow consumer


def read(pending: Pending) -> Item:
    """Returns what is known of a clip already, or what reading it gives."""
    return pending() if callable(pending) else pending


def inspect(pending: Pending, max_seconds: float) -> Inspected:
    """Reads a clip and decodes its media: the utterance and what decoding tells, or why there is none."""
    item = read(pending)
    if not isinstance(item, Utterance):
        return item
    audio = video = media.MediaInfo()
    for field in ("audio", "video"):
        data = getattr(item, field)
        if data is None:
            continue
        try:
            info = media.probe(data, max_seconds)
        except media.MediaError as error:
            return BadClip(item.id, f"{field}: {error}")
        if getattr(info, f"{field}_seconds") is None:
            return BadClip(item.id, f"{field}: has no {field} stream")
        audio, video = (info, video) if field == "audio" else (audio, info)
    sound = audio.audio_seconds or video.audio_seconds
    facts = {
        "has_audio": sound is not None,
        "has_video": item.video is not None,
        "seconds": round(sound or video.video_seconds or 0.0, 4),
        "video_seconds": round(video.video_seconds or 0.0, 4),
        "frames": video.frames or 0,
        "width": video.width or 0,
        "height": video.height or 0,
    }
    return item, facts


def in_threads(clips: Iterable[Pending], max_seconds: float) -> Iterator[Inspected]:
    """Inspects clips in threads, a few ahead: decoders leave the interpreter to others."""
    return ahead(functools.partial(inspect, max_seconds=max_seconds), clips)


def in_processes(clips: Iterable[Pending], max_seconds: float) -> Iterator[Inspected]:
    """Inspects clips in one process a processor core: rendering them takes the interpreter."""
    waiting = iter(clips)
    tasks = iter(lambda: list(itertools.islice(waiting, _CLIPS_PER_TASK)), [])
    processes = os.cpu_count() or 1
    # Spawned processes start clean: a fork would copy the threads and devices that JAX holds in the parent.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    running: collections.deque[Future] = collections.deque()
    try:
        for task in tasks:
            running.append(pool.submit(inspect_all, task, max_seconds))
            if len(running) == _TASKS_AHEAD * processes:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def inspect_all(clips: Iterable[Pending], max_seconds: float) -> list[Inspected]:
    """Inspects clips, one after the other."""
    return [inspect(clip, max_seconds) for clip in clips]
