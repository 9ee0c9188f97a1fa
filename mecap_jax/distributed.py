"""Several processes that are one run: how they find each other, and how they end together.

On TPU pods, under SLURM and under Open MPI, JAX finds the processes by itself; elsewhere three flags say where they
meet. Imported by the scripts that train or evaluate; entered before anything asks JAX for a device.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax
from absl import flags
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from mecap_jax.interruption import Interrupted

_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, where there are several.")
_COUNT = flags.DEFINE_integer("num_processes", None, "How many there are; 1: this one alone, whatever a cluster says.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")

_PATIENCE_S = 300  # the processes start within this time of each other
_SILENCE_S = 60  # a process that has not been heard of for so long is dead
_WORK_MS = 7 * 24 * 3600 * 1000  # the longest that one process works alone: a large corpus is made
_FAREWELL_S = 5  # what the others need to end by themselves, where all end for the same reason
_LOST = "error: another process of this run has ended or cannot be reached; its own output says why"
# What a connection says to one side when the other one has died.
_BROKEN = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "Socket closed")
_waits = itertools.count()


class PeerLostError(RuntimeError):
    """Another process of this run ended while this one waited for it."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Makes this process one of its run's for a block, where there are several; a single process is left alone.

    All leave the block together. A process that raises says why and ends at once, with a status that is not 0; the
    others, wherever they wait for it, say in one line that they have lost a process, and end likewise.

    Raises:
      SystemExit: the flags do not say enough.
    """
    if not _join():
        yield
        return
    try:
        yield
        multihost_utils.sync_global_devices("end")
    except BaseException as error:
        _end(error)
    jax.distributed.shutdown()


def first_process(action: Callable[[], object]) -> None:
    """Runs `action` on the first process only; the others wait until it is done, however long that takes.

    They wait at the service that connects them, which gives up on a process that is dead. A collective operation also
    gives up on one that is busy: on CPUs after half an hour, less than it takes to make a large corpus.

    Raises:
      PeerLostError: another process has ended.
    """
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        try:
            global_state.client.wait_at_barrier(f"first-process-{next(_waits)}", _WORK_MS)
        except jax.errors.JaxRuntimeError as error:
            raise PeerLostError(str(error)) from error


def _join() -> bool:
    """Joins the other processes; False where there are none."""
    given = (_COORDINATOR.value, _COUNT.value, _INDEX.value)
    if _COUNT.value == 1:
        return False
    if None in given and any(value is not None for value in given):
        sys.exit("error: --coordinator_address, --num_processes and --process_id belong together")
    # All processes agree on a stop in `training.loop`; this service would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    restore = _explain_aborts()
    try:
        jax.distributed.initialize(*given, initialization_timeout=_PATIENCE_S, heartbeat_timeout_seconds=_SILENCE_S)
        several = jax.process_count() > 1
    except ValueError as error:
        several = "should be defined" not in str(error)  # without flags: JAX has found no cluster
        if several:
            sys.exit(f"error: --coordinator_address, --num_processes, --process_id: {error}")
    if not several:
        restore()
    return several


def _end(error: BaseException) -> None:
    """Says what happened and ends this process, without the usual farewell: it would wait for the others."""
    status = 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    elif isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    elif isinstance(error, Interrupted):
        print(error, file=sys.stderr)
        status = Interrupted.STATUS
    elif isinstance(error, PeerLostError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in _BROKEN)
    ):
        os.write(2, f"{_LOST}\n".encode())
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_FAREWELL_S)  # the service that connects all ends with this process
    os._exit(status)


# A process that has lost another is ended by JAX's runtime, from within C++, with a stack trace. Its messages go to the
# file descriptor of stderr, Python's own to `sys.stderr`: what comes from the descriptor passes through here.
_FILTER = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
lost, said, ending = sys.argv[1].encode() + b"\\n", False, False
for line in sys.stdin.buffer:
    if not said and (line == lost or b"distributed service detected fatal errors" in line):
        sys.stderr.buffer.write(lost)
        said = ending = True
    ending = ending or b"coordination_service" in line
    if not ending:
        sys.stderr.buffer.write(line)
    sys.stderr.flush()
"""


def _explain_aborts() -> Callable[[], None]:
    """From now on an abort by JAX's runtime is one line on stderr; returns what takes that back."""
    python, descriptor = sys.stderr, os.dup(2)
    python.flush()
    sys.stderr = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _FILTER, _LOST], stdin=subprocess.PIPE)
    os.dup2(process.stdin.fileno(), 2)

    def restore() -> None:
        os.dup2(descriptor, 2)
        sys.stderr.close()
        sys.stderr = python
        process.communicate()

    return restore
