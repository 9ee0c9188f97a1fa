"""Reward terms that a user writes: a function in a file, named in the configuration; or a class, which may also ask the
policy."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from mecap_jax.config import ConfigError
from mecap_jax.rewards.base import Question, Sample


@dataclasses.dataclass(frozen=True)
class CustomReward:
    """A function over samples, under its own name."""

    name: str
    function: Callable[[Sequence[Sample]], Sequence[float | None]]

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return self.function(samples)


@dataclasses.dataclass(frozen=True)
class CustomPolicyReward(CustomReward):
    """One that asks the policy before it judges, see `base.PolicyReward`."""

    asks: tuple[bool, ...]
    reply_tokens: int
    needs_policy = True

    def questions(self, sample: Sample) -> Sequence[Question | None]:
        return self.function.questions(sample)


def load_custom(target: str) -> CustomReward:
    """Loads `path/to/file.py:function`; the function maps samples to one float or None each.

    In its place may stand a class, which is made without arguments, or an object. With `needs_policy` it is a
    `base.PolicyReward`.

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
    if isinstance(function, type):
        try:
            function = function()
        except Exception as error:  # the user's own code
            raise problem(f"making one raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise problem(f"{path} defines no function {name!r}")
    if not getattr(function, "needs_policy", False):
        return CustomReward(name, function)
    asks, longest = getattr(function, "asks", None), getattr(function, "reply_tokens", None)
    if not isinstance(asks, (tuple, list)) or not asks or not all(isinstance(media, bool) for media in asks):
        raise problem(f"asks the policy, and 'asks' has to say of each question whether with the media, not {asks!r}")
    if type(longest) is not int or longest < 1:
        raise problem(f"asks the policy, and 'reply_tokens' has to be a number of tokens, not {longest!r}")
    if not callable(getattr(function, "questions", None)):
        raise problem("asks the policy, and has no method 'questions'")
    return CustomPolicyReward(name, function, tuple(asks), longest)


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
