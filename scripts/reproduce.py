"""The results of a recipe over several seeds, with every row of comparison, written into `docs/reproduction.md`.

  python scripts/reproduce.py [--seeds=0,1,2,3,4] [--root=runs/reproduce]
  python scripts/reproduce.py --budgets=150,450,900 --rows=reward_off,sft_control [--seeds=0,1]
  python scripts/reproduce.py --config=configs/erv.py --root=runs/erv [--rows=reward_off] [--others=DIR]

Each seed is a run of its own, `ROOT/seed-N`; what is finished is not done again (with further `--rows` it goes on with
those), and refused where it is something else. How many steps of SFT fit into the time of the main stage is measured in
the first seed and holds for all. The tables of `configs/grpo.py` go into the section "results" of the document and of
`README.md`, those of another recipe into the section of its name. A recipe with `--change` or an argument is another
experiment: its tables go into the section of the document that `--section` names. With `--budgets` SFT is as long as
each of these says, in runs of their own (`ROOT/sft-STEPS`, where it is not the recipe's own length), and a picture by
the name of the section, "budget" for the main recipe, is drawn beside the document.
"""

import dataclasses
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mecap_jax.interruption import answer_signals

if __name__ == "__main__":  # before the imports that take seconds
    answer_signals({signal.SIGINT: 130})

from absl import app, flags

from mecap_jax.command_line import local_paths, run
from mecap_jax.config import Config, ConfigError, load
from mecap_jax.evaluation.budget import BUDGET_SECTION, budget_tables, plot_budget
from mecap_jax.evaluation.reproduction import (
    MAIN_SECTION,
    claims_table,
    replace_section,
    section_of,
    seed_tables,
    seeds_tables,
    summary_table,
)
from mecap_jax.experiment.forecast import about, seconds_of_runs
from mecap_jax.experiment.setup import USER_ERRORS
from mecap_jax.experiment.story import CONTROL, Evaluated, evaluated_again
from mecap_jax.experiment.weights import CONFIG_FILE, read_report
from mecap_jax.experiment.workdir import check_finished, check_same, is_claimed
from mecap_jax.json_files import read_json_object, write_json
from mecap_jax.text_files import error_message
from mecap_jax.training.logging import RunLogger

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of the training runs.")
_ROOT = flags.DEFINE_string("root", "runs/reproduce", "Directory of the runs.")
_CONFIG = flags.DEFINE_string("config", "configs/grpo.py", "Recipe.")
_CHANGES = flags.DEFINE_multi_string("change", [], "KEY=VALUE of the recipe's configuration; can be repeated.")
_ROWS = flags.DEFINE_list("rows", None, "Rows of comparison; by default all that the recipe offers.")
_OTHERS = flags.DEFINE_list("others", [], "Directories of further clips that every stage is evaluated on.")
_BUDGETS = flags.DEFINE_list(
    "budgets", [], "Steps of SFT: what comes behind so many of them, as table and curves in the section 'budget'."
)
_SECTION = flags.DEFINE_string("section", None, "Section of the document that the tables go into.")
_PROJECT = Path(__file__).parents[1]
_DOCUMENT = "docs/reproduction.md"
_PICTURES = "docs/pictures"
_NEEDED = {"seed", "eval", "confidence", "ablation", "intervals", "data", "test", "made"}  # of a report
local_paths("root", "others")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        _reproduce()
    except (*USER_ERRORS, OSError, ValueError) as error:
        sys.exit(error_message(error))


class _Runs(NamedTuple):
    """The runs of one length of SFT: settings over the recipe, and by seed what is asked for and where it is."""

    settings: list[str]
    asked: dict[int, Config]
    workdirs: dict[int, Path]


def _runs(root: Path, changes: Sequence[str] = ()) -> _Runs:
    changes = [*_CHANGES.value, *changes]
    settings = [*changes, *_evaluation(load(_CONFIG.value, changes))]
    asked = {seed: load(_CONFIG.value, [f"seed={seed}", *settings]) for seed in _seeds()}
    return _Runs(settings, asked, {seed: root / f"seed-{seed}" for seed in asked})


