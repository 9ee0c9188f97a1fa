"""Which part of a parameter tree trains, and how both parts become one again.

A tree is divided once, at the start of a stage. Only the part that trains is differentiated, has optimiser state, is
donated to steps and goes into checkpoints; the frozen part is the same buffers in all that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mecap_jax.config import ConfigError
from mecap_jax.models.checkpoints.table import flatten, select_params
from mecap_jax.models.lora import ADAPTER_LEAVES


def split_params(params: Any, trainable: Sequence[str]) -> tuple[Any, Any]:
    """Divides a nested dict of parameters into the part that trains and the frozen part; copies nothing.

    Args:
      trainable: regular expressions; a parameter trains where one of them matches its whole dotted path. Adapters
        always train.

    Raises:
      ConfigError: a pattern matches no parameter, or nothing would train.
    """
    paths = flatten(params)
    idle = [pattern for pattern in trainable if not any(re.fullmatch(pattern, path) for path in paths)]
    if idle:
        raise ConfigError(f"config key 'trainable': no parameter matches {', '.join(map(repr, idle))}")

    def trains(path: str) -> bool:
        adapter = path.rpartition(".")[2] in ADAPTER_LEAVES
        return adapter or any(re.fullmatch(pattern, path) for pattern in trainable)

    part = select_params(params, trains)
    if not part:
        raise ConfigError(f"config key 'trainable': nothing trains (got {tuple(trainable)!r} and no 'model.lora')")
    return part, select_params(params, lambda path: not trains(path))


def merge_params(trainable: Any, frozen: Any) -> Any:
    """The whole tree that `split_params` divided; the arrays are the same, inside of jit and out."""
    merged = dict(frozen)
    for name, child in trainable.items():
        merged[name] = merge_params(child, frozen[name]) if name in frozen else child
    return merged
