"""Closed outlines from straight lines and ellipses, and the painted parts that they make up.

Coordinates are x right, y down, in the units of the shape that uses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Tone = Literal["main", "dark", "light", "ink", "glass"]
"""main, dark and light follow the object's colour; ink (near black) and glass (pale) do not."""

Outline = npt.NDArray[np.float32]
"""A closed outline, shape (points, 2), x and y in unit coordinates."""


@dataclass(frozen=True, slots=True)
class Part:
    """One painted layer of a shape.

    Attributes:
        outlines: closed outlines, each (points, 2), filled by the even-odd rule.
        tone: which of the object's tones fills it.
        inside: whether the layer lies within earlier layers, so that it cannot change the silhouette.
    """

    outlines: tuple[Outline, ...]
    tone: Tone
    inside: bool


def polygon(points: str) -> Outline:
    """Straight lines through corners in unit coordinates, written as in SVG: "x,y x,y ..."."""
    return np.array([[float(value) for value in corner.split(",")] for corner in points.split()], dtype=np.float32)


def ellipse(
    x: float, y: float, rx: float, ry: float, *, tilt: float = 0.0, start: float = 0.0, stop: float = 360.0
) -> Outline:
    """Points on an ellipse (or an arc of it, closed by its chord); angles in degrees, clockwise on screen."""
    steps = max(6, round(22 * (stop - start) / 360.0))
    full = stop - start >= 360.0
    t = np.radians(np.linspace(start, stop, steps, endpoint=not full))
    px, py = rx * np.cos(t), ry * np.sin(t)
    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1).astype(np.float32)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Outline:
    """An upright rectangle between two corners."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float32)


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Outline:
    """A straight stroke of the given width as a rectangle."""
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    corners = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
    return np.array(corners, dtype=np.float32)


def star(points: int, inner: float) -> Outline:
    """A star of radius 1, one point up; `inner` is the radius of the notches."""
    t = np.arange(2 * points) * math.pi / points - math.pi / 2
    r = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([r * np.cos(t), r * np.sin(t)], axis=1).astype(np.float32)


def outer(tone: Tone, *outlines: Outline) -> Part:
    """A part that belongs to the silhouette."""
    return Part(outlines, tone, inside=False)


def inner(tone: Tone, *outlines: Outline) -> Part:
    """A part that lies within earlier ones."""
    return Part(outlines, tone, inside=True)


def heart() -> Outline:
    """A heart about 2 wide, point down."""
    t = np.linspace(0, 2 * math.pi, 30, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -y / 17], axis=1).astype(np.float32)


def crescent() -> Outline:
    """A waning moon of radius 1, open to the right."""
    outer = ellipse(0, 0, 1, 1, start=50, stop=310)
    x1, y1 = float(outer[-1, 0]), float(outer[-1, 1])
    radius = math.hypot(x1 - 0.55, y1)
    half = math.degrees(math.atan2(-y1, x1 - 0.55))
    inner = ellipse(0.55, 0, radius, radius, start=half, stop=360 - half)
    return np.concatenate([outer, inner[::-1]]).astype(np.float32)


def petals(count: int) -> list[Part]:
    """Petals in a ring around (0, -0.35)."""
    petals = []
    for k in range(count):
        angle = 360.0 * k / count - 90
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        petals.append(outer("main", ellipse(0.5 * c, -0.35 + 0.5 * s, 0.36, 0.25, tilt=angle)))
    return petals


def canopy() -> Outline:
    """The umbrella's dome with a scalloped lower edge."""
    dome = ellipse(0, 0, 1, 0.85, start=180, stop=360)
    scallops = [ellipse(x, 0, 0.25, 0.12, start=180, stop=360)[::-1] for x in (0.75, 0.25, -0.25, -0.75)]
    return np.concatenate([dome, *scallops]).astype(np.float32)
