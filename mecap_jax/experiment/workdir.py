"""Whose a workdir is: the run that may write there, its configuration and its data."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from mecap_jax.config import Config, ConfigError, chosen_rows, differences, from_json, row_config, with_absolute_paths
from mecap_jax.data.shards import ShardReader
from mecap_jax.data.training_facts import TrainingFacts
from mecap_jax.experiment.weights import CONFIG_FILE, read_kept
from mecap_jax.json_files import as_json, write_json
from mecap_jax.text_files import is_address
from mecap_jax.training.checkpointing import latest_step

# Held by the process that runs in a workdir; evaluation, captions and export only read, and need no lock.
LOCK = "run.lock"
DATA = "shards.json"
_DATA = {"sha256": str, "directory": str}
CACHE = Path("cache")  # what can be made again: shards, media tokens, compiled programs

# What may change between the two halves of a run without changing what it learns. Data are compared by their checksums,
# steps by what was taken.
_FREE = re.compile(
    r"name|(evaluation|checkpoint|mesh)\..*|compilation_cache|trackers|max_nonfinite_steps|"
    r"data\.(path|source|input|synthetic\..*|workers|cache_mb)|(sft|grpo)\.steps|"
    r"(sft|grpo)\.(micro_clips|micro_prompts|validate_every)|rows|task\.(judge|judge_model|judge_timeout_s|places|wheels)|"
    r"grpo\.max_reward_failures|grpo\.reward\.(validation_)?timeout_s"
)
# What a machine decides and no figure follows from.
_MACHINE = re.compile(
    r"(checkpoint|mesh)\..*|compilation_cache|trackers|data\.(workers|cache_mb)|(sft|grpo)\.micro_(clips|prompts)|"
    r"evaluation\.batch_clips"
)


def check_place(workdir: Path) -> None:
    """Refuses what cannot be a workdir.

    Raises:
      ConfigError: an address such as gs://..., or a file.
    """
    if is_address(str(workdir)):
        raise ConfigError(
            f"--workdir: {workdir} is an address; a workdir is a local directory, or a bucket that is mounted as one"
        )
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir: {workdir} is a file")


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before time is spent on what it is to hold.

    Raises:
      ConfigError: says why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--output: {path} cannot be written: {error.strerror}") from error


def is_claimed(workdir: Path) -> bool:
    """Whether a run took steps in `workdir` that would be lost if another began there."""
    return (workdir / CONFIG_FILE).is_file() and bool(_steps_taken(workdir))


def check_finished(workdir: Path, config: Config) -> None:
    """Checks that what a run in `workdir` came to is what `config` asks for: what it trained, its rows of comparison,
    and what it was evaluated on.

    Raises:
      ConfigError: it is something else; names every key that differs with both values, or the file that cannot be read.
    """
    theirs, mine = (_asked(found) for found in (_stored(workdir), with_absolute_paths(config)))
    for tree, other in ((theirs, mine), (mine, theirs)):  # a row of one of them is a difference in `evaluation.rows`
        tree["rows"] = {name: row for name, row in tree["rows"].items() if name in other["rows"]}
    if refused := _differences(theirs, mine, _MACHINE):
        raise ConfigError(f"{workdir} holds a finished run of something else:\n  " + "\n  ".join(refused))


def _asked(config: Config) -> dict[str, Any]:
    """A configuration as JSON, with the rows that are trained by name, in whatever order."""
    rows = {row.name: dataclasses.asdict(row) for row in chosen_rows(config)}
    tree = as_json(dataclasses.asdict(config) | {"rows": rows})
    tree["evaluation"]["rows"].sort()
    return tree


def _stored(workdir: Path) -> Config:
    """What was asked for in `workdir`; through the schema: a setting that was not there then had today's default.

    Raises:
      ConfigError: it cannot be read; names the file.
    """
    try:
        return with_absolute_paths(from_json((workdir / CONFIG_FILE).read_bytes()))
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{workdir / CONFIG_FILE}: {error}; choose another --workdir") from error


def check_same(workdir: Path, config: Config) -> Config:
    """Checks that the run in `workdir` is this one; returns what was asked for there.

    Raises:
      ConfigError: another configuration ran there; names every key that differs with both values, or the file that
        cannot be read.
    """
    stored, asked = _stored(workdir), with_absolute_paths(config)
    theirs, mine = (as_json(dataclasses.asdict(settings)) for settings in (stored, asked))
    refused, taken = _differences(theirs, mine), _steps_taken(workdir)
    refused += _refused_steps(theirs, mine, taken)
    refused += _refused_rows(stored, asked, taken)
    if refused:
        raise ConfigError(
            f"{workdir} holds a run with another configuration; take another --workdir (config key 'init_from' "
            "starts it from a stage of this one) or the same settings:\n  " + "\n  ".join(refused)
        )
    return stored


def claim(workdir: Path, asked: Config, facts: TrainingFacts) -> None:
    """Makes `workdir` this run's: what was asked for, its paths from the root, and what the data make of it.

    Rows of comparison that have taken steps here are kept, whether they are asked for or not.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    facts.save(workdir)
    taken, names = _steps_taken(workdir), {row.name for row in asked.rows}
    mine = as_json(dataclasses.asdict(with_absolute_paths(asked)))
    if is_claimed(workdir):
        # What such a row was stays known: it may be asked for again, and must be the same then.
        theirs = read_kept(workdir / CONFIG_FILE, {}).get("rows", ())
        mine["rows"] += [row for row in theirs if row["name"] in taken and row["name"] not in names]
    write_json(workdir / CONFIG_FILE, mine)


