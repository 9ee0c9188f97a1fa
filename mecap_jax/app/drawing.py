"""Small pictures as SVG and HTML, drawn from numbers alone: they hold no script and load nothing.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, as in the report.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mecap_jax.app.curves import Curve
from mecap_jax.evaluation.players import data_address

COLOURS = ("#D55E00", "#0072B2")  # of the first and the second run, or checkpoint
_WIDTH, _HEIGHT = 320, 120
_LEFT, _TOP, _BOTTOM = 46, 8, 18  # room around the curves
_LONGEST_SIDE = 160  # pixels of a frame


def bars(labels: Sequence[str], values: Float[np.ndarray, " K"]) -> str:
    """A bar a label; negative values go left from the middle."""
    largest = max(1e-9, float(np.abs(values).max(initial=0.0)))
    signed = bool((values < 0).any())
    rows = []
    for label, value in zip(labels, values.tolist(), strict=True):
        share = 100 * abs(value) / largest / (2 if signed else 1)
        left = (50 - share if value < 0 else 50) if signed else 0
        bar = f'<i style="left:{left:.1f}%;width:{share:.1f}%"></i>'
        rows.append(f"<dt>{html.escape(label)}</dt><dd>{bar}</dd><dd>{value:.2f}</dd>")
    return f'<dl class="bars">{"".join(rows)}</dl>'


def waveform(outline: Float[np.ndarray, "P 2"], seconds: float) -> str:
    """The outline of a sound, loudest at full height."""
    scaled = outline / max(1e-9, float(np.abs(outline).max()))
    n = len(scaled)
    above = [f"{x},{50 - 48 * high:.1f}" for x, high in enumerate(scaled[:, 1].tolist())]
    below = [f"{x},{50 - 48 * low:.1f}" for x, low in enumerate(scaled[:, 0].tolist())]
    points = " ".join(above + below[::-1])
    shape = f'<polygon points="{points}" fill="{COLOURS[1]}" stroke="{COLOURS[1]}" stroke-width="0.6"/>'
    svg = f'<svg viewBox="0 0 {max(1, n - 1)} 100" preserveAspectRatio="none" role="img">{shape}</svg>'
    return f'<figure class="wave">{svg}<figcaption>sound, {seconds:.2f} s</figcaption></figure>'


def frames(pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> str:
    """Pictures in a row, as JPEG in the page itself."""
    shown = []
    for number, pixels in enumerate(pictures, start=1):
        picture = Image.fromarray(np.asarray(pixels))
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        shown.append(f'<img alt="frame {number}" src="{data_address("image/jpeg", file.getvalue())}">')
    return f'<figure class="frames">{"".join(shown)}<figcaption>{len(shown)} frames</figcaption></figure>'


def chart(title: str, curves: Sequence[Curve | None]) -> str:
    """Curves over steps in one panel, each in the colour of its place; those that are None are not there."""
    there = [curve for curve in curves if curve is not None and curve.steps]
    steps = [step for curve in there for step in curve.steps]
    values = [value for curve in there for value in curve.values]
    if not steps:
        return ""
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def place(step: float, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - 6) * ((step - first) / (last - first) if last > first else 0.5)
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    parts = []
    for curve, colour in zip(curves, COLOURS):
        if curve is None or not curve.steps:
            continue
        points = list(map(place, curve.steps, curve.values))
        if len(points) == 1:
            x, _, y = points[0].partition(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - 6
    texts = (
        (_LEFT - 5, _TOP + 8, "end", _number(high - pad)),
        (_LEFT - 5, bottom, "end", _number(low + pad)),
        (_LEFT, _HEIGHT - 4, "start", str(first)),
        (right, _HEIGHT - 4, "end", str(last)),
    )
    labels = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in texts)
    axes = f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".35"/>'
    name = html.escape(title)
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{axes}{labels}{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{name}</figcaption>{svg}</figure>'


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.0e}" if math.isfinite(value) else "?"
