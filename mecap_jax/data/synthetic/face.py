"""A drawn face: `identity_of` draws who it is, `render` gives the frames of one clip.

Everything is a polygon in face coordinates (origin between the eyes' and the mouth's height, x to the right, y down,
1 the width of the frame), moved with the head and drawn three times larger than the frame, then averaged down.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from mecap_jax.data.synthetic.expression import Expression, Motion

SIZE = 112

_SCALE = 3
_ZOOM = 1.18  # the face fills the frame; hair and ears may be cut
_SKINS = ((245, 214, 190), (233, 190, 158), (214, 166, 130), (186, 132, 96), (154, 104, 74), (126, 84, 60))
_BROWN = 420  # sum of RGB; brows stay visible on darker skin because hair is dark there, too
_DARK_HAIR = ((20, 16, 16), (44, 30, 24), (70, 48, 34))
_HAIR = ((28, 24, 24), (60, 40, 28), (104, 70, 42), (160, 112, 60), (206, 170, 104), (130, 128, 128), (120, 52, 30))
_IRIS = ((70, 48, 30), (96, 70, 40), (70, 110, 80), (80, 120, 160), (60, 60, 70))
_BACKGROUND = ((168, 188, 204), (196, 190, 176), (150, 170, 150), (190, 170, 184), (120, 132, 150), (208, 208, 212))
_BLACK, _DARK, _WHITE, _MOUTH = (14, 10, 10), (40, 26, 24), (244, 242, 238), (74, 22, 26)
_T = np.linspace(-1.0, 1.0, 17)
_ARCH = 1.0 - _T * _T


@dataclasses.dataclass(frozen=True)
class Identity:
    """Whose face: colours are RGB, lengths are in frame widths."""

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    iris: tuple[int, int, int]
    lips: tuple[int, int, int]
    background: tuple[int, int, int]
    long_hair: bool
    fringe: float
    beard: bool
    glasses: bool
    width: float
    height: float
    jaw: float
    eye_spacing: float
    eye_size: float
    brow_thickness: float
    brow_height: float
    nose: float
    mouth_width: float
    lip_thickness: float


def identity_of(gender: str, rng: np.random.Generator) -> Identity:
    """Draws a face for a "woman" or a "man"."""
    woman = gender == "woman"

    def pick(colours):
        return colours[rng.integers(len(colours))]

    skin = pick(_SKINS)
    red = (178, 62, 70) if woman else (150, 84, 76)
    return Identity(
        skin=skin,
        hair=pick(_HAIR if sum(skin) > _BROWN else _DARK_HAIR),
        iris=pick(_IRIS),
        lips=_mix(skin, red, rng.uniform(0.55, 0.8) if woman else rng.uniform(0.35, 0.55)),
        background=pick(_BACKGROUND),
        long_hair=bool(rng.random() < (0.8 if woman else 0.06)),
        fringe=float(rng.uniform(0.0, 0.06)),
        beard=bool(not woman and rng.random() < 0.3),
        glasses=bool(rng.random() < 0.15),
        width=float(rng.uniform(0.335, 0.365) if woman else rng.uniform(0.35, 0.39)),
        height=float(rng.uniform(0.45, 0.49)),
        jaw=float(rng.uniform(0.5, 0.68) if woman else rng.uniform(0.65, 0.85)),
        eye_spacing=float(rng.uniform(0.145, 0.168)),
        eye_size=float(rng.uniform(0.95, 1.15) if woman else rng.uniform(0.85, 1.02)),
        brow_thickness=float(rng.uniform(0.02, 0.026) if woman else rng.uniform(0.026, 0.036)),
        brow_height=float(rng.uniform(0.105, 0.12)),
        nose=float(rng.uniform(0.85, 1.2)),
        mouth_width=float(rng.uniform(0.115, 0.135)),
        lip_thickness=float(rng.uniform(0.03, 0.04) if woman else rng.uniform(0.02, 0.03)),
    )


def render(identity: Identity, expression: Expression, motion: Motion, speech: np.ndarray) -> np.ndarray:
    """Returns the frames of a clip, uint8 `[frames, SIZE, SIZE, 3]`.

    Args:
      identity: whose face.
      expression: action units at the apex.
      motion: their course and the movements of the head.
      speech: how far speech opens the mouth in each frame, in [0, 1].
    """
    frames = np.empty((len(motion.amount), SIZE, SIZE, 3), np.uint8)
    for i, amount in enumerate(motion.amount):
        units = {name: value * amount for name, value in expression.items()}
        pen = _Pen(identity.background, motion.shift_x[i], motion.shift_y[i], motion.roll[i])
        _draw(pen, identity, units, motion.blink[i], speech[i])
        frames[i] = pen.pixels()
    return frames


def in_pencil(frames: np.ndarray) -> np.ndarray:
    """Returns frames as a pencil would have drawn them: pale greys, and a dark line where colours meet."""
    grey = frames.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    down, across = np.gradient(grey, axis=(1, 2))
    drawn = 150.0 + 0.4 * grey - 2.5 * np.hypot(down, across)
    return np.repeat(np.clip(drawn, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


class _Pen:
    """Draws shapes given in face coordinates onto one frame."""

    def __init__(self, background, shift_x: float, shift_y: float, roll: float):
        self._image = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), background)
        self._canvas = ImageDraw.Draw(self._image)
        cos, sin = (f(roll) * _ZOOM * SIZE * _SCALE for f in (np.cos, np.sin))
        self._matrix = np.array([[cos, sin], [-sin, cos]])
        self._origin = np.array([0.5 + shift_x, 0.5 + shift_y]) * SIZE * _SCALE

    def shape(self, x, y, colour):
        self._canvas.polygon(self._place(x, y), fill=colour)

    def line(self, x, y, colour, width: float):
        self._canvas.line(self._place(x, y), fill=colour, width=max(1, round(width * SIZE * _SCALE)), joint="curve")

    def oval(self, x: float, y: float, radius_x: float, radius_y: float, colour):
        angle = np.linspace(0.0, 2.0 * np.pi, 33)
        self.shape(x + radius_x * np.cos(angle), y + radius_y * np.sin(angle), colour)

    def pixels(self) -> np.ndarray:
        return np.asarray(self._image.reduce(_SCALE))

    def _place(self, x, y) -> list[float]:
        x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        return (np.stack([x, y], 1) @ self._matrix + self._origin).ravel().tolist()


def _draw(pen: _Pen, identity: Identity, units: Expression, blink: float, speech: float):
    jaw = 0.075 * units["AU26"] + 0.04 * speech
    _head(pen, identity, jaw)
    _folds(pen, identity, units)
    _mouth(pen, identity, units, jaw)
    _nose(pen, identity, units)
    for side in (-1.0, 1.0):
        _eye(pen, identity, units, blink, side)
        _brow(pen, identity, units, side)


def _head(pen: _Pen, identity: Identity, jaw: float):
    w, h, skin, hair = identity.width, identity.height, identity.skin, identity.hair
    if identity.long_hair:
        pen.shape([-w - 0.07, -w - 0.09, -0.25, 0.25, w + 0.09, w + 0.07], [0.6, -0.2, -0.52, -0.52, -0.2, 0.6], hair)
    pen.shape([-0.15, -0.15, 0.15, 0.15], [0.3, 0.7, 0.7, 0.3], _mix(skin, _DARK, 0.18))
    pen.oval(0.0, -0.08, w + 0.035, h - 0.02, hair)
    for side in (-1.0, 1.0):
        pen.oval(side * w, 0.02, 0.035, 0.06, _mix(skin, _DARK, 0.08))
    angle = np.linspace(0.0, 2.0 * np.pi, 61)
    x, y = np.cos(angle), np.sin(angle)
    # Below the eyes the outline runs between an ellipse and a square jaw; an open jaw lengthens it.
    x_face = w * np.sign(x) * np.abs(x) ** np.where(y > 0.0, 1.0 - 0.45 * (identity.jaw - 0.3), 1.0)
    y_face = np.where(y > 0.0, (h - 0.03 + 0.6 * jaw) * y, (h - 0.06) * y)
    pen.shape(x_face, y_face, skin)
    if identity.beard:
        band = np.linspace(0.12 * np.pi, 0.88 * np.pi, 31)
        x, y = np.cos(band), np.sin(band)
        x_beard = w * np.sign(x) * np.abs(x) ** (1.0 - 0.45 * (identity.jaw - 0.3))
        pen.shape(
            np.concatenate([x_beard, 0.62 * w * np.cos(band[::-1])]),
            np.concatenate([(h - 0.03 + 0.6 * jaw) * y, 0.06 + (0.26 + 0.5 * jaw) * y[::-1]]),
            _mix(skin, hair, 0.55),
        )
    crown = np.linspace(np.pi, 2.0 * np.pi, 31)
    pen.shape(
        np.concatenate([(w + 0.03) * np.cos(crown), w * np.cos(crown[::-1]) * 0.98]),
        np.concatenate(
            [-0.06 + (h - 0.02) * np.sin(crown), -0.10 + (h - 0.18 - identity.fringe) * np.sin(crown[::-1])]
        ),
        hair,
    )


def _folds(pen: _Pen, identity: Identity, units: Expression):
    """Wrinkles: forehead, furrow between the brows, bridge of the nose, cheeks, chin."""
    deep = _mix(identity.skin, _DARK, 0.42)
    raised = min(units["AU1"], units["AU2"])
    for k in range(2):
        if raised > 0.3:
            pen.line(0.17 * _T, -0.245 - 0.035 * k - 0.012 * _ARCH, _mix(identity.skin, deep, raised), 0.008)
    if units["AU4"] > 0.25:
        for side in (-1.0, 1.0):
            x = side * np.array([0.022, 0.016])
            pen.line(x, [-0.20, -0.12], _mix(identity.skin, deep, units["AU4"]), 0.011)
    if units["AU9"] > 0.2:
        for k in range(3):
            pen.line(0.042 * _T, -0.055 + 0.03 * k + 0.014 * _ARCH, _mix(identity.skin, deep, units["AU9"]), 0.009)
    fold = max(units["AU12"], units["AU9"], units["AU10"])
    if fold > 0.2:
        for side in (-1.0, 1.0):
            x = side * np.array([0.075, 0.125, 0.155 + 0.02 * units["AU12"]])
            pen.line(x, [0.115, 0.16, 0.23], _mix(identity.skin, deep, 0.85 * min(fold, 1.0)), 0.010)
    if units["AU6"] > 0.25:
        blush = _mix(identity.skin, (214, 92, 80), 0.28 * units["AU6"])
        for side in (-1.0, 1.0):
            pen.oval(side * 0.205, 0.105, 0.07, 0.045, blush)
            for k in (-1.0, 0.0, 1.0):
                x = side * (identity.eye_spacing + np.array([0.085, 0.125]))
                pen.line(x, [-0.045 + 0.012 * k, -0.05 + 0.03 * k], _mix(identity.skin, deep, units["AU6"]), 0.007)
    if units["AU17"] > 0.25:
        pen.line(0.05 * _T, 0.345 - 0.018 * _ARCH, _mix(identity.skin, deep, 0.8 * units["AU17"]), 0.010)


def _nose(pen: _Pen, identity: Identity, units: Expression):
    lift = 0.022 * units["AU9"]
    shade = _mix(identity.skin, _DARK, 0.28)
    width = 0.042 * identity.nose * (1.0 + 0.35 * units["AU9"] + 0.1 * units["AU10"])
    pen.line([-0.018, -0.03, -width, -0.3 * width], [-0.04, 0.05, 0.115 - lift, 0.135 - lift], shade, 0.010)
    pen.line([-width, 0.0, width], [0.118 - lift, 0.137 - lift, 0.118 - lift], shade, 0.011)
    for side in (-1.0, 1.0):
        pen.oval(side * 0.5 * width, 0.122 - lift, 0.010, 0.007, _mix(identity.skin, _DARK, 0.7))


def _eye(pen: _Pen, identity: Identity, units: Expression, blink: float, side: float):
    x0, y0 = side * identity.eye_spacing, -0.05
    half = 0.073 * identity.eye_size
    closing = 0.35 * units["AU7"] + 0.25 * units["AU6"] + 0.55 * units["AU43"] + 0.3 * units["AU9"]
    upper = 0.042 * identity.eye_size * max(0.12, 1.0 + 0.85 * units["AU5"] - closing) * (1.0 - blink)
    lower = 0.028 * identity.eye_size * max(0.1, 1.0 + 0.2 * units["AU5"] - 0.6 * units["AU7"] - 0.8 * units["AU6"])
    lower *= 1.0 - 0.4 * blink
    # Sad eyes slope down and out, the angry inner corner dips.
    slope = side * _T * (0.012 * units["AU1"] - 0.014 * units["AU4"])
    x, top, bottom = x0 + half * _T, y0 - upper * _ARCH + slope, y0 + lower * _ARCH + slope
    pen.shape(np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]]), _WHITE)
    for radius, colour in ((0.036 * identity.eye_size, identity.iris), (0.017 * identity.eye_size, _DARK)):
        xi = np.linspace(-radius, radius, 13)
        chord = np.sqrt(np.maximum(radius**2 - xi**2, 0.0))
        t = xi / half
        tilt = side * t * (0.012 * units["AU1"] - 0.014 * units["AU4"])
        low = np.minimum(y0 - 0.004 + chord, y0 + lower * (1.0 - t * t) + tilt)
        high = np.minimum(np.maximum(y0 - 0.004 - chord, y0 - upper * (1.0 - t * t) + tilt), low)
        pen.shape(np.concatenate([x0 + xi, x0 + xi[::-1]]), np.concatenate([high, low[::-1]]), colour)
    pen.line(x, top, _DARK, 0.015)
    pen.line(x, bottom, _mix(identity.skin, _DARK, 0.45), 0.007)
    if units["AU7"] > 0.3 or units["AU6"] > 0.4:
        pen.line(x, bottom + 0.022, _mix(identity.skin, _DARK, 0.3), 0.008)
    if identity.glasses:
        angle = np.linspace(0.0, 2.0 * np.pi, 33)
        pen.line(x0 + 0.112 * np.cos(angle), y0 + 0.092 * np.sin(angle), (30, 30, 36), 0.012)
        pen.line([x0 - side * 0.11, 0.0], [y0 - 0.01, y0 - 0.015], (30, 30, 36), 0.012)


def _brow(pen: _Pen, identity: Identity, units: Expression, side: float):
    inner, outer, lower = units["AU1"], units["AU2"], units["AU4"]
    x = np.array([identity.eye_spacing - 0.078 - 0.022 * lower, identity.eye_spacing, identity.eye_spacing + 0.095])
    y = -0.05 - identity.brow_height + np.array([0.01, -0.018, 0.012])
    y += inner * np.array([-0.075, -0.028, 0.012])
    y += outer * np.array([-0.012, -0.05, -0.05])
    y += lower * np.array([0.072, 0.038, -0.004])
    y += units["AU9"] * np.array([0.03, 0.015, 0.0])
    # A parabola through the three points, thick inside and thin outside.
    t = np.linspace(0.0, 2.0, 13)
    basis = np.stack([(t - 1.0) * (t - 2.0) / 2.0, t * (2.0 - t), t * (t - 1.0) / 2.0])
    curve_x, curve_y = side * (x @ basis), y @ basis
    half = 0.5 * identity.brow_thickness * (1.25 - 0.45 * t)
    pen.shape(
        np.concatenate([curve_x, curve_x[::-1]]),
        np.concatenate([curve_y - half, (curve_y + half)[::-1]]),
        _mix(identity.hair, _BLACK, 0.75),
    )


def _mouth(pen: _Pen, identity: Identity, units: Expression, jaw: float):
    half = identity.mouth_width * (
        1.0 + 0.38 * units["AU12"] + 0.4 * units["AU20"] - 0.22 * units["AU23"] - 0.28 * units["AU26"]
    )
    corner = -0.07 * units["AU12"] + 0.06 * units["AU15"] + 0.012 * units["AU20"]
    parting = 0.032 * units["AU25"] + 0.02 * units["AU20"]
    lip = identity.lip_thickness * (1.0 - 0.6 * min(units["AU23"], 1.0) - 0.2 * units["AU20"])
    squareness = 0.25 + 0.25 * min(units["AU20"] + units["AU10"] + units["AU12"], 1.0)
    bulge = _ARCH ** (0.75 - squareness)
    x = half * _T
    seam = 0.235 + corner * (_T * _T - 0.2) - 0.012 * units["AU17"] * _ARCH
    raised = 0.038 * units["AU10"] + 0.015 * units["AU9"]
    top = seam - (0.45 * parting + 0.15 * jaw + raised) * bulge
    bottom = seam + (0.55 * parting + 0.95 * jaw - 0.4 * raised) * bulge
    bottom = np.maximum(bottom, top)
    pen.shape(
        np.concatenate([x, x[::-1]]),
        np.concatenate([top - lip * 0.8 * np.sqrt(_ARCH), (bottom + lip * np.sqrt(_ARCH))[::-1]]),
        identity.lips,
    )
    pen.shape(np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]]), _MOUTH)
    gap = bottom - top
    teeth = np.minimum(gap, 0.026 + 0.03 * min(units["AU20"] + units["AU10"], 1.0))
    inside = np.abs(_T) < 0.93
    if gap.max() > 0.012 and max(units["AU12"], units["AU10"], units["AU20"], units["AU25"]) > 0.2:
        pen.shape(
            np.concatenate([x[inside], x[inside][::-1]]),
            np.concatenate([top[inside], (top + 0.9 * teeth)[inside][::-1]]),
            _WHITE,
        )
    if gap.max() < 0.012:
        pen.line(x, seam, _mix(identity.lips, _DARK, 0.6), 0.010)
    if units["AU15"] > 0.3 or units["AU12"] > 0.3 or units["AU20"] > 0.3:
        for side in (-1.0, 1.0):
            end = side * half
            pen.line(
                [end, end + side * 0.012], [seam[0], seam[0] + 0.25 * corner], _mix(identity.skin, _DARK, 0.5), 0.010
            )


def _mix(a, b, share: float) -> tuple[int, int, int]:
    share = min(max(share, 0.0), 1.0)
    return tuple(round((1.0 - share) * p + share * q) for p, q in zip(a, b))
