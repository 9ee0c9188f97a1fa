"""The results of a recipe over several seeds, with every row of comparison, written into `docs/reproduction.md`.

  python scripts/reproduce.py [--seeds=0,1,2] [--root=runs/reproduce]
  python scripts/reproduce.py --config=configs/erv.py --root=runs/erv [--rows=reward_off] [--others=DIR]

Each seed is a run of its own, `ROOT/seed-N`; what is finished is not done again. How many steps of SFT fit into the
time of the main stage is measured in the first seed and holds for all. Tables of captions go into the section "results"
of the document and of `README.md`, those of another recipe into the section of its name, or of `--section` (where
`--change` makes another experiment of it, say).
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.config import Config, ConfigError, load
from mecap_jax.evaluation.reproduction import (
    claims_table,
    replace_section,
    seed_tables,
    seeds_tables,
    summary_table,
)
from mecap_jax.evaluation.tables import results_table
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.experiment.story import CONTROL, evaluated_again
from mecap_jax.json_files import read_json_object
from mecap_jax.text_files import error_message
from mecap_jax.training.logging import RunLogger

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training runs.")
_ROOT = flags.DEFINE_string("root", "runs/reproduce", "Directory of the runs.")
_CONFIG = flags.DEFINE_string("config", "configs/grpo.py", "Recipe.")
_CHANGES = flags.DEFINE_multi_string("change", [], "KEY=VALUE of the recipe's configuration; can be repeated.")
_ROWS = flags.DEFINE_list("rows", None, "Rows of comparison; by default all that the recipe offers.")
_OTHERS = flags.DEFINE_list("others", [], "Directories of further clips that every stage is evaluated on.")
_SECTION = flags.DEFINE_string("section", None, "Section of the document that tables of recognition go into.")
_PROJECT = Path(__file__).parents[1]
_DOCUMENT = "docs/reproduction.md"
local_paths("root", "others")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        _reproduce()
    except USER_ERRORS as error:
        sys.exit(error_message(error))


def _reproduce() -> None:
    settings = [*_CHANGES.value, *_evaluation(load(_CONFIG.value, _CHANGES.value))]
    captions = load(_CONFIG.value, settings).task.name == "captioning"
    section = "results" if captions else _SECTION.value or Path(_CONFIG.value.partition(":")[0]).stem
    documents = [_PROJECT / name for name in ((_DOCUMENT, "README.md") if captions else (_DOCUMENT,))]
    for document in documents:
        _replace(document, section, None)  # before hours of training, not after
    workdirs = [Path(_ROOT.value) / f"seed-{int(seed)}" for seed in _SEEDS.value]
    for seed, workdir in zip(_SEEDS.value, workdirs):
        _train(int(seed), settings, workdir, workdirs[0] / CONTROL)
    reports = [_report(workdir, int(seed), settings) for seed, workdir in zip(_SEEDS.value, workdirs)]
    if captions:
        claims = claims_table(reports)
        texts = [f"{claims}\n{results_table(reports)}\n{seed_tables(reports)}", f"{summary_table(reports)}\n{claims}"]
    else:
        with RunLogger(None) as logger:
            seeds = [evaluated_again(workdir, logger)[1] for workdir in workdirs]
        texts = [seeds_tables(reports, [{"": found.results} | found.others for found in seeds])]
    for document, text in zip(documents, texts):
        _replace(document, section, text)
        print(f"written: {document}")


def _evaluation(config: Config) -> list[str]:
    """What is trained and evaluated beside the recipe's main stages, as `key=value`."""
    rows = [row.name for row in config.rows] if _ROWS.value is None else _ROWS.value
    lists = {"evaluation.rows": rows, "evaluation.others": _OTHERS.value}
    return [f"{key}={','.join(values)}" for key, values in lists.items() if values]


def _train(seed: int, settings: list[str], workdir: Path, control: Path) -> None:
    if (workdir / "report.json").exists():
        return
    if control.exists() and not (workdir / CONTROL).exists():
        workdir.mkdir(parents=True, exist_ok=True)
        shutil.copy(control, workdir / CONTROL)
    command = [sys.executable, str(_PROJECT / "scripts" / "train.py"), f"--config={_CONFIG.value}"]
    options = [f"--workdir={workdir}", *(f"--config.{item}" for item in [f"seed={seed}", *settings])]
    code = subprocess.run([*command, *options]).returncode
    if code or not (workdir / "report.json").exists():
        sys.exit(f"seed {seed} did not finish; the same command goes on where it stopped")


def _report(workdir: Path, seed: int, settings: list[str]) -> dict[str, Any]:
    """The report of a seed's run.

    Raises:
      ConfigError: it is the report of another seed, or of another recipe.
    """
    report = read_json_object(workdir / "report.json")
    found = (report["config"]["name"], report["seed"])
    if found != (wanted := (load(_CONFIG.value, settings).name, seed)):
        raise ConfigError(
            f"{workdir} holds a run of {found[0]!r} with seed {found[1]}, not of {wanted[0]!r} with seed {wanted[1]}: "
            "choose another --root"
        )
    return report


def _replace(document: Path, section: str, text: str | None) -> None:
    """Puts `text` into a section of a document, or, without it, only looks whether the section is there."""
    try:
        whole = replace_section(document.read_text(encoding="utf-8"), section, text or "")
    except ValueError as error:
        sys.exit(f"error: {document}: {error}")
    if text is not None:
        document.write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    run(main)
