"""Where emotions lie among each other: for accuracy by degrees, and for errors of valence and arousal.

Two tables come with the project (`coordinates.toml`): Plutchik's wheel, and valence and arousal of Mikels' eight by
their signs. Measured values (NRC VAD, Warriner et al.) may not be passed on by us; they are read from a user's file.
Lists of them that go around for single emotions contradict each other, so none stands here.
"""

from __future__ import annotations

import csv
import functools
import math
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from mecap_jax.config import ConfigError
from mecap_jax.tasks.labels import LabelSet
from mecap_jax.text_files import read_lines

Coordinates = Mapping[str, np.ndarray]
_AXES = ("valence", "arousal", "dominance")


def coordinates(name: str, labels: LabelSet) -> Coordinates:
    """Returns float64 [D] for each label of the set that the table has.

    Args:
      name: "plutchik" (plane of the wheel, radius 1 in its outermost ring), "mikels" (valence and arousal, -1 or 1), or
        a user's table (.csv, .tsv) with a column "word" (or "term") and columns "valence", "arousal" and, where
        there is one, "dominance". A label is looked up by its name and by what its corpus calls it.
      labels: the labels.

    Raises:
      ConfigError: no such table or file, a file without these columns or with other things than numbers in them, or a
        table that has fewer than two of the labels.
    """
    if name in _known():
        found = {label: _known()[name][label] for label in labels.labels if label in _known()[name]}
    elif name.endswith((".csv", ".tsv")):
        words = _read_table(Path(name))
        spelt = [(label, word.casefold()) for label in labels.labels for word in (labels.display(label), label)]
        found = {label: words[word] for label, word in spelt if word in words}
    else:
        raise ConfigError(f"there are no coordinates {name!r}: expected a file (.csv, .tsv) or one of {list(_known())}")
    if len(found) < 2:
        raise ConfigError(f"coordinates {name!r} have fewer than two of the labels {list(labels.labels)}")
    return found


def similarity(places: Coordinates) -> Callable[[str, str], float]:
    """Returns the similarity of two labels: 1 for the same; for two it falls with their distance, from 1/2 to 0.

    It is 0 from half of the largest distance on, so that a label in the middle (neutral) is not a little right whatever
    is asked. Labels without coordinates are similar to themselves only.
    """
    reach = max(float(np.linalg.norm(a - b)) for a in places.values() for b in places.values()) / 2

    def of(first: str, second: str) -> float:
        if first == second or first not in places or second not in places or not reach:
            return float(first == second)
        return max(0.0, 1 - float(np.linalg.norm(places[first] - places[second])) / reach) / 2

    return of


@functools.cache
def _known() -> Mapping[str, Coordinates]:
    text = resources.files("mecap_jax.tasks").joinpath("coordinates.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    on_wheel = {label: _on_wheel(*place) for label, place in tables["plutchik"].items()}
    return {"plutchik": on_wheel, "mikels": {k: np.array(v, np.float64) for k, v in tables["mikels"].items()}}


def _on_wheel(degrees: float, ring: int) -> np.ndarray:
    angle = math.radians(degrees)
    return ring / 3 * np.array([math.cos(angle), math.sin(angle)])


def _read_table(path: Path) -> dict[str, np.ndarray]:
    try:
        rows = list(csv.reader(read_lines(path), delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, csv.Error) as error:
        raise ConfigError(f"coordinates {str(path)!r} cannot be read: {error}") from error
    header = [column.strip().casefold() for column in (rows or [[]])[0]]
    word = next((header.index(column) for column in ("word", "term") if column in header), None)
    axes = [header.index(axis) for axis in _AXES if axis in header]
    if word is None or not {"valence", "arousal"} <= set(header):
        raise ConfigError(f"coordinates {str(path)!r} need columns 'word', 'valence' and 'arousal', got {header}")
    found: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            values = np.array([float(row[axis]) for axis in axes])
            found[row[word].strip().casefold()] = values
        except (IndexError, ValueError):
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise ConfigError(f"coordinates {str(path)!r}, line {number}: no word with numbers: {str(row)[:80]}")
    return found
