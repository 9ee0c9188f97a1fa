"""Reward terms that a user writes: a function in a file, named in the configuration."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from mecap_jax.config import ConfigError
from mecap_jax.rewards.base import Sample


@dataclasses.dataclass(frozen=True)
class CustomReward:
    """A function over samples, under its own name."""

    name: str
    function: Callable[[Sequence[Sample]], Sequence[float | None]]

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return self.function(samples)


def load_custom(target: str) -> CustomReward:
    """Loads `path/to/file.py:function`; the function maps samples to one float or None each.

    Raises:
      ConfigError: names the term and what is wrong with it.
    """

    def problem(what: str) -> ConfigError:
        return ConfigError(f"config key 'grpo.reward.terms': {target!r}: {what}")

    path, _, name = target.rpartition(":")
    if not (path and name.isidentifier()):
        raise problem("expected path/to/file.py:function")
    if not Path(path).is_file():
        raise problem(f"no such file: {path}")
    function = getattr(_import_file(Path(path), problem), name, None)
    if not callable(function):
        raise problem(f"{path} defines no function {name!r}")
    return CustomReward(name, function)


def _import_file(path: Path, problem: Callable[[str], ConfigError]) -> ModuleType:
    """Imports a file once, under a name of its own."""
    name = f"mecap_jax_custom_reward_{zlib.crc32(str(path.resolve()).encode()):08x}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None:
        raise problem(f"{path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise problem(f"importing {path} raised {type(error).__name__}: {error}") from error
    return module
