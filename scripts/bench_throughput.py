"""Steps of GRPO in this trainer and in others, on the same work, in one run.

  python scripts/bench_throughput.py [--quick] [--rows=text,tunix,image,embeddings,clips]
  python scripts/bench_throughput.py --sweep=prompt_tokens

Weights, prompts, group, completion length (forced), loss, reference policy and optimiser are the same on all sides.
Each has a process of its own; while one takes a step, the others wait. The directory `--output` gets a JSON file a row,
with every setting of every side and all steps, and the tables of all rows that are there. A sweep draws curves, and
goes on where it was left; results that are there are kept. The other trainers come with `pip install '.[bench]'`, best
in an environment of their own, whose Python is `--peers`; a row that lacks one says so, and the others are measured.
"""

import dataclasses
import datetime
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
from benchmarks.throughput.rounds import compare, prepare
from benchmarks.throughput.tables import machine, table
from benchmarks.throughput.work import Work
from mecap_jax.command_line import local_paths, run
from mecap_jax.json_files import read_json_object, write_json

# By row: its work, and whom we are compared with.
ROWS = {
    "text": (Work("text"), ("trl", "trl_bfloat16")),
    "tunix": (Work("text"), ("tunix",)),
    "image": (Work("image", prompt_tokens=256), ("trl", "trl_bfloat16")),
    "embeddings": (Work("embeddings", prompt_tokens=256), ("trl", "trl_bfloat16")),
    "clips": (Work("clips", prompt_tokens=256), ("omni", "omni_bfloat16")),
}
SWEEPS = {
    "prompt_tokens": (256, 512, 1024, 2048, 4096),
    "group": (2, 4, 8, 16, 32),
    "completion_tokens": (8, 16, 32, 64, 128),
}
_QUICK_WORK = {"group": 4, "prompt_tokens": 128, "completion_tokens": 16}

_ROWS = flags.DEFINE_list("rows", list(ROWS), f"Rows of the comparison, of {', '.join(ROWS)}.")
_OUTPUT = flags.DEFINE_string("output", "runs/throughput", "Directory of the results.")
_PEERS = flags.DEFINE_string("peers", sys.executable, "Python in which the other trainers are installed.")
_QUICK = flags.DEFINE_bool("quick", False, "Shorter prompts and one round: whether it runs, not how fast it is.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Steps of each side that count.", lower_bound=1)
_SWEEP = flags.DEFINE_enum("sweep", None, list(SWEEPS), "Instead of the rows: text, with this at several values.")
local_paths("output", "peers")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if unknown := set(_ROWS.value) - set(ROWS):
        raise app.UsageError(f"--rows: {sorted(unknown)[0]!r} is none of {', '.join(ROWS)}")
    if not Path(_PEERS.value).is_file():
        sys.exit(f"error: --peers: no such file: {_PEERS.value}")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    if _SWEEP.value:
        _sweep(_SWEEP.value, output)
        return
    for row in _ROWS.value:
        work, others = ROWS[row]
        work = dataclasses.replace(work, **_QUICK_WORK) if _QUICK.value else work
        write_json(output / f"{row}.json", {"row": row, **_measure(work, others, 1 if _QUICK.value else _ROUNDS.value)})
    results = [read_json_object(output / f"{row}.json") for row in ROWS if (output / f"{row}.json").is_file()]
    _show("\n\n".join(map(table, results)), output / "tables.md")


def _sweep(dimension: str, output: Path) -> None:
    results = []
    for value in SWEEPS[dimension]:
        path = output / f"{dimension}-{value}.json"
        if not path.is_file():
            write_json(path, _measure(dataclasses.replace(Work("text"), **{dimension: value}), ("trl",), 1))
        results.append(read_json_object(path))
    plot_sweep(results, dimension, output / f"{dimension}.png")
    _show(sweep_table(results, dimension), output / f"{dimension}.md")


def _measure(work: Work, others: Sequence[str], rounds: int) -> dict[str, Any]:
    print(work, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="throughput-") as directory:
        prepare(work, Path(directory))
        result = compare(Path(directory), others, str(Path(_PEERS.value).absolute()), rounds)
    return {"work": vars(work), "date": f"{datetime.date.today()}", "machine": machine(), **result}


def _show(text: str, path: Path) -> None:
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    run(main)
