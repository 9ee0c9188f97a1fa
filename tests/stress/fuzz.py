"""The fuzz tests at length: `python tests/stress/fuzz.py --count=20000 --seed=1 [--only=media]`

Every target takes its share of the count. A line for each says how many damaged inputs it read and refused, how long
the slowest took and how far memory has grown, that of worker processes included. A fault is an error that nobody
foresaw, an input that takes more than 5 s (run it alone), and memory that grows by more than 2 GB; faults are named by
target and number, which `--seed` gives again. The exit status is 1 where there are any. A hang ends the process with a
traceback.
"""

import argparse
import contextlib
import faulthandler
import functools
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.data import test_media_fuzz, test_shards_fuzz
from tests.data.importers import test_corpora
from tests.fuzz import mutant
from tests.models import test_strangers_fuzz

SLOW = 5  # seconds: a fault
HANG = 60  # seconds: the end
LARGEST = 2048  # MiB that memory may grow by


def targets(root: Path) -> dict[str, Callable[[np.random.Generator], bool]]:
    """What damages one input with a source of randomness and tries it, by name."""
    clips = test_media_fuzz.originals()
    workplace = test_shards_fuzz.Workplace(root / "shards")
    strangers = test_strangers_fuzz.Workplace(root / "models")
    media = {
        f"media/{name}": lambda r, clip=clip: test_media_fuzz.examine(mutant(clip, r)) for name, clip in clips.items()
    }
    shards = {f"shards/{name}": getattr(workplace, name) for name in test_shards_fuzz.TARGETS}
    models = {f"models/{case}": functools.partial(strangers.damage, case) for case in test_strangers_fuzz.CASES}
    corpora = {
        f"corpora/{name}": lambda r, name=name: test_corpora.damage_and_read(name, root / "corpora" / name, r)
        for name in test_corpora.LAYOUTS
    }
    return media | shards | models | corpora


def stress(name: str, examine: Callable[[np.random.Generator], bool], count: int, seed: int) -> int:
    """Examines `count` damaged inputs; returns how many faults there were."""
    read, faults, slow, slowest, before = 0, 0, 0, 0.0, peak_memory()
    for number in range(count):
        faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
        begin = time.monotonic()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                read += examine(np.random.default_rng((seed, number)))
        except BaseException as error:  # whatever it is, the next one is tried
            if isinstance(error, KeyboardInterrupt):
                raise
            faults += 1
            print(f"fault: {name} {number}: {type(error).__name__}: {error}", flush=True)
        seconds = time.monotonic() - begin
        slowest = max(slowest, seconds)
        if seconds > SLOW:
            slow += 1
            print(f"fault: {name} {number}: {seconds:.1f} s", flush=True)
    faulthandler.cancel_dump_traceback_later()
    grown = peak_memory() - before
    if grown > LARGEST:
        slow += 1
        print(f"fault: {name}: memory grew by {grown} MiB", flush=True)
    refused = count - read - faults
    print(
        f"{name}: {count} damaged, {read} read, {refused} refused, {faults} errors, {slowest:.2f} s, {grown} MiB more",
        flush=True,
    )
    return faults + slow


def peak_memory() -> int:
    """The most that this process and any of its children have held, MiB."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="damaged inputs, over all targets")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="targets whose name begins so")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        chosen = {name: examine for name, examine in targets(Path(root)).items() if name.startswith(arguments.only)}
        share = -(-arguments.count // max(len(chosen), 1))
        return int(sum(stress(name, examine, share, arguments.seed) for name, examine in chosen.items()) > 0)


if __name__ == "__main__":
    sys.exit(main())
