"""The results table: every row, three seeds, intervals; written into `docs/reproduction.md` and `README.md`.

  python scripts/reproduce.py [--seeds=0,1,2] [--root=runs/reproduce]

Each seed is a run of its own, `ROOT/seed-N`; what is finished is not done again. How many steps of SFT fit into the
time of Emo-GRPO is measured in the first seed and holds for all.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from mecap_jax.config import load
from mecap_jax.evaluation.reproduction import claims_table, replace_section, seed_tables, summary_table
from mecap_jax.evaluation.tables import results_table
from mecap_jax.experiment.story import CONTROL
from mecap_jax.json_files import read_json_object

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training runs.")
_ROOT = flags.DEFINE_string("root", "runs/reproduce", "Directory of the runs.")
_CONFIG = flags.DEFINE_string("config", "configs/grpo.py", "Recipe.")
_PROJECT = Path(__file__).parents[1]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    config = load(_CONFIG.value)
    if config.task.name != "captioning":
        raise app.UsageError(f"--config: the tables are of captions, and {_CONFIG.value} is of {config.task.name}")
    reports = []
    workdirs = [Path(_ROOT.value) / f"seed-{int(seed)}" for seed in _SEEDS.value]
    for seed, workdir in zip(_SEEDS.value, workdirs):
        if not (workdir / "report.json").exists():
            control = workdirs[0] / CONTROL
            if control.exists() and not (workdir / CONTROL).exists():
                workdir.mkdir(parents=True, exist_ok=True)
                shutil.copy(control, workdir / CONTROL)
            command = [sys.executable, str(_PROJECT / "scripts" / "train.py"), f"--config={_CONFIG.value}"]
            rows = ",".join(row.name for row in config.rows)
            options = [f"--workdir={workdir}", f"--config.seed={int(seed)}", f"--config.evaluation.rows={rows}"]
            code = subprocess.run([*command, *options]).returncode
            if code or not (workdir / "report.json").exists():
                sys.exit(f"seed {seed} did not finish; the same command goes on where it stopped")
        reports.append(read_json_object(workdir / "report.json"))
    for name, text in (
        ("docs/reproduction.md", f"{claims_table(reports)}\n{results_table(reports)}\n{seed_tables(reports)}"),
        ("README.md", f"{summary_table(reports)}\n{claims_table(reports)}"),
    ):
        path = _PROJECT / name
        path.write_text(replace_section(path.read_text(encoding="utf-8"), "results", text), encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    app.run(main)
