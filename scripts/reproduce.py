"""The results of a recipe over several seeds, with every row of comparison, written into `docs/reproduction.md`.

  python scripts/reproduce.py [--seeds=0,1,2,3,4] [--root=runs/reproduce]
  python scripts/reproduce.py --config=configs/erv.py --root=runs/erv [--rows=reward_off] [--others=DIR]

Each seed is a run of its own, `ROOT/seed-N`; what is finished is not done again (with further `--rows` it goes on with
those), and refused where it is something else. How many steps of SFT fit into the time of the main stage is measured in
the first seed and holds for all. The tables of `configs/grpo.py` go into the section "results" of the document and of
`README.md`, those of another recipe into the section of its name. A recipe with `--change` or an argument is another
experiment: its tables go into the section of the document that `--section` names.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.config import Config, ConfigError, load
from mecap_jax.evaluation.reproduction import (
    MAIN_SECTION,
    claims_table,
    replace_section,
    section_of,
    seed_tables,
    seeds_tables,
    summary_table,
)
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.experiment.story import CONTROL, evaluated_again
from mecap_jax.experiment.weights import CONFIG_FILE, read_report
from mecap_jax.experiment.workdir import check_finished, check_same, is_claimed
from mecap_jax.json_files import read_json_object
from mecap_jax.text_files import error_message
from mecap_jax.training.logging import RunLogger

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of the training runs.")
_ROOT = flags.DEFINE_string("root", "runs/reproduce", "Directory of the runs.")
_CONFIG = flags.DEFINE_string("config", "configs/grpo.py", "Recipe.")
_CHANGES = flags.DEFINE_multi_string("change", [], "KEY=VALUE of the recipe's configuration; can be repeated.")
_ROWS = flags.DEFINE_list("rows", None, "Rows of comparison; by default all that the recipe offers.")
_OTHERS = flags.DEFINE_list("others", [], "Directories of further clips that every stage is evaluated on.")
_SECTION = flags.DEFINE_string("section", None, "Section of the document that the tables go into.")
_PROJECT = Path(__file__).parents[1]
_DOCUMENT = "docs/reproduction.md"
_NEEDED = {"seed", "eval", "confidence", "ablation", "intervals", "data", "test", "made"}  # of a report
local_paths("root", "others")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        _reproduce()
    except (*USER_ERRORS, OSError, ValueError) as error:
        sys.exit(error_message(error))


def _reproduce() -> None:
    settings = [*_CHANGES.value, *_evaluation(load(_CONFIG.value, _CHANGES.value))]
    seeds = _seeds()
    asked = {seed: load(_CONFIG.value, [f"seed={seed}", *settings]) for seed in seeds}
    section = _section()
    documents = [_PROJECT / name for name in ((_DOCUMENT, "README.md") if section == MAIN_SECTION else (_DOCUMENT,))]
    workdirs = {seed: Path(_ROOT.value) / f"seed-{seed}" for seed in seeds}
    # Before hours of training, not after.
    for document in documents:
        _replace(document, section, None)
    for seed, workdir in workdirs.items():
        _check(workdir, asked[seed])
    for seed, workdir in workdirs.items():
        _train(asked[seed], settings, workdir, workdirs[seeds[0]] / CONTROL)
    reports = [_report(workdir) for workdir in workdirs.values()]
    with RunLogger(None) as logger:
        found = [evaluated_again(workdir, logger)[1] for workdir in workdirs.values()]
    ablation = [of_seed.ablation for of_seed in found]
    tables = seeds_tables(reports, [{"": of_seed.results} | of_seed.others for of_seed in found], ablation)
    texts = [tables]
    if section == MAIN_SECTION:
        claims = claims_table(reports, [of_seed.results for of_seed in found], ablation)
        texts = [f"{tables}\n{seed_tables(reports)}", f"{summary_table(reports)}\n{claims}"]
    for document, text in zip(documents, texts):
        _replace(document, section, text)
        print(f"written: {document}")


def _seeds() -> list[int]:
    try:
        seeds = [int(seed) for seed in _SEEDS.value]
    except ValueError as error:
        raise ConfigError(f"--seeds: {error}") from error
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: {','.join(_SEEDS.value)} must be one or more different numbers")
    return seeds


def _section() -> str:
    """The section that the tables go into. Raises as `section_of`."""
    recipe, _, argument = _CONFIG.value.partition(":")
    is_main = Path(recipe).resolve() == (_PROJECT / "configs" / "grpo.py").resolve()
    changes = [*_CHANGES.value, *([f"the argument {argument}"] if argument else [])]
    return section_of(MAIN_SECTION if is_main else Path(recipe).stem, changes, _SECTION.value)


def _evaluation(config: Config) -> list[str]:
    """What is trained and evaluated beside the recipe's main stages, as `key=value`."""
    rows = [row.name for row in config.rows] if _ROWS.value is None else _ROWS.value
    lists = {"evaluation.rows": rows, "evaluation.others": _OTHERS.value}
    return [f"{key}={','.join(values)}" for key, values in lists.items() if values]


def _check(workdir: Path, config: Config) -> None:
    """Checks that what is in a seed's directory is of this experiment.

    Raises:
      ConfigError: it is not.
    """
    try:
        if _is_finished(workdir, config):
            check_finished(workdir, config)
        elif is_claimed(workdir):
            check_same(workdir, config)
    except ConfigError as error:
        raise ConfigError(f"{error}; choose another --root, or what was asked for there") from error


def _train(config: Config, settings: list[str], workdir: Path, control: Path) -> None:
    if _is_finished(workdir, config):
        return
    if control.exists() and not (workdir / CONTROL).exists():
        workdir.mkdir(parents=True, exist_ok=True)
        shutil.copy(control, workdir / CONTROL)
    command = [sys.executable, str(_PROJECT / "scripts" / "train.py"), f"--config={_CONFIG.value}"]
    options = [f"--workdir={workdir}", *(f"--config.{item}" for item in [f"seed={config.seed}", *settings])]
    code = subprocess.run([*command, *options]).returncode
    if code or not _is_finished(workdir, config):
        sys.exit(f"seed {config.seed} did not finish; the same command goes on where it stopped")


def _is_finished(workdir: Path, config: Config) -> bool:
    """Whether a run has its report with every row that is asked for, and has not gone on as something else since."""
    report = read_report(workdir)
    if not report or report.get("config") != read_json_object(workdir / CONFIG_FILE):
        return False
    return set(config.evaluation.rows) <= set(report["config"]["evaluation"]["rows"])


def _report(workdir: Path) -> dict[str, Any]:
    """The report of a seed's run.

    Raises:
      ConfigError: an earlier version wrote it.
    """
    report = read_report(workdir)
    if absent := sorted(_NEEDED - report.keys()):
        raise ConfigError(
            f"the report of {workdir} lacks {', '.join(absent)}: scripts/evaluate.py --report={workdir} writes it anew"
        )
    return report


def _replace(document: Path, section: str, text: str | None) -> None:
    """Puts `text` into a section of a document, or, without it, only looks whether the section is there."""
    try:
        whole = replace_section(document.read_text(encoding="utf-8"), section, text or "")
    except ValueError as error:
        raise ConfigError(f"{document}: {error}; write these two lines where the tables are to stand") from error
    if text is not None:
        partial = document.with_name(f".{document.name}.partial")
        partial.write_text(whole, encoding="utf-8")
        partial.replace(document)


if __name__ == "__main__":
    run(main)
