"""The shapes: every kind of thing as filled outlines in a unit square.

Coordinates are x right, y down, roughly within [-1, 1]; `shape_of` centres each kind and scales it so that its longer
side is exactly 1. A part is a set of closed outlines in one tone, filled by the even-odd rule, so that an inner outline
is a hole; parts are painted in order. Corners are written as in SVG's `points`. Everything is invented here from
straight lines and ellipses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

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


_SHAPES: Final[dict[str, Callable[[], Sequence[Part]]]] = {
    "apple": lambda: [
        outer("main", ellipse(-0.32, 0.1, 0.52, 0.68)),
        outer("main", ellipse(0.32, 0.1, 0.52, 0.68)),
        outer("ink", bar(0, -0.45, 0.1, -0.95, 0.12)),
        outer("dark", ellipse(0.38, -0.8, 0.3, 0.12, tilt=-20)),
        inner("light", ellipse(-0.45, -0.15, 0.12, 0.2, tilt=20)),
    ],
    "arrow": lambda: [
        outer("main", polygon("-1,-0.2 0.2,-0.2 0.2,-0.6 1,0 0.2,0.6 0.2,0.2 -1,0.2")),
    ],
    "ball": lambda: [
        outer("main", ellipse(0, 0, 1, 1)),
        inner("dark", ellipse(0, 0, 1, 0.28), ellipse(0, 0, 1, 0.12)),
        inner("dark", ellipse(0, 0, 0.28, 1), ellipse(0, 0, 0.12, 1)),
        inner("light", ellipse(-0.4, -0.5, 0.22, 0.13, tilt=-40)),
    ],
    "balloon": lambda: [
        outer("ink", bar(0, 0.6, 0.06, 1.7, 0.07)),
        outer("main", ellipse(0, -0.2, 0.72, 0.88)),
        outer("dark", polygon("0,0.6 -0.16,0.82 0.16,0.82")),
        inner("light", ellipse(-0.28, -0.5, 0.12, 0.24, tilt=25)),
    ],
    "bell": lambda: [
        outer("dark", ellipse(0, -0.92, 0.16, 0.16)),
        outer("dark", ellipse(0, 0.82, 0.2, 0.2)),
        outer("main", polygon("-0.18,-0.8 0.18,-0.8 0.45,-0.55 0.55,0.2 0.9,0.7 -0.9,0.7 -0.55,0.2 -0.45,-0.55")),
        inner("dark", rectangle(-0.6, 0.36, 0.6, 0.5)),
    ],
    "bird": lambda: [
        outer("dark", polygon("-0.6,0.05 -1.25,-0.25 -1.15,0.25 -0.6,0.3")),
        outer("main", ellipse(0, 0.1, 0.75, 0.48)),
        outer("main", ellipse(0.6, -0.35, 0.34, 0.34)),
        outer("ink", polygon("0.88,-0.45 1.3,-0.28 0.88,-0.2")),
        inner("dark", polygon("-0.4,-0.1 0.3,-0.05 -0.15,0.42")),
        inner("ink", ellipse(0.68, -0.42, 0.07, 0.07)),
        outer("ink", bar(-0.1, 0.5, -0.1, 0.9, 0.07), bar(0.15, 0.5, 0.15, 0.9, 0.07)),
    ],
    "boat": lambda: [
        outer("ink", bar(0, 0.3, 0, -1.1, 0.09)),
        outer("main", polygon("0.1,-1.05 0.85,0.12 0.1,0.12")),
        outer("light", polygon("-0.1,-0.85 -0.1,0.12 -0.7,0.12")),
        outer("main", polygon("-1,0.28 1,0.28 0.65,0.8 -0.65,0.8")),
        inner("dark", polygon("-0.94,0.38 0.94,0.38 0.86,0.5 -0.86,0.5")),
    ],
    "book": lambda: [
        outer("main", polygon("0,-0.55 -1,-0.75 -1,0.6 0,0.8")),
        outer("main", polygon("0,-0.55 1,-0.75 1,0.6 0,0.8")),
        inner("glass", polygon("-0.06,-0.42 -0.88,-0.6 -0.88,0.46 -0.06,0.64")),
        inner("glass", polygon("0.06,-0.42 0.88,-0.6 0.88,0.46 0.06,0.64")),
        inner("main", *(bar(-0.78, y - 0.16, -0.16, y, 0.08) for y in (-0.2, 0.05, 0.3))),
        inner("main", *(bar(0.78, y - 0.16, 0.16, y, 0.08) for y in (-0.2, 0.05, 0.3))),
    ],
    "bottle": lambda: [
        outer("ink", rectangle(-0.17, -1.1, 0.17, -0.92)),
        outer("main", polygon("-0.14,-0.92 0.14,-0.92 0.14,-0.5 0.36,-0.2 0.36,1.0 -0.36,1.0 -0.36,-0.2 -0.14,-0.5")),
        inner("glass", rectangle(-0.36, 0.1, 0.36, 0.6)),
        inner("light", bar(-0.22, -0.1, -0.22, 0.05, 0.1)),
    ],
    "bus": lambda: [
        outer("main", polygon("-1.1,-0.6 1.0,-0.6 1.1,-0.4 1.1,0.5 -1.1,0.5")),
        inner("glass", *(rectangle(x, -0.42, x + 0.38, -0.02) for x in (-0.98, -0.48, 0.02))),
        inner("glass", rectangle(0.55, -0.42, 1.02, 0.1)),
        inner("dark", rectangle(-1.1, 0.22, 1.1, 0.34)),
        outer("ink", ellipse(-0.6, 0.52, 0.24, 0.24)),
        outer("ink", ellipse(0.6, 0.52, 0.24, 0.24)),
    ],
    "butterfly": lambda: [
        outer("main", ellipse(-0.52, -0.32, 0.55, 0.38, tilt=35)),
        outer("main", ellipse(0.52, -0.32, 0.55, 0.38, tilt=-35)),
        outer("dark", ellipse(-0.4, 0.38, 0.4, 0.3, tilt=-40)),
        outer("dark", ellipse(0.4, 0.38, 0.4, 0.3, tilt=40)),
        inner("light", ellipse(-0.58, -0.38, 0.2, 0.14, tilt=35)),
        inner("light", ellipse(0.58, -0.38, 0.2, 0.14, tilt=-35)),
        outer("ink", ellipse(0, 0, 0.1, 0.62)),
    ],
    "candle": lambda: [
        outer("main", rectangle(-0.28, -0.35, 0.28, 1.0)),
        inner("dark", rectangle(0.1, -0.35, 0.28, 1.0)),
        outer("ink", bar(0, -0.35, 0, -0.58, 0.07)),
        outer("glass", polygon("0,-1.2 0.2,-0.75 0.12,-0.5 -0.12,-0.5 -0.2,-0.75")),
        outer("dark", ellipse(0, 1.02, 0.62, 0.14)),
    ],
    "car": lambda: [
        outer("main", polygon("-1.1,0.0 -0.75,-0.08 -0.45,-0.55 0.35,-0.55 0.7,-0.08 1.1,0.05 1.12,0.42 -1.12,0.42")),
        inner("glass", polygon("-0.55,-0.08 -0.36,-0.42 -0.06,-0.42 -0.06,-0.08")),
        inner("glass", polygon("0.06,-0.08 0.06,-0.42 0.28,-0.42 0.5,-0.08")),
        inner("dark", bar(-1.1, 0.2, 1.1, 0.2, 0.06)),
        outer("ink", ellipse(-0.6, 0.42, 0.25, 0.25)),
        outer("ink", ellipse(0.6, 0.42, 0.25, 0.25)),
        inner("glass", ellipse(-0.6, 0.42, 0.1, 0.1)),
        inner("glass", ellipse(0.6, 0.42, 0.1, 0.1)),
    ],
    "cat": lambda: [
        outer("main", ellipse(0, 0.5, 0.52, 0.58)),
        outer("dark", bar(0.4, 0.95, 0.95, 0.6, 0.16)),
        outer("dark", bar(0.92, 0.65, 0.95, 0.1, 0.16)),
        outer("main", polygon("-0.52,-0.45 -0.5,-1.1 -0.08,-0.8")),
        outer("main", polygon("0.52,-0.45 0.5,-1.1 0.08,-0.8")),
        outer("main", ellipse(0, -0.4, 0.56, 0.48)),
        inner("glass", ellipse(-0.22, -0.46, 0.12, 0.1)),
        inner("glass", ellipse(0.22, -0.46, 0.12, 0.1)),
        inner("ink", ellipse(-0.22, -0.46, 0.04, 0.1)),
        inner("ink", ellipse(0.22, -0.46, 0.04, 0.1)),
        inner("light", ellipse(0, 0.6, 0.24, 0.32)),
        inner("ink", polygon("-0.08,-0.25 0.08,-0.25 0,-0.14")),
    ],
    "chair": lambda: [
        outer("dark", bar(0.0, 0.1, 0.0, 0.9, 0.13), bar(0.72, 0.1, 0.72, 0.9, 0.13)),
        outer("main", bar(-0.45, -1.1, -0.45, 1.1, 0.18)),
        outer("main", polygon("-0.5,0.0 0.7,0.0 0.85,0.22 -0.5,0.22")),
        outer("main", bar(0.55, 0.2, 0.55, 1.1, 0.15)),
        outer("main", polygon("-0.54,-1.1 -0.16,-1.0 -0.16,-0.2 -0.54,-0.1")),
    ],
    "crown": lambda: [
        outer("main", polygon("-1,0.6 -1,-0.5 -0.5,0.05 0,-0.75 0.5,0.05 1,-0.5 1,0.6")),
        outer("dark", ellipse(-1, -0.55, 0.13, 0.13)),
        outer("dark", ellipse(0, -0.8, 0.14, 0.14)),
        outer("dark", ellipse(1, -0.55, 0.13, 0.13)),
        inner("dark", rectangle(-1, 0.32, 1, 0.5)),
        inner("light", ellipse(0, 0.12, 0.13, 0.13)),
    ],
    "cup": lambda: [
        outer("dark", ellipse(0.62, 0.0, 0.42, 0.44), ellipse(0.62, 0.0, 0.24, 0.26)),
        outer("main", polygon("-0.75,-0.7 0.65,-0.7 0.5,0.8 -0.6,0.8")),
        outer("light", ellipse(-0.05, -0.7, 0.7, 0.17)),
        inner("ink", ellipse(-0.05, -0.68, 0.56, 0.11)),
    ],
    "fish": lambda: [
        outer("dark", polygon("-0.55,0.0 -1.2,-0.5 -1.05,0.0 -1.2,0.5")),
        outer("dark", polygon("-0.2,-0.4 0.15,-0.85 0.4,-0.38")),
        outer("main", ellipse(0.1, 0, 0.85, 0.52)),
        inner("dark", polygon("0.0,0.05 -0.35,0.28 -0.05,0.32")),
        inner("glass", ellipse(0.6, -0.12, 0.13, 0.13)),
        inner("ink", ellipse(0.62, -0.12, 0.07, 0.07)),
        inner("dark", bar(0.34, -0.36, 0.34, 0.36, 0.07)),
    ],
    "flower": lambda: [
        outer("ink", bar(0, -0.2, 0, 1.2, 0.1)),
        outer("ink", ellipse(0.28, 0.72, 0.32, 0.12, tilt=-35)),
        *petals(6),
        inner("glass", ellipse(0, -0.35, 0.24, 0.24)),
    ],
    "hat": lambda: [
        outer("main", ellipse(0, 0.45, 1.1, 0.26)),
        outer("main", polygon("-0.6,0.45 -0.52,-0.6 0.52,-0.6 0.6,0.45")),
        outer("light", ellipse(0, -0.6, 0.52, 0.14)),
        inner("dark", polygon("-0.6,0.42 -0.57,0.12 0.57,0.12 0.6,0.42")),
    ],
    "heart": lambda: [
        outer("main", heart()),
        inner("light", ellipse(-0.48, -0.38, 0.2, 0.12, tilt=-40)),
    ],
    "house": lambda: [
        outer("dark", rectangle(0.4, -0.95, 0.62, -0.4)),
        outer("main", rectangle(-0.75, -0.15, 0.75, 0.9)),
        outer("dark", polygon("-1,-0.1 0,-1 1,-0.1")),
        inner("ink", rectangle(-0.18, 0.35, 0.18, 0.9)),
        inner("glass", rectangle(-0.6, 0.1, -0.3, 0.4)),
        inner("glass", rectangle(0.3, 0.1, 0.6, 0.4)),
    ],
    "key": lambda: [
        outer("main", ellipse(-0.7, 0, 0.45, 0.45), ellipse(-0.7, 0, 0.2, 0.2)),
        outer("main", rectangle(-0.3, -0.12, 1.1, 0.12)),
        outer("dark", rectangle(0.85, 0.1, 1.06, 0.48)),
        outer("dark", rectangle(0.5, 0.1, 0.7, 0.4)),
    ],
    "kite": lambda: [
        outer("ink", bar(0, 0.7, 0.22, 1.1, 0.07)),
        outer("ink", bar(0.22, 1.08, 0.0, 1.5, 0.07)),
        outer("main", polygon("0,-1 0.68,-0.25 0,0.8 -0.68,-0.25")),
        inner("dark", polygon("0,-0.25 0.68,-0.25 0,0.8")),
        inner("light", polygon("0,-1 0,-0.25 -0.68,-0.25")),
        outer("dark", polygon("0.02,1.12 0.36,1.0 0.36,1.3")),
    ],
    "ladder": lambda: [
        outer("main", bar(-0.42, -1.2, -0.42, 1.2, 0.18)),
        outer("main", bar(0.42, -1.2, 0.42, 1.2, 0.18)),
        *(outer("dark", bar(-0.42, y, 0.42, y, 0.16)) for y in (-0.9, -0.45, 0.0, 0.45, 0.9)),
    ],
    "lamp": lambda: [
        outer("ink", bar(0, 0.0, 0, 0.95, 0.13)),
        outer("dark", ellipse(0, 0.98, 0.5, 0.15)),
        outer("main", polygon("-0.36,-0.95 0.36,-0.95 0.82,0.15 -0.82,0.15")),
        inner("light", polygon("-0.2,-0.85 0.02,-0.85 -0.15,0.06 -0.5,0.06")),
    ],
    "leaf": lambda: [
        outer("dark", bar(0, 0.6, 0.12, 1.15, 0.11)),
        outer("main", polygon("0,-1.1 0.42,-0.65 0.6,-0.1 0.5,0.4 0,0.8 -0.5,0.4 -0.6,-0.1 -0.42,-0.65")),
        inner("dark", bar(0, -0.9, 0, 0.75, 0.07)),
        *(inner("dark", bar(0, y, side * 0.4, y - 0.28, 0.06)) for y in (-0.25, 0.1, 0.45) for side in (-1, 1)),
    ],
    "moon": lambda: [outer("main", crescent())],
    "mushroom": lambda: [
        outer("glass", polygon("-0.26,0.0 0.26,0.0 0.36,0.95 -0.36,0.95")),
        outer("main", ellipse(0, 0.08, 1, 0.95, start=180, stop=360)),
        inner("light", ellipse(-0.42, -0.28, 0.17, 0.14)),
        inner("light", ellipse(0.15, -0.55, 0.17, 0.14)),
        inner("light", ellipse(0.52, -0.16, 0.15, 0.12)),
    ],
    "rocket": lambda: [
        outer("glass", polygon("-0.2,0.75 0.2,0.75 0,1.3")),
        outer("dark", polygon("-0.3,0.2 -0.75,0.85 -0.3,0.75")),
        outer("dark", polygon("0.3,0.2 0.75,0.85 0.3,0.75")),
        outer("main", polygon("0,-1.25 0.24,-0.85 0.36,-0.35 0.34,0.78 -0.34,0.78 -0.36,-0.35 -0.24,-0.85")),
        inner("glass", ellipse(0, -0.3, 0.19, 0.19)),
        inner("ink", ellipse(0, -0.3, 0.11, 0.11)),
    ],
    "snail": lambda: [
        outer("dark", polygon("-1.1,0.8 -0.7,0.5 0.65,0.5 0.75,-0.1 1.05,-0.1 1.1,0.6 0.9,0.8")),
        outer("ink", bar(0.82, -0.05, 0.72, -0.55, 0.07), bar(0.98, -0.05, 1.1, -0.55, 0.07)),
        outer("main", ellipse(-0.1, 0.0, 0.7, 0.68)),
        inner("dark", ellipse(-0.08, 0.02, 0.5, 0.48), ellipse(-0.06, 0.04, 0.39, 0.37)),
        inner("dark", ellipse(-0.03, 0.06, 0.2, 0.19)),
    ],
    "star": lambda: [outer("main", star(5, 0.42))],
    "table": lambda: [
        outer("dark", bar(-0.45, -0.1, -0.45, 0.6, 0.13), bar(0.45, -0.1, 0.45, 0.6, 0.13)),
        outer("main", polygon("-0.75,-0.5 0.75,-0.5 1.1,-0.1 -1.1,-0.1")),
        outer("dark", rectangle(-1.1, -0.1, 1.1, 0.08)),
        outer("main", rectangle(-1.02, 0.06, -0.84, 0.95)),
        outer("main", rectangle(0.84, 0.06, 1.02, 0.95)),
    ],
    "tent": lambda: [
        outer("dark", polygon("0.0,-0.8 0.55,-0.7 1.15,0.6 0.7,0.8")),
        outer("main", polygon("0.0,-0.8 -0.95,0.8 0.75,0.8")),
        inner("ink", polygon("-0.03,-0.3 -0.32,0.8 0.22,0.8")),
    ],
    "tree": lambda: [
        outer("ink", rectangle(-0.14, 0.2, 0.14, 1.15)),
        outer("main", ellipse(-0.4, -0.05, 0.46, 0.42)),
        outer("main", ellipse(0.4, -0.05, 0.46, 0.42)),
        outer("main", ellipse(0, -0.5, 0.55, 0.55)),
        inner("dark", ellipse(0.25, 0.0, 0.3, 0.18)),
        inner("light", ellipse(-0.15, -0.62, 0.2, 0.16)),
    ],
    "umbrella": lambda: [
        outer("ink", bar(0, -0.95, 0, 0.9, 0.09)),
        outer("ink", ellipse(0.17, 0.88, 0.21, 0.21, start=0, stop=180)),
        outer("main", canopy()),
        inner("dark", polygon("0,-0.85 0.3,-0.08 0.2,-0.1 -0.2,-0.1 -0.3,-0.08")),
    ],
}


@cache
def shape_of(kind: str) -> tuple[Part, ...]:
    """The parts of a kind, centred on its bounding box and scaled so that its longer side is 1.

    Args:
        kind: a name in `pipeline.scenes.vocabulary.KINDS`.

    Returns:
        Parts in painting order; coordinates lie within [-0.5, 0.5].

    Raises:
        KeyError: the kind has no shape.
    """
    parts = _SHAPES[kind]()
    points = np.concatenate([outline for part in parts for outline in part.outlines])
    low, high = points.min(axis=0), points.max(axis=0)
    centre, side = (low + high) / 2, float((high - low).max())
    return tuple(
        replace(part, outlines=tuple(((outline - centre) / side).astype(np.float32) for outline in part.outlines))
        for part in parts
    )
