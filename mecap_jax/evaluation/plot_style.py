"""How all pictures of a report look: as wide as a README shows them, legible there, and with colours that colour-blind
readers tell apart (Okabe and Ito's). A stage keeps its colour in every picture.

Drawn on bare `Figure` objects with the Agg renderer: no display, no global pyplot state.
"""

from __future__ import annotations

import contextlib
import logging as python_logging
import re
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.lines import Line2D

from mecap_jax.evaluation.tables import UNTRAINED, describe, stage_title

COLOURS = {"sft": "#0072B2", "grpo": "#D55E00"}
OTHERS = ("#777777", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#B8A900")  # rows of comparison
MARKERS = "osD^vPX*"
INK, PALE = "#333333", "#DDDDDD"
WIDTH = 8.3  # inches; at 150 dots an inch a page of 830 pixels shows three of two, and type of 10 points as 14 pixels
_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",  # the file of all has the names of its first
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
)


def _families() -> list[str]:
    """Labels may be Chinese, and matplotlib's own font is not: names it with those of the system's that are."""
    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:  # installed since matplotlib looked, which it does once
            with contextlib.suppress(OSError, RuntimeError):  # a format that it cannot draw
                fontManager.addfont(path)
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _CHINESE if name in installed)]


# It would say of every weight that a Chinese font lacks which one is drawn.
python_logging.getLogger("matplotlib.font_manager").setLevel(python_logging.ERROR)
STYLE = {
    "font.family": _families(),
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,
}

_FLOORS = {"chance": (0, (3, 2)), "text only": (0, (1, 1.2)), UNTRAINED: (0, (5, 1.5, 1, 1.5))}

Interval = Sequence[float] | None


def grid(rows: int, columns: int, height: float, lines: str = "y", **options) -> tuple[Figure, list[Axes]]:
    """Returns a figure `height` inches high and its axes in reading order, with grid lines at one axis' ticks."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axis in axes if lines else ():
        axis.grid(axis=lines, color=PALE, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def dots(
    axis: Axes,
    rows: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    intervals: Mapping[str, Sequence[Interval]],
    stages: Sequence[str],
) -> None:
    """Draws a dot a stage and row, with its interval as a line, the first row on top.

    Args:
      rows: titles.
      values, intervals: by stage, one a row.
      stages: all stages of the picture, which decide colours.
    """
    step = 0.7 / max(len(values), 1)
    for s, stage in enumerate(values):
        for y, (value, interval) in enumerate(zip(values[stage], intervals[stage])):
            place = y + (s - (len(values) - 1) / 2) * step
            if value is None:
                continue
            if interval is not None:
                axis.plot(interval, [place, place], color=colour(stage, stages), linewidth=1.8, solid_capstyle="butt")
            axis.plot(value, place, marker(stage, stages), color=colour(stage, stages), markersize=5.5)
    row_titles(axis, rows)


def row_titles(axis: Axes, rows: Sequence[str]) -> None:
    """Writes the titles of rows at the left, the first on top."""
    axis.set_yticks(range(len(rows)), [textwrap.fill(row, 30) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)


def floor_line(name: str) -> dict[str, Any]:
    """Returns how a line looks at what needs no training on clips: "chance", what is had from "text only", or what
    "untrained" text earns."""
    return {"color": INK, "linewidth": 1.3, "linestyle": _FLOORS[name], "label": name}


def metric_title(key: str) -> str:
    """Returns a metric's name with an arrow towards the better side."""
    metric = describe(key)
    return metric.title + {"higher": " ↑", "lower": " ↓", "": ""}[metric.better]


def colour(stage: str, stages: Sequence[str]) -> str:
    """Returns a stage's colour among all stages of a report."""
    return COLOURS[stage] if stage in COLOURS else OTHERS[_number(stage, stages) % len(OTHERS)]


def marker(stage: str, stages: Sequence[str]) -> str:
    """Returns a stage's marker: colour is never the only difference."""
    return MARKERS[list(COLOURS).index(stage) if stage in COLOURS else (2 + _number(stage, stages)) % len(MARKERS)]


def _number(stage: str, stages: Sequence[str]) -> int:
    return [name for name in stages if name not in COLOURS].index(stage)


def legend(figure: Figure, stages: Sequence[str], floors: Iterable[str] = ()) -> None:
    """Writes which colour and marker is which stage above the panels, and which line which floor."""
    handles = [
        Line2D([], [], color=colour(stage, stages), marker=marker(stage, stages), label=stage_title(stage))
        for stage in stages
    ]
    handles += [Line2D([], [], **floor_line(name)) for name in floors]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))


_MISSING = re.compile(r"Glyph (\d+) .*missing from")


def save(figure: Figure, path: Path) -> None:
    """Writes the picture. Says in one line which characters are boxes in it, as no font is known that has them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=150)
    missing = dict.fromkeys(match[1] for each in caught if (match := _MISSING.match(str(each.message))))
    if missing:
        shown = "".join(chr(int(number)) for number in missing)
        logging.warning("%s: no font for %r; with Noto Sans CJK installed, it is drawn", path.name, shown)
