"""Runs that are killed anywhere end like one that is not: `python tests/stress/kills.py --kills=200 --seed=1`

A miniature run of each kind (media read in threads; by a reader process, with towers cached) goes through
`scripts/train.py` unbroken. Others of its kind get SIGKILL, with all their children, at random moments of random
phases, and are started again until they end; then parameters, logs and evaluation are compared with the unbroken run's.
A table says how many kills hit each phase. The exit status is 1 where a run did not go on or ended otherwise.
"""

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

sys.path.insert(0, str(Path(__file__).parents[2]))

from mecap_jax.models.checkpoints.table import flatten
from mecap_jax.training.logging import read_jsonl
from tests.experiment.test_story import SMALL
from tests.xla_flags import xla_flags

ROOT = Path(__file__).parents[2]
# Where a process can be, in order. "start" is imports, and opening what is there.
PHASES = ("start", "corpus", "towers", "sft", "saving sft", "grpo", "saving grpo", "evaluation")
STEPS = 4
OPTIONS = (
    *SMALL,
    "data.synthetic.clips=40",
    f"sft.steps={STEPS}",
    f"grpo.steps={STEPS}",
    "grpo.prompts=4",
    "checkpoint.every=1",
    "evaluation.rows=()",
    "evaluation.ablation=False",
)
KINDS = {
    "plain": (),
    "cached": (
        "data.workers=1",
        "data.tower_cache=True",
        "data.augment={'modality_dropout': 0.5}",
        r"trainable=language_model\..*",
    ),
}
MOST_KILLS = 8  # of one run
HANG = 300  # seconds without an end
POLL = 0.004  # seconds


class Run:
    """A run in a directory of its own, `corpus` and all."""

    def __init__(self, directory: Path, kind: str):
        directory.mkdir(parents=True)
        self.directory, self.workdir = directory, directory / "run"
        self._log, self._began = directory / "log.txt", 0.0
        self._command = [sys.executable, f"{ROOT}/scripts/train.py", f"--config={ROOT}/configs/grpo.py"]
        self._command += [f"--workdir={self.workdir}", *(f"--config.{item}" for item in OPTIONS + KINDS[kind])]

    @contextlib.contextmanager
    def process(self):
        """The command, started in a process group of its own; nothing of that is left afterwards."""
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices=1, exact=True), "PYTHONPATH": str(ROOT)}
        self._began = time.time()
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                self._command,
                env=os.environ | flags,
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def phase(self) -> str:
        """Where the process is, from what it has said and written."""
        said = self.said()
        if "grpo is done" in said:
            return "evaluation"
        for stage, begins in (("grpo", "sft is done"), ("sft", "from here on this machine")):
            if begins in said:
                saving = any((self.workdir / "checkpoints" / stage).glob("*.orbax-checkpoint-tmp*"))
                return f"saving {stage}" if saving else stage
        for phase, lock in (("towers", ".towers-*.lock"), ("corpus", ".synthetic-*.lock")):
            if any(path.stat().st_mtime >= self._began for path in (self.directory / "cache").glob(lock)):
                return phase
        return "start"

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def result(self) -> dict[str, object]:
        """What has to be the same whenever it was killed: file names, parameters and states, logs, evaluation."""
        report = json.loads((self.workdir / "report.json").read_text())
        found = {key: report[key] for key in ("data", "eval", "confidence")}
        found["files"] = sorted(path.name for path in self.workdir.iterdir())
        found["cache"] = sorted(path.name for path in (self.directory / "cache").iterdir() if path.suffix != ".lock")
        for name in ("metrics", "completions"):  # without times
            rows, of_the_clock = read_jsonl(self.workdir / f"{name}.jsonl"), ("time", "timing_s", "perf")
            found[name] = [{k: v for k, v in row.items() if not k.startswith(of_the_clock)} for row in rows]
        for path in (self.workdir / "evaluations").iterdir():
            found[path.name] = path.read_text()
        for stage in ("sft", "grpo"):
            steps = self.workdir / "checkpoints" / stage
            found[f"{stage} steps"] = sorted(path.name for path in steps.iterdir())
            path = steps / max(found[f"{stage} steps"], key=int)
            found[f"{stage} iterator"] = (path / "iterator.json").read_text()
            for part, tree in ocp.load_checkpointables(path).items():
                for name, leaf in flatten(jax.device_get(tree)).items():
                    leaf = np.asarray(leaf)
                    found[f"{stage} {part}.{name}"] = (str(leaf.dtype), leaf.shape, leaf.tobytes())
        return found


