"""Rows of comparison: what a run's result is held against, each the run's own configuration with small changes."""

from __future__ import annotations

import dataclasses

from mecap_jax.config.overrides import override
from mecap_jax.config.schema import MEDIA_SETTINGS, Config, ConfigError, RowConfig
from mecap_jax.config.validation import validate

_CHANGEABLE = ("task", "data", "sft", "grpo")
# A row may also put another network in the decoder's place, which then learns from the beginning.
_DECODER = "model.decoder"
# All rows are judged by one task on the clips of one corpus, or there would be nothing to compare.
_SHARED = ("task.name", "data.path", "data.source", "data.input", "data.synthetic")


def chosen_rows(config: Config) -> list[RowConfig]:
    """The rows of comparison that are trained, in the order in which they were asked for."""
    offered = {row.name: row for row in config.rows}
    return [offered[name] for name in config.evaluation.rows]


def row_config(config: Config, row: RowConfig) -> Config:
    """The configuration of a row of comparison: the run's own, with its changes.

    Raises:
      ConfigError: a change that the run cannot have, or that a row cannot; names the row.
    """
    for change in row.changes:
        key = change.partition("=")[0]
        if key.partition(".")[0] not in _CHANGEABLE and not key.startswith(f"{_DECODER}."):
            raise ConfigError(f"row {row.name!r}: {change!r} changes more than task, data, sft, grpo or model.decoder")
        if key in _CHANGEABLE or any(key == shared or key.startswith(f"{shared}.") for shared in _SHARED):
            raise ConfigError(f"row {row.name!r}: {change!r} changes what all rows must share: {', '.join(_SHARED)}")
    evaluation = dataclasses.replace(config.evaluation, rows=())
    try:
        changed = override(dataclasses.replace(config, evaluation=evaluation), (*row.changes, *_steps(config, row)))
        _check_own_network(config, changed, row)
        return validate(_beside_cache(config, changed))
    except ConfigError as error:
        raise ConfigError(f"row {row.name!r}: {error}") from error


def _steps(config: Config, row: RowConfig) -> tuple[str, ...]:
    """How many steps a row takes that are counted by those of another stage, as a change."""
    of = getattr(config, row.steps_of) if row.steps_of else None
    return () if of is None else (f"{row.stage}.steps={max(1, round(row.steps_each * of.steps))}",)


def _check_own_network(config: Config, changed: Config, row: RowConfig) -> None:
    """Refuses another decoder where its weights would have to come from somewhere.

    Raises:
      ConfigError: names the key.
    """
    if changed.model == config.model:
        return
    if row.after:
        raise ConfigError(f"config key {_DECODER!r}: another network cannot go on from {row.after!r}")
    if given := next((key for key in ("backbone", "init_from") if getattr(config, key)), None):
        raise ConfigError(f"config key {_DECODER!r}: another network begins at random, and the run has {given!r}")
    if config.data.tower_cache:
        raise ConfigError("config key 'data.tower_cache': its tokens come from the towers of the run's own network")


def _beside_cache(config: Config, changed: Config) -> Config:
    """The row's configuration beside a run's cache of media tokens, if it has one: without it where the row reads no
    media.

    Raises:
      ConfigError: it wants tokens that the run has not.
    """
    media = {"audio", "video"} & set(changed.data.modalities)
    if media and changed.data.tower_cache != config.data.tower_cache:
        raise ConfigError("config key 'data.tower_cache': all rows read media as the run does")
    if config.data.tower_cache and media:
        if more := media - set(config.data.modalities):
            raise ConfigError(f"config key 'data.modalities': data.tower_cache keeps the run's, without {min(more)!r}")
        for name in MEDIA_SETTINGS:
            if getattr(changed.data, name) != getattr(config.data, name):
                raise ConfigError(f"config key 'data.{name}': with data.tower_cache all rows see media as the run does")
    cached = config.data.tower_cache and bool(media)
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, tower_cache=cached))


def row_of(config: Config, stage: str) -> RowConfig | None:
    """The row of comparison that a stage is; None for one of the run's own."""
    return next((row for row in config.rows if row.name == stage), None)


def stage_config(config: Config, stage: str) -> Config:
    """The configuration that a stage is trained under: its row's, or the run's own."""
    row = row_of(config, stage)
    return config if row is None else row_config(config, row)
