"""Which tasks there are."""

from __future__ import annotations

from mecap_jax.config import Config
from mecap_jax.tasks.base import Task
from mecap_jax.tasks.captioning import Captioning
from mecap_jax.tasks.recognition import Recognition

_TASKS = {"captioning": Captioning.from_config, "recognition": Recognition.from_config}


def make_task(config: Config) -> Task:
    """Returns the task that a run's configuration describes.

    Raises:
      ConfigError: names the key of what it cannot be made of.
    """
    return _TASKS[config.task.name](config)
