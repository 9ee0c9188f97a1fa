"""Runs the sides of a row in processes of their own, one step of each in turn, and compares what they took."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.throughput.work import Work

ROOT = Path(__file__).parents[2]
PHASES = ("data", "rollout", "reference", "update")


class Side(NamedTuple):
    """A side of a comparison.

    Attributes:
      title: in tables.
      module, arguments: what its process runs.
      package: what has to be installed for it; "" for nothing.
    """

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    package: str = ""


MODULES = "benchmarks.throughput"
OURS, _OURS = "ours", ("ours", "parts")  # our side of a comparison of steps; modules that run in our environment
SIDES = {
    OURS: Side("this project", "ours"),
    "trl": Side("TRL, float32", "trl_grpo", ("float32",), "trl"),
    "trl_bfloat16": Side("TRL, bfloat16", "trl_grpo", ("bfloat16",), "trl"),
    "trl_mixed": Side("TRL, parameters float32, products bfloat16", "trl_grpo", ("mixed",), "trl"),
    "omni": Side("torch loop, float32", "omni_loop", ("float32",), "transformers"),
    "omni_bfloat16": Side("torch loop, bfloat16", "omni_loop", ("bfloat16",), "transformers"),
    "encoder": Side("this project", "parts", ("encoder",)),
    "encoder_torch": Side("sentence-transformers", "parts_torch", ("encoder",), "sentence-transformers"),
    "media": Side("this project", "parts", ("media",)),
    "media_torch": Side("DataLoader, transformers' processor", "parts_torch", ("media",), "transformers"),
    "start": Side("second start", "parts", ("start",)),
    "start_cold": Side("first start", "parts", ("start", "cold")),
    "tunix": Side("Tunix, float32", "tunix_grpo", (), "google-tunix"),
}


class SideError(RuntimeError):
    """A side cannot go on; the message is one line."""


class Process:
    """The process of a side, ready for steps."""

    def __init__(self, name: str, directory: Path, python: str, arguments: Sequence[str] = ()):
        """Starts it, with what it is given besides, and waits until it is ready.

        Raises:
          SideError: it is not installed, or has ended.
        """
        side = SIDES[name]
        if side.package and not _installed(python, side.package):
            raise SideError(f"{side.package} is not installed: pip install -e '.[bench]'")
        self._log = (directory / f"{name}.log").open("w+")
        command = [python, "-m", f"{MODULES}.{side.module}", *side.arguments, *arguments]
        self._process = subprocess.Popen(
            command, cwd=directory, env=_environment(), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        try:
            self.about = self._answer()
        except SideError:
            self.close()
            raise

    def step(self) -> dict[str, Any]:
        """Takes a step: how long it and its phases took, and what is to be compared of it.

        "others" are the cores that anything else on the machine kept busy meanwhile, on average.

        Raises:
          SideError: the process has ended.
        """
        before = _busy_s() - _busy_s(self._process.pid)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        step = self._answer()
        return step | {"others": (_busy_s() - _busy_s(self._process.pid) - before) / step["seconds"]}

    def close(self) -> dict[str, Any]:
        """Ends the process; returns what it says at its end."""
        said = ""
        with contextlib.suppress(BrokenPipeError, ValueError):  # a pipe that is closed
            said, _ = self._process.communicate("stop\n")
        self._log.close()
        return json.loads(said) if said else {}

    def _answer(self) -> dict[str, Any]:
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        raise SideError(f"ended with status {status}: {lines[-1] if lines else 'it said nothing'}")


def prepare(work: Work, directory: Path) -> None:
    """Writes the work of a row into a directory.

    Raises:
      SideError: it cannot be made; the message is one line.
    """
    directory.mkdir(parents=True, exist_ok=True)
    work.save(directory)
    command = [sys.executable, "-m", "benchmarks.throughput.prepare"]
    made = subprocess.run(command, cwd=directory, env=_environment(), text=True, stderr=subprocess.PIPE)
    if made.returncode:
        raise SideError(f"the work cannot be prepared: {(made.stderr.strip().splitlines() or ['it said nothing'])[-1]}")


def compare(
    directory: Path, names: Sequence[str], python: str, rounds: int, in_turn: bool = True, traced: bool = False
) -> dict[str, Any]:
    """Takes steps of our side, the first, and the others in turn, `rounds` of each behind one that does not count.

    Without `in_turn`, one side behind the other: each has all of the accelerator's memory. With `traced`, our side
    leaves a trace of one more step in `directory`.

    Returns by side what `Process.about` says, and its "first_step", "steps", "peak_gb" and what was measured behind
    them ("end") or, where it could not go on, a "problem"; and "ratios" of medians, theirs over ours, with the lowest
    and the highest of single rounds, and of the fastest steps, which a busy machine disturbs least.
    """
    sides: dict[str, Any] = {}
    for together in [names] if in_turn else [[name] for name in names]:
        sides |= _run(together, directory, python, rounds, traced)
    whole = [name for name in names if "problem" not in sides[name]]
    ours = names[0]
    ratios = {name: _ratios(sides[ours]["steps"], sides[name]["steps"]) for name in whole if name != ours}
    return {"sides": sides, "ratios": ratios if ours in whole else {}}


def _run(names: Sequence[str], directory: Path, python: str, rounds: int, traced: bool) -> dict[str, Any]:
    sides: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name in names:
            try:
                module, trace = SIDES[name].module, ["trace"] * (name == OURS and traced)
                process = Process(name, directory, sys.executable if module in _OURS else python, trace)
                stack.callback(process.close)
                processes[name], sides[name] = process, {**process.about, "steps": []}
            except SideError as error:
                sides[name] = {"problem": str(error)}
        for number in range(1 + rounds):
            for name in list(processes):
                try:
                    step = processes[name].step()
                except SideError as error:
                    sides[name]["problem"] = str(error)
                    del processes[name]
                    continue
                print(f"  {SIDES[name].title}: {step['seconds']:.3f} s", file=sys.stderr, flush=True)
                sides[name]["peak_gb"] = step.pop("peak_bytes") / 1e9
                if number:
                    sides[name]["steps"].append(step)
                else:
                    sides[name]["first_step"] = step
        for name, process in processes.items():
            sides[name]["end"] = process.close()
    return sides


def _ratios(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> dict[str, Any]:
    single = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs)]
    ratios: dict[str, Any] = {"step": median(theirs, "seconds") / median(ours, "seconds")}
    ratios["step_range"] = [min(single), max(single)]
    ratios["fastest"] = min(step["seconds"] for step in theirs) / min(step["seconds"] for step in ours)
    for phase in PHASES[1:]:
        if own := median(ours, phase):
            ratios[phase] = median(theirs, phase) / own
    return ratios


def median(steps: Sequence[Mapping], what: str) -> float:
    """The median of the seconds of whole steps, or of a phase; 0 for a phase that they do not have."""
    return statistics.median(step["seconds"] if what == "seconds" else step["phases"].get(what, 0.0) for step in steps)


def _busy_s(process: int | None = None) -> float:
    """Core-seconds that a process, or the whole machine and what it lost to others beside it, has taken so far."""
    if process is None:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        ticks = user + nice + system + irq + softirq + steal
    else:
        ticks = sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _installed(python: str, package: str) -> bool:
    code = f"import importlib.metadata; importlib.metadata.version({package!r})"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | quiet | {"PYTHONPATH": path}