def _reproduce() -> None:
    root, section = Path(_ROOT.value), _section()
    recipe = load(_CONFIG.value, _CHANGES.value)
    own = recipe.sft
    if _BUDGETS.value and (own is None or recipe.grpo is None):
        raise ConfigError("--budgets: asks what GRPO adds to SFT, and this recipe has not both")
    experiments = {
        steps: _runs(root if own and own.steps == steps else root / f"sft-{steps}", [f"sft.steps={steps}"])
        for steps in _budgets()
    } or {0: _runs(root)}
    documents = [_PROJECT / name for name in ((_DOCUMENT, "README.md") if section == MAIN_SECTION else (_DOCUMENT,))]
    # Before hours of training, not after.
    for document in documents:
        _replace(document, section, None)
    for runs in experiments.values():
        for seed, workdir in runs.workdirs.items():
            _check(workdir, runs.asked[seed])
    _train_all([(runs, seed) for runs in experiments.values() for seed in runs.workdirs])
    reports = {steps: [_report(workdir) for workdir in runs.workdirs.values()] for steps, runs in experiments.items()}
    with RunLogger(None) as logger:
        found = {
            steps: [evaluated_again(workdir, logger)[1] for workdir in runs.workdirs.values()]
            for steps, runs in experiments.items()
        }
    if _BUDGETS.value:
        results = {steps: [of_seed.results for of_seed in by_seed] for steps, by_seed in found.items()}
        _write(documents[0], section, budget_tables(next(iter(reports.values())), results))
        picture = _PROJECT / _PICTURES / f"{section}.png"
        picture.parent.mkdir(exist_ok=True)
        plot_budget(results, picture)
        print(f"written: {picture}")
        return
    for document, text in zip(documents, _texts(section, reports[0], found[0])):
        _write(document, section, text)


def _texts(section: str, reports: list[dict[str, Any]], found: list[Evaluated]) -> list[str]:
    """What goes into the section of each document."""
    ablation = [of_seed.ablation for of_seed in found]
    tables = seeds_tables(reports, [{"": of_seed.results} | of_seed.others for of_seed in found], ablation)
    if section != MAIN_SECTION:
        return [tables]
    claims = claims_table(reports, [of_seed.results for of_seed in found], ablation)
    return [f"{tables}\n{seed_tables(reports)}", f"{summary_table(reports)}\n{claims}"]


def _budgets() -> list[int]:
    try:
        budgets = sorted({int(steps) for steps in _BUDGETS.value})
    except ValueError as error:
        raise ConfigError(f"--budgets: {error}") from error
    if budgets and budgets[0] < 1:
        raise ConfigError(f"--budgets: {budgets[0]} is no number of steps")
    return budgets


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
    own = MAIN_SECTION if is_main else Path(recipe).stem
    if not _BUDGETS.value:
        return section_of(own, changes, _SECTION.value)
    if is_main:
        return section_of(BUDGET_SECTION, changes, _SECTION.value)
    # Neither that of the main recipe, nor that of this recipe's own tables.
    if _SECTION.value in (None, BUDGET_SECTION):
        raise ConfigError(f"--budgets: of {_CONFIG.value} they need a section of their own (--section={own}_budget)")
    return section_of(own, ["--budgets"], _SECTION.value)


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
            if _BUDGETS.value:  # a run with more rows serves as well
                rows = tuple(read_report(workdir)["config"]["evaluation"]["rows"])
                config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, rows=rows))
            check_finished(workdir, config)
        elif is_claimed(workdir):
            check_same(workdir, config)
    except ConfigError as error:
        raise ConfigError(f"{error}; choose another --root, or what was asked for there") from error


def _train_all(runs: list[tuple[_Runs, int]]) -> None:
    """Trains what is not finished, and says at the start of each run how long all will take on this machine: by what
    the first took, before that by their floating-point operations."""
    runs = [(of, seed) for of, seed in runs if not _is_finished(of.workdirs[seed], of.asked[seed])]
    if not runs:
        return
    # In a process of its own: this one must not hold the accelerator that the trainings need.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        ahead = apart.submit(seconds_of_runs, [(of.asked[seed], of.workdirs[seed]) for of, seed in runs]).result()
    began, expected = time.monotonic(), sum(ahead)
    for number, (of, seed) in enumerate(runs):
        left = f"{about(expected)} for all that is left"
        print(f"run {number + 1} of {len(runs)}, {of.workdirs[seed]}: {left}", flush=True)
        _train(of.asked[seed], of.settings, of.workdirs[seed])
        expected = sum(ahead[number + 1 :]) * (time.monotonic() - began) / sum(ahead[: number + 1])


def _train(config: Config, settings: list[str], workdir: Path) -> None:
    # A row that takes the time of another stage does so in every seed as in the one that was trained first, whichever
    # seeds are asked for now.
    measured = sorted(workdir.parent.glob(f"seed-*/{CONTROL}"), key=lambda path: path.stat().st_mtime)
    if measured and not (workdir / CONTROL).exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONTROL, read_json_object(measured[0]))
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


def _write(document: Path, section: str, text: str) -> None:
    _replace(document, section, text)
    print(f"written: {document}")


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
