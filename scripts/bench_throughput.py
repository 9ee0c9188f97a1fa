"""Steps of GRPO in this trainer and in others, on the same work, in one run.

  python scripts/bench_throughput.py [--quick] [--rows=text,tunix,image,embeddings,clips]
  python scripts/bench_throughput.py --sweep=prompt_tokens
  python scripts/bench_throughput.py --platform=gpu [--rows=0.5b,3b] [--trace]

Weights, prompts, group, completion length (forced), loss, reference policy and optimiser are the same on all sides.
Each has a process of its own; while one takes a step, the others wait. On a GPU each has the card to itself, one side
behind the other, and works in bfloat16; `XLA_FLAGS` of the environment hold for ours. The directory `--output` gets a
JSON file a row, with every setting of every side and all steps, and the tables of all rows that are there. A sweep
draws curves, and goes on where it was left; results that are there are kept. The other trainers come with `pip install
'.[bench]'`, best in an environment of their own, whose Python is `--peers`; a row that lacks one says so, and the
others are measured.
"""

import dataclasses
import datetime
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.throughput.curves import plot_sweep, sweep_table
from benchmarks.throughput.rounds import SideError, compare, prepare
from benchmarks.throughput.tables import machine, table
from benchmarks.throughput.work import Work
from mecap_jax.command_line import local_paths, run
from mecap_jax.json_files import read_json_object, write_json

# By row: its work, and the sides of the comparison, ours first.
ROWS = {
    "text": (Work("text"), ("ours", "trl", "trl_bfloat16")),
    "tunix": (Work("text"), ("ours", "tunix")),
    "image": (Work("image", prompt_tokens=256), ("ours", "trl", "trl_bfloat16")),
    "embeddings": (Work("embeddings", prompt_tokens=256), ("ours", "trl", "trl_bfloat16")),
    "clips": (Work("clips", prompt_tokens=256), ("ours", "omni", "omni_bfloat16")),
    "encoder": (Work("encoder", prompts=64, batches=8), ("encoder", "encoder_torch")),
    "media": (Work("media", prompts=3, batches=4), ("media", "media_torch")),
    "start": (Work("start"), ("start", "start_cold")),
}
PARTS = ("encoder", "media", "start")  # of the work: they have one size
_GPU = Work("embeddings", prompts=4, prompt_tokens=1024, completion_tokens=64, dtype="bfloat16")
_GPU_SIDES = ("ours", "trl_mixed", "trl_bfloat16")
GPU_ROWS = {
    "0.5b": (dataclasses.replace(_GPU, size="0.5b"), _GPU_SIDES),
    "3b": (dataclasses.replace(_GPU, size="3b", accumulate=2), _GPU_SIDES),
}
SWEEPS = {
    "prompt_tokens": (256, 512, 1024, 2048, 4096),
    "group": (2, 4, 8, 16, 32),
    "completion_tokens": (8, 16, 32, 64, 128),
}
# For the processes of all sides: what they run on, and of a card's memory nearly all for the one that has it.
_ENVIRONMENT = {
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    "gpu": {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"},
}
_QUICK_WORK = {"group": 4, "prompt_tokens": 128, "completion_tokens": 16}

_PLATFORM = flags.DEFINE_enum("platform", "cpu", ["cpu", "gpu"], "What all sides run on.")
_ROWS = flags.DEFINE_list(
    "rows",
    None,
    f"Rows of the comparison, of {', '.join(ROWS)}; on a GPU of {', '.join(GPU_ROWS)}. Default: all; with --quick "
    "without start, which takes minutes.",
)
_OUTPUT = flags.DEFINE_string("output", "runs/throughput", "Directory of the results.")
_PEERS = flags.DEFINE_string("peers", sys.executable, "Python in which the other trainers are installed.")
_QUICK = flags.DEFINE_bool("quick", False, "Shorter prompts and one round: whether it runs, not how fast it is.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Steps of each side that count.", lower_bound=1)
_ALONE = flags.DEFINE_bool("alone", False, "Measures our side only.")
_TRACE = flags.DEFINE_bool("trace", False, "Leaves a trace of one of our steps, for Perfetto, beside the results.")
_SWEEP = flags.DEFINE_enum("sweep", None, list(SWEEPS), "Instead of the rows: text, with this at several values.")
local_paths("output", "peers")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    rows = GPU_ROWS if _PLATFORM.value == "gpu" else ROWS
    if _SWEEP.value and _PLATFORM.value == "gpu":
        raise app.UsageError("--sweep: there is none on a GPU")
    if unknown := set(_ROWS.value or ()) - set(rows):
        raise app.UsageError(f"--rows: {sorted(unknown)[0]!r} is none of {', '.join(rows)}")
    if not Path(_PEERS.value).is_file():
        sys.exit(f"error: --peers: no such file: {_PEERS.value}")
    os.environ.update(_ENVIRONMENT[_PLATFORM.value])
    if _PLATFORM.value == "gpu":  # every side has one card
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    if _SWEEP.value:
        _sweep(_SWEEP.value, output)
        return
    for row in _ROWS.value or [row for row in rows if row != "start" or not _QUICK.value]:
        work, sides = rows[row]
        if _QUICK.value and row not in PARTS:
            work = dataclasses.replace(work, **_QUICK_WORK)
        result = _measure(
            work, sides[:1] if _ALONE.value else sides, 1 if _QUICK.value else _ROUNDS.value, output / row
        )
        write_json(output / f"{row}.json", {"row": row, **result})
    results = [read_json_object(output / f"{row}.json") for row in rows if (output / f"{row}.json").is_file()]
    _show("\n\n".join(map(table, results)), output / "tables.md")


def _sweep(dimension: str, output: Path) -> None:
    results = []
    for value in SWEEPS[dimension]:
        name = f"{dimension}-{value}"
        path = output / f"{name}.json"
        if not path.is_file():
            work = dataclasses.replace(Work("text"), **{dimension: value})
            write_json(path, _measure(work, ("ours", "trl"), 1, output / name))
        results.append(read_json_object(path))
    plot_sweep(results, dimension, output / f"{dimension}.png")
    _show(sweep_table(results, dimension), output / f"{dimension}.md")


def _measure(work: Work, sides: Sequence[str], rounds: int, left: Path) -> dict[str, Any]:
    """Compares; what the sides said, and a trace, go into the directory `left`."""
    print(work, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="throughput-") as directory:
        try:
            prepare(work, Path(directory))
        except SideError as error:
            sys.exit(f"error: {error}")
        python = str(Path(_PEERS.value).absolute())
        result = compare(Path(directory), sides, python, rounds, _PLATFORM.value == "cpu", _TRACE.value)
        left.mkdir(exist_ok=True)
        for log in Path(directory).glob("*.log"):
            shutil.copy(log, left)
        if (trace := Path(directory) / "trace").is_dir():
            shutil.copytree(trace, left / "trace", dirs_exist_ok=True)
    return {"work": vars(work), "date": f"{datetime.date.today()}", "machine": machine(), **result}


def _show(text: str, path: Path) -> None:
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(main)
