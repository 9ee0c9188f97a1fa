"""Which tasks there are."""

from __future__ import annotations

from mecap_jax.config import Config
from mecap_jax.tasks.base import Task
from mecap_jax.tasks.captioning import Captioning


def make_task(config: Config) -> Task:
    """Returns the task that a run's configuration describes."""
    return Captioning.from_config(config)
