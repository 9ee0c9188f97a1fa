"""Work in threads, a few items ahead of whoever takes the results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")
_WORKERS = min(8, os.cpu_count() or 1)


def ahead(
    function: Callable[[S], T], items: Iterable[S], count: int = 4 * _WORKERS, workers: int = _WORKERS
) -> Iterator[T]:
    """Applies `function` to items in `workers` threads; yields results in order, `count` of them at most waiting."""
    pool, waiting = ThreadPoolExecutor(workers), deque[Future]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
