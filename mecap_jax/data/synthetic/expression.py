"""How an emotion looks: `expression_of` draws the facial action units of one clip, `motion_of` their course in time.

Action units follow the Facial Action Coding System (Ekman, Friesen and Hager 2002); which of them show an emotion
follows the prototypes and major variants of its Investigator's Guide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

# inner and outer brow raiser, brow lowerer, upper lid raiser, cheek raiser, lid tightener, nose wrinkler, upper lip
# raiser, lip corner puller and depressor, chin raiser, lip stretcher, lip tightener, lips part, jaw drop, lid droop
ACTION_UNITS = (
    "AU1", "AU2", "AU4", "AU5", "AU6", "AU7", "AU9", "AU10", "AU12", "AU15", "AU17", "AU20", "AU23", "AU25", "AU26",
    "AU43",
)  # fmt: skip

# Several displays an emotion, each the action units at full strength.
_DISPLAYS = {
    "neutral": (dict(),),
    "happy": (
        dict(AU12=1.0, AU6=0.9, AU25=0.7),
        dict(AU12=0.9, AU6=0.5),
        dict(AU12=1.0, AU6=1.0, AU25=0.8, AU26=0.5),
    ),
    "sad": (
        dict(AU1=1.0, AU4=0.4, AU15=1.0, AU17=0.5),
        dict(AU1=0.9, AU15=0.7, AU43=0.8),
        dict(AU1=1.0, AU4=0.6, AU15=0.9, AU43=0.4, AU17=0.9),
    ),
    "angry": (
        dict(AU4=1.0, AU5=0.4, AU7=0.5, AU23=1.0),
        dict(AU4=1.0, AU7=0.9, AU10=0.4, AU25=0.9),
        dict(AU4=1.0, AU7=0.8, AU23=0.8, AU17=0.6),
    ),
    "surprised": (
        dict(AU1=1.0, AU2=1.0, AU5=0.9, AU25=0.6, AU26=1.0),
        dict(AU1=0.9, AU2=1.0, AU5=0.5, AU25=0.4, AU26=0.6),
        dict(AU1=1.0, AU2=1.0, AU5=1.0, AU26=0.8),
    ),
    "disgusted": (
        dict(AU9=1.0, AU10=0.8, AU4=0.4, AU7=0.5),
        dict(AU10=1.0, AU9=0.6, AU15=0.6, AU17=0.6),
        dict(AU9=1.0, AU10=1.0, AU25=0.5, AU43=0.4),
    ),
    "fearful": (
        dict(AU1=1.0, AU2=0.5, AU4=0.6, AU5=1.0, AU20=1.0, AU25=0.7),
        dict(AU1=1.0, AU2=0.4, AU4=0.5, AU5=0.8, AU20=0.8, AU26=0.4),
        dict(AU1=0.9, AU4=0.6, AU5=1.0, AU20=0.9),
    ),
}
_STRENGTH = {"mild": 0.5, "moderate": 0.75, "strong": 1.0}

Expression = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Motion:
    """The course of an expression: one value a frame, each `[frames]` float64.

    Attributes:
      amount: share of the expression that shows, in [0, 1].
      blink: how far the eyes are shut by a blink, in [0, 1].
      shift_x, shift_y: displacement of the head, in frame widths.
      roll: tilt of the head in radians.
    """

    amount: np.ndarray
    blink: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray
    roll: np.ndarray


def expression_of(emotion: str, intensity: str, rng: np.random.Generator) -> Expression:
    """Draws the action units of one clip at their apex, each in [0, 1.2]; absent ones are 0."""
    display = _DISPLAYS[emotion][rng.integers(len(_DISPLAYS[emotion]))]
    strength = 0.0 if emotion == "neutral" else _STRENGTH[intensity]
    units = {}
    for unit in ACTION_UNITS:
        size = display.get(unit, 0.0) * strength * rng.uniform(0.75, 1.2)
        units[unit] = float(np.clip(size + rng.normal(0.0, 0.03), 0.0, 1.2))
    return units


def motion_of(frames: int, rng: np.random.Generator) -> Motion:
    """Draws onset and apex of an expression, blinks and small head movements for `frames` frames."""
    position = np.linspace(0.0, 1.0, frames)
    onset = rng.uniform(0.1, 0.4)
    rise = np.clip(position / onset, 0.0, 1.0)
    amount = 0.45 + 0.55 * rise * rise * (3.0 - 2.0 * rise)
    blink = np.zeros(frames)
    if rng.random() < 0.7:
        at = int(rng.integers(frames))
        blink[at : at + 2] = (1.0, 0.5)[: len(blink[at : at + 2])]
    return Motion(
        amount=amount,
        blink=blink,
        shift_x=_sway(position, 0.012, rng),
        shift_y=_sway(position, 0.010, rng),
        roll=_sway(position, 0.03, rng),
    )


def at_apex(rng: np.random.Generator) -> Motion:
    """Draws the one frame of a picture: the whole expression, and how the head is held."""
    motion = motion_of(1, rng)
    return dataclasses.replace(motion, amount=np.ones(1), blink=np.zeros(1))


def _sway(position: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    offset, amplitude = rng.normal(0.0, size), rng.normal(0.0, size)
    return offset + amplitude * np.sin(2.0 * np.pi * (rng.uniform(0.5, 1.5) * position + rng.random()))
