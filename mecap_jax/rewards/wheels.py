"""Emotion wheels of MER-UniBench (AffectGPT, arXiv 2501.16566): open-vocabulary emotion words and their classes.

The published mapping may not be passed on; a user gives it as a file. It is a NumPy archive of pickled dictionaries,
which this project does not read: its three dictionaries are saved as one JSON object under their own names,
    format_mapping   word form -> base forms ("happily" -> ["happy"])
    raw_mapping      base form -> words of the wheels that it is a synonym of
    wheel_map_whole  wheel -> "level1" or "level2" -> word of the wheel -> class
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mecap_jax.json_files import parse_json
from mecap_jax.rewards.base import RewardError

LEVELS = ("level1", "level2")


@dataclasses.dataclass(frozen=True)
class EmotionWheels:
    """The class of each known word on each wheel.

    Attributes:
      wheels: per wheel, class by word, lower case. Not every word has a class on every wheel.
    """

    wheels: tuple[Mapping[str, str], ...]

    def classes_of(self, words: Sequence[str], keep_unknown: bool = False) -> list[set[str]]:
        """Returns per wheel the classes of the words that it knows.

        Args:
          words: words, in whatever case.
          keep_unknown: a word that no wheel knows counts as a class of its own, on every wheel.
        """
        plain = {word.strip().casefold() for word in words}
        unknown = {f"?{word}" for word in plain if not any(word in wheel for wheel in self.wheels)}
        known = [{wheel[word] for word in plain if word in wheel} for wheel in self.wheels]
        return [classes | unknown for classes in known] if keep_unknown else known


def load_wheels(path: str | Path, level: str = "level1") -> EmotionWheels:
    """Reads the mapping in JSON (see above), composed: word -> base forms -> words of the wheels -> class.

    Where several words of a wheel are reached, the first in the alphabet counts, as in the published code.

    Raises:
      RewardError: no such file, or one that does not hold the three dictionaries; names the file.
    """
    if level not in LEVELS:
        raise RewardError(f"emotion wheels have the levels {LEVELS}, not {level!r}")
    try:
        said = parse_json(Path(path).read_bytes())
        forms, synonyms = said["format_mapping"], said["raw_mapping"]
        wheels = [dict(wheel[level]) for _, wheel in sorted(said["wheel_map_whole"].items())]
        return EmotionWheels(tuple(_compose(forms, synonyms, wheel) for wheel in wheels))
    except OSError as error:
        raise RewardError(f"emotion wheels {str(path)!r} cannot be read: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RewardError(f"{str(path)!r} holds no emotion wheels: {type(error).__name__}: {error}") from error


def _compose(forms: Mapping[str, Any], synonyms: Mapping[str, Any], wheel: Mapping[str, str]) -> dict[str, str]:
    composed = {}
    for word, bases in forms.items():
        reached = sorted(near for base in bases for near in synonyms[base])
        classes = [wheel[near] for near in reached if near in wheel]
        if classes:
            composed[word.casefold()] = classes[0]
    return composed
