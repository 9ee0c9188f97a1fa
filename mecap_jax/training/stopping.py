"""SIGTERM and Ctrl-C: acknowledged at once, obeyed within seconds, after a step where one is under way."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np

from mecap_jax.interruption import Interrupted
from mecap_jax.sharding import all_rows

# A main thread that does not notice within so many seconds is in a compiler, say; all files are written whole or aside,
# so that ending the process loses nothing that was finished.
_GRACE_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Signals are the process's, and so is what they find.
_taking_steps, _requested = threading.Event(), threading.Event()


class StopSignal:
    """Within its block, SIGTERM and Ctrl-C stop the run: between `steps_under_way` after the step, elsewhere at once.

    A second signal does not wait for the step. A signal to one process stops all of them: they agree whenever they ask,
    and have to ask at the same steps.
    """

    def __enter__(self) -> StopSignal:
        _requested.clear()
        self._previous, self._left = {}, threading.Event()
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            # Python's handlers wait for the main thread; this pipe does not.
            self._wakeup = signal.set_wakeup_fd(self._writer)
            self._watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
            self._watcher.start()
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        self._left.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._writer)
            self._watcher.join()

    def __call__(self, step: int) -> bool:
        return bool(np.any(all_rows(np.array([_requested.is_set()]))))

    def _handle(self, number, frame):
        if not _taking_steps.is_set() or _requested.is_set():
            raise Interrupted("stopped; the same command resumes")
        _requested.set()

    def _watch(self, reader: int) -> None:
        seen = 0
        with open(reader, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] in _SIGNALS:
                    seen += 1
                    self._acknowledge(signal.Signals(number[0]).name, seen)

    def _acknowledge(self, name: str, seen: int) -> None:
        if _taking_steps.is_set() and seen == 1:
            os.write(2, f"{name}: stopping after the step that is under way\n".encode())
            return
        os.write(2, f"{name}: stopping\n".encode())
        if not self._left.wait(_GRACE_S):
            for child in multiprocessing.active_children():
                child.kill()
            os.write(2, b"stopped; the same command resumes\n")
            os._exit(Interrupted.STATUS)


@contextlib.contextmanager
def steps_under_way() -> Iterator[Callable[[], None]]:
    """Gives what is called when the first step is done: from then on to the end of the block, a stop waits for a step.

    Raises:
      Interrupted: a signal came when nothing asked for it any more.
    """
    try:
        yield _taking_steps.set
    finally:
        _taking_steps.clear()
    if _requested.is_set():
        raise Interrupted("stopped between two stages; the same command resumes")
