"""Rows of comparison: what a run's result is held against, each the run's own configuration with small changes."""

from __future__ import annotations

import dataclasses

from mecap_jax.config.overrides import override
from mecap_jax.config.schema import Config, ConfigError, RowConfig
from mecap_jax.config.validation import validate


def chosen_rows(config: Config) -> list[RowConfig]:
    """The rows of comparison that are trained, in the order in which they were asked for."""
    offered = {row.name: row for row in config.rows}
    return [offered[name] for name in config.evaluation.rows]


def row_config(config: Config, row: RowConfig) -> Config:
    """The configuration of a row of comparison: the run's own, with its changes.

    Raises:
      ConfigError: a change that the run cannot have; names the row.
    """
    for change in row.changes:
        if change.partition(".")[0] not in ("task", "data", "sft", "grpo"):
            raise ConfigError(f"row {row.name!r}: {change!r} changes more than task, data, sft or grpo")
    evaluation = dataclasses.replace(config.evaluation, rows=())
    try:
        return validate(override(dataclasses.replace(config, evaluation=evaluation), row.changes))
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from error


def row_of(config: Config, stage: str) -> RowConfig | None:
    """The row of comparison that a stage is; None for one of the run's own."""
    return next((row for row in config.rows if row.name == stage), None)


def stage_config(config: Config, stage: str) -> Config:
    """The configuration that a stage is trained under: its row's, or the run's own."""
    row = row_of(config, stage)
    return config if row is None else row_config(config, row)
