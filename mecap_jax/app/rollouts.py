"""The groups that a run sampled, as a table: small rows in memory, completions read again when a group is opened."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from mecap_jax.app.json_lines import LARGEST, LARGEST_STEP, GrowingLog
from mecap_jax.config import ConfigError
from mecap_jax.text_files import printable

FORMAT_TERM = "format"  # the term that is 0 where an answer does not follow its protocol

_Name = Annotated[str, Field(max_length=1000)]  # is kept for each group
_Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class Completion(TypedDict):
    """A completion as `completions.jsonl` has it; numbers are None where there is none."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")
    text: str
    finished: bool
    degenerate: str | None
    reward: _Number | None
    rewards: dict[str, _Number | None]
    advantage: _Number | None


class Group(TypedDict):
    """A prompt with its completions as `completions.jsonl` has it."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")
    stage: _Name
    step: Annotated[int, Field(ge=0, le=LARGEST_STEP)]
    utterance_id: _Name
    label: _Name | None
    prompt: str
    transcript: str
    references: list[str]
    completions: Annotated[list[Completion], Field(min_length=1)]


@dataclasses.dataclass(frozen=True, slots=True)
class GroupRow:
    """What the table says of a group.

    Attributes:
      number: of the group in its log, from 0.
      stage, step, clip, label: where it was sampled; label "" where there is none.
      mean, best, worst, spread: of the rewards, `spread` their standard deviation; None where there is no reward.
      completions: how many there are.
      degenerate: how many earn nothing because they are empty, endless or repetitive.
      misread: how many do not follow the protocol of their task.
      unfinished: how many were cut off.
      place: the byte of the log where it stands.
    """

    number: int
    stage: str
    step: int
    clip: str
    label: str
    mean: float | None
    best: float | None
    worst: float | None
    spread: float | None
    completions: int
    degenerate: int
    misread: int
    unfinished: int
    place: int


@dataclasses.dataclass(frozen=True)
class StepRow:
    """The groups of one step: means of their means and spreads, and counts over all completions."""

    stage: str
    step: int
    groups: int
    mean: float | None
    spread: float | None
    no_spread: int
    completions: int
    degenerate: int
    misread: int
    unfinished: int


class RolloutLog:
    """The groups of one `completions.jsonl`; safe under threads.

    Attributes:
      rows: one a group, in the order of the log.
      problem: what is wrong with the log or with its lines that are no groups, in one line; "" where nothing is.
    """

    def __init__(self, path: Path):
        self.rows: list[GroupRow] = []
        self._log, self._bad, self._reason, self._lock = GrowingLog(path), 0, "", threading.Lock()

    @property
    def problem(self) -> str:
        if not self._bad:
            return self._log.problem
        lines = "1 line is" if self._bad == 1 else f"{self._bad} lines are"
        return f"{self._log.path.name}: {lines} left out, which this version does not read ({self._reason})"

    def update(self) -> None:
        """Reads what has been written since the last time."""
        with self._lock:
            if self._log.restarted():
                self.rows, self._bad, self._reason = [], 0, ""
            for place, line in self._log.new_lines():
                try:
                    group = _parse(line)
                except ConfigError as error:
                    self._bad, self._reason = self._bad + 1, self._reason or str(error)
                else:
                    self.rows.append(_row(len(self.rows), group, place))

    def read(self, number: int) -> Group:
        """The whole of a group.

        Raises:
          ConfigError: there is no such group (any more).
        """
        rows = self.rows
        if not 0 <= number < len(rows):
            raise ConfigError(f"{self._log.path.name} has no group {number}, only {len(rows)}")
        try:
            return _parse(self._log.line(rows[number].place))
        except OSError as error:
            raise ConfigError(f"{self._log.path} cannot be read: {error.strerror}") from error


# --- choosing -----------------------------------------------------------------------------------------------------


def missing_last(value: float | None, sign: int = 1) -> tuple[bool, float]:
    """What to sort by: what there is, upwards or (-1) downwards, and then what is not there."""
    return (True, 0.0) if value is None else (False, sign * value)


# What a table may be sorted by.
ORDERS: Mapping[str, Callable[[GroupRow], tuple]] = {
    "newest first": lambda row: (-row.number,),
    "oldest first": lambda row: (row.number,),
    "best completion": lambda row: missing_last(row.best, -1),
    "worst completion": lambda row: missing_last(row.worst),
    "highest mean reward": lambda row: missing_last(row.mean, -1),
    "lowest mean reward": lambda row: missing_last(row.mean),
    "most disagreeing": lambda row: missing_last(row.spread, -1),
    "most degenerate": lambda row: (-row.degenerate,),
    "most parse failures": lambda row: (-row.misread,),
}
# Which groups are shown.
KEEPS: Mapping[str, Callable[[GroupRow], bool]] = {
    "all groups": lambda row: True,
    "with a degenerate completion": lambda row: row.degenerate > 0,
    "with a parse failure": lambda row: row.misread > 0,
    "with a completion cut off": lambda row: row.unfinished > 0,
    "rewards differ": lambda row: bool(row.spread),
    "rewards are all the same": lambda row: row.spread == 0,
    "without any reward": lambda row: row.mean is None,
}


def choose(
    rows: Iterable[GroupRow],
    *,
    keep: str = "all groups",
    order: str = "newest first",
    stage: str = "",
    label: str = "",
    clip: str = "",
    first: int = 0,
    last: int | None = None,
) -> list[GroupRow]:
    """The groups that fit, in order.

    Args:
      keep, order: a key of `KEEPS`, of `ORDERS`.
      stage, label: "" takes all.
      clip: part of the clip's id.
      first, last: steps; None: no bound.

    Raises:
      ConfigError: no such key.
    """
    for name, value, known in (("keep", keep, KEEPS), ("order", order, ORDERS)):
        if value not in known:
            raise ConfigError(f"{name} must be one of {list(known)}, got {value!r:.80}")
    chosen = [
        row
        for row in rows
        if (not stage or row.stage == stage)
        and (not label or row.label == label)
        and clip in row.clip
        and first <= row.step
        and (last is None or row.step <= last)
        and KEEPS[keep](row)
    ]
    return sorted(chosen, key=ORDERS[order])


def by_step(rows: Iterable[GroupRow]) -> list[StepRow]:
    """One row a stage and step, in the order in which they came."""
    steps: dict[tuple[str, int], list[GroupRow]] = defaultdict(list)
    for row in rows:
        steps[row.stage, row.step].append(row)
    return [
        StepRow(
            stage=stage,
            step=step,
            groups=len(groups),
            mean=_mean(row.mean for row in groups),
            spread=_mean(row.spread for row in groups),
            no_spread=sum(row.spread == 0 for row in groups),
            **{
                name: sum(getattr(row, name) for row in groups)
                for name in ("completions", "degenerate", "misread", "unfinished")
            },
        )
        for (stage, step), groups in steps.items()
    ]


def by_reward(completions: Sequence[Completion]) -> list[int]:
    """Numbers of the completions, the best first, those without a reward last."""
    return sorted(range(len(completions)), key=lambda i: missing_last(completions[i]["reward"], -1))


# --- reading ------------------------------------------------------------------------------------------------------


@functools.cache
def _adapter() -> TypeAdapter:
    return TypeAdapter(Group)


def _parse(line: bytes) -> Group:
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(printable(f"{place}: {first['msg']}" if place else first["msg"])[:300]) from None


def _row(number: int, group: Group, place: int) -> GroupRow:
    completions = group["completions"]
    rewards = [reward for completion in completions if (reward := completion["reward"]) is not None]
    return GroupRow(
        number=number,
        stage=group["stage"],
        step=group["step"],
        clip=group["utterance_id"],
        label=group["label"] or "",
        mean=_mean(rewards),
        best=max(rewards, default=None),
        worst=min(rewards, default=None),
        spread=_deviation(rewards),
        completions=len(completions),
        degenerate=sum(completion["degenerate"] is not None for completion in completions),
        misread=sum(completion["rewards"].get(FORMAT_TERM) == 0 for completion in completions),
        unfinished=sum(not completion["finished"] for completion in completions),
        place=place,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation; exactly 0 where all are the same, which a sum of rounded squares need not give."""
    if not values or min(values) == max(values):
        return 0.0 if values else None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