def claim_data(workdir: Path, reader: ShardReader) -> None:
    """Notes which data the run learns from, and where they are now.

    Raises:
      ConfigError: it has learnt from other data.
    """
    mine = {"sha256": reader.checksum, "directory": os.path.abspath(reader.directory)}
    mine["cache"] = str(cache_of(workdir))
    if is_claimed(workdir) and (workdir / DATA).exists():
        theirs = read_kept(workdir / DATA, _DATA)
        if theirs["sha256"] != mine["sha256"]:
            raise ConfigError(
                f"config key 'data.path': {workdir} has learnt from other data: sha256 {theirs['sha256'][:12]} "
                f"({theirs['directory']}) there, {mine['sha256'][:12]} ({mine['directory']}) asked"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / DATA, mine)


def data_of(workdir: Path) -> Path | None:
    """Where the run's shards were when it last read them, None for a run that has not got so far."""
    path = workdir / DATA
    return Path(read_kept(path, _DATA)["directory"]) if path.exists() else None


def cache_of(workdir: Path) -> Path:
    """The cache that the run began with, wherever it goes on; where that is gone, the current directory's."""
    path = workdir / DATA
    kept = read_kept(path, _DATA).get("cache") if is_claimed(workdir) and path.exists() else None
    return Path(os.path.abspath(kept if kept and os.path.isdir(kept) else CACHE))


def _steps_taken(workdir: Path) -> dict[str, int]:
    """Steps that are kept, by stage."""
    stages = sorted((workdir / "checkpoints").glob("*/"))
    return {stage.name: step for stage in stages if (step := latest_step(stage)) is not None}


def _refused_steps(theirs: dict[str, Any], mine: dict[str, Any], taken: dict[str, int]) -> list[str]:
    refused = []
    for stage in ("sft", "grpo"):
        old, new = ((config.get(stage) or {}).get("steps") for config in (theirs, mine))
        done = taken.get(stage, 0)
        if old is None or new is None or old == new:
            continue
        if new < done:
            refused.append(f"{stage}.steps: {done} are taken, {new} asked; they can only become more")
        alone = {row["name"] for row in theirs.get("rows", ()) if not row["after"]}
        later = [name for name in taken if name not in {stage, *alone}]
        if stage == "sft" and done == old and later:
            refused.append(f"sft.steps: {old} there, {new} asked; {later[0]} has started from step {old}")
    return refused


def _differences(theirs: dict[str, Any], mine: dict[str, Any], free: re.Pattern[str] = _FREE) -> list[str]:
    return [
        f"{key}: {old!r} there, {new!r} asked" for key, old, new in differences(theirs, mine) if not free.fullmatch(key)
    ]


def _refused_rows(theirs: Config, mine: Config, taken: dict[str, int]) -> list[str]:
    """Rows of comparison that have taken steps as something else: what they come to counts, not how it is spelt."""
    old, new = ({row.name: row for row in config.rows} for config in (theirs, mine))
    refused = []
    for name in sorted(old.keys() & new.keys() & taken.keys()):
        stages = (dataclasses.asdict(dataclasses.replace(row, changes=())) for row in (old[name], new[name]))
        found = _differences(*stages)
        if old[name] != new[name]:
            settings = (row_config(config, rows[name]) for config, rows in ((theirs, old), (mine, new)))
            found += _differences(*(as_json(dataclasses.asdict(row)) for row in settings))
        refused += [f"rows: {name!r} has taken {taken[name]} steps with {difference}" for difference in found]
    return refused
