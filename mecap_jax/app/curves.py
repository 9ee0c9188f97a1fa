"""The curves of a run: chosen numbers of `metrics.jsonl`, also while it is being written."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mecap_jax.app.json_lines import LARGEST, LARGEST_STEP, GrowingLog
from mecap_jax.json_files import parse_json

# What is worth a look, in this order; the names are those of the log (docs/metrics.md).
CURVES = (
    "reward", "validation/reward", "reward_std", "frac_reward_zero_std", "frac_degenerate", "kl", "entropy",
    "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean", "grad_norm", "learning_rate",
    "token_nll", "validation/token_nll",
)  # fmt: skip
_TERM = re.compile(r"rewards/[^/]+/mean")
_MOST_CURVES, _MOST_POINTS = 1000, 400  # that are kept, and that one shows


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values of one number over the steps of one stage; what is null is left out."""

    stage: str
    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


class MetricsLog:
    """The curves of one `metrics.jsonl`; safe under threads."""

    def __init__(self, path: Path):
        self._log, self._lock = GrowingLog(path), threading.Lock()
        self._bad = 0
        self._points: dict[tuple[str, str], tuple[list[int], list[float]]] = {}

    @property
    def problem(self) -> str:
        """What is wrong with the log, in one line; "" where nothing is."""
        if not self._bad:
            return self._log.problem
        lines = "1 line is" if self._bad == 1 else f"{self._bad} lines are"
        return f"{self._log.path.name}: {lines} left out (no JSON object, or a number that is too large)"

    def update(self) -> None:
        """Reads what has been written since the last time."""
        with self._lock:
            if self._log.restarted():
                self._points, self._bad = {}, 0
            for _, line in self._log.new_lines():
                try:
                    row = parse_json(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict) or not _fits(row):
                    self._bad += 1
                elif isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
                    self._take(row)

    def curves(self, stage: str = "") -> list[Curve]:
        """The curves of a stage, "" of all: the latest first, in the order of `CURVES`, terms behind the reward."""
        with self._lock:
            found = [
                Curve(at, name, *_thinned(steps, values))
                for (at, name), (steps, values) in self._points.items()
                if stage in ("", at)
            ]
            began = {name: number for number, name in enumerate(self.stages())}
        return sorted(found, key=lambda curve: (-began[curve.stage], _rank(curve.name), curve.name))

    def stages(self) -> list[str]:
        """Names of the stages, in the order in which they began."""
        return list(dict.fromkeys(stage for stage, _ in list(self._points)))

    def _take(self, row: dict) -> None:
        for name in (*CURVES, *filter(_TERM.fullmatch, row)):
            value = row.get(name)
            if isinstance(value, int | float):
                if (key := (row["stage"], name)) not in self._points and len(self._points) >= _MOST_CURVES:
                    continue
                steps, values = self._points.setdefault(key, ([], []))
                steps.append(row["step"])
                values.append(float(value))


def _fits(row: dict) -> bool:
    numbers = [value for value in row.values() if isinstance(value, int | float)]
    step = row.get("step")
    return all(abs(value) <= LARGEST for value in numbers) and (not isinstance(step, int) or abs(step) <= LARGEST_STEP)


def paired(curves: Sequence[Curve], others: Sequence[Curve]) -> list[tuple[str, list[Curve | None]]]:
    """Curves of two runs by title, those of one name and stage together; None where a run has it not."""
    pairs: dict[str, list[Curve | None]] = defaultdict(lambda: [None, None])
    for side, found in enumerate((curves, others)):
        for curve in found:
            pairs[f"{curve.stage}: {curve.name}"][side] = curve
    return list(pairs.items())


def _rank(name: str) -> float:
    return 0.5 if _TERM.fullmatch(name) else CURVES.index(name)


def _thinned(steps: list[int], values: list[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """At most so many points, the last one included: more than a small picture can show."""
    every = -(-len(steps) // _MOST_POINTS)
    chosen = range(len(steps) - 1, -1, -every)[::-1] if every else ()
    return tuple(steps[i] for i in chosen), tuple(values[i] for i in chosen)