def finish(run: Run) -> dict[str, float]:
    """Lets the run end; returns how long, in seconds, it was in each phase.

    Raises:
      AssertionError: it failed or hangs.
    """
    seconds, last = collections.Counter(), time.monotonic()
    with run.process() as process:
        began = last
        while (status := process.poll()) is None:
            time.sleep(POLL)
            now = time.monotonic()
            seconds[run.phase()] += now - last
            last = now
            assert now - began < HANG, f"hangs: {run.said()[-500:]}"
    assert status == 0, f"exit status {status}: {run.said()[-1500:]}"
    return dict(seconds)


def kill_in(run: Run, wanted: str, delay: float) -> str | None:
    """Starts the run and kills it `delay` seconds after it gets to a phase, or past it; returns where it was.

    Where it ended before that, None is returned.

    Raises:
      AssertionError: it failed or hangs.
    """
    with run.process() as process:
        began = time.monotonic()
        while process.poll() is None and PHASES.index(run.phase()) < PHASES.index(wanted):
            time.sleep(POLL)
            assert time.monotonic() - began < HANG, f"hangs: {run.said()[-500:]}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        where = run.phase()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            return where
        assert process.returncode == 0, f"exit status {process.returncode}: {run.said()[-1500:]}"
    return None


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """What differs between two results, by name."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "Sharding info not provided")  # there is one device
    with tempfile.TemporaryDirectory(prefix="mecap-kills-") as root:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{root}/jax")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        return stress(Path(root), arguments.kills, np.random.default_rng(arguments.seed))


def stress(root: Path, kills: int, random: np.random.Generator) -> int:
    """Kills and compares until there were so many kills; returns 1 where there was a fault."""
    unbroken, seconds = {}, {}
    for kind in KINDS:
        run = Run(root / kind, kind)
        seconds[kind] = finish(run)
        unbroken[kind] = run.result()
        print(f"{kind}, unbroken: " + ", ".join(f"{k} {v:.1f} s" for k, v in seconds[kind].items()), flush=True)
    counts, resumed, faults = collections.Counter(), collections.Counter(), collections.Counter()
    number = 0
    while counts.total() < kills and number < kills:
        kind = list(KINDS)[number % len(KINDS)]
        run, hit = Run(root / str(number), kind), []
        try:
            # In order: a run that is past a phase does not come back to it.
            phases = random.choice([*seconds[kind]], min(MOST_KILLS, kills - counts.total()))
            for wanted in sorted(map(str, phases), key=PHASES.index):
                saves = STEPS if wanted.startswith("saving") else 1
                where = kill_in(run, wanted, random.uniform(0, seconds[kind][wanted] / saves))
                if where is None:
                    break
                hit.append(where)
                counts[where] += 1
            finish(run)
            wrong = differences(run.result(), unbroken[kind])
            assert not wrong, f"differs: {', '.join(wrong[:8])}"
            resumed.update(hit)
            print(f"run {number}, {kind}: killed in {', '.join(hit)}: the same", flush=True)
        except (AssertionError, OSError, ValueError) as error:
            faults.update(hit[-1:] or PHASES[:1])
            print(f"fault: run {number}, {kind}, killed in {', '.join(hit)}: {error}", flush=True)
        shutil.rmtree(run.directory)
        number += 1
    print("phase: kills, resumed, faults")
    for phase in PHASES:
        print(f"{phase}: {counts[phase]}, {resumed[phase]}, {faults[phase]}")
    return int(faults.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
