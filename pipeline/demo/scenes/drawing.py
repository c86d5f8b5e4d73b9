"""Paint backgrounds and objects with OpenCV, from the outlines of `shapes.txt`.

Images are uint8 RGB (H, W, 3); a label map is uint8 (H, W) with 0 for the background and i + 1
where object i is visible. An object's visible pixels are those that still have its label after
all objects in front are painted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from phrasebox.pipeline.demo.scenes.captions import COLOURS
from phrasebox.stages.contract.values import Floats, Floats32, Levels, Rgb

Colour = tuple[int, int, int]

Outline = Floats32  # A closed outline, shape (points, 2), x and y in unit coordinates
_SHIFT: Final = 4  # Fractional bits of the coordinates given to OpenCV: outlines are placed to 1/16 pixel
_NOISE_SIDE: Final = 640


class ShapePart(NamedTuple):
    """One painted layer of a shape: see `shapes.txt`."""

    outlines: tuple[Outline, ...]
    tone: str
    is_inside: bool


def _ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Outline:
    t = np.radians(np.linspace(0.0, 360.0, 22, endpoint=False))
    px = rx * np.cos(t)
    py = ry * np.sin(t)
    cos = math.cos(math.radians(tilt))
    sin = math.sin(math.radians(tilt))
    return np.stack([x + cos * px - sin * py, y + sin * px + cos * py], axis=1).astype(np.float32)


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> Outline:
    steps = max(6, round(22 * (stop - start) / 360.0))
    t = np.radians(np.linspace(start, stop, steps))
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1).astype(np.float32)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float32)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Outline:
    length = math.hypot(x1 - x0, y1 - y0)
    nx = -(y1 - y0) / length * width / 2
    ny = (x1 - x0) / length * width / 2
    corners = [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
    return np.array(corners, dtype=np.float32)


def _star(points: float, inner: float) -> Outline:
    t = np.arange(2 * points) * math.pi / points - math.pi / 2
    r = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([r * np.cos(t), r * np.sin(t)], axis=1).astype(np.float32)


def _petal(number: float, count: float) -> Outline:
    angle = 360.0 * number / count - 90
    cos = math.cos(math.radians(angle))
    sin = math.sin(math.radians(angle))
    return _ellipse(0.5 * cos, -0.35 + 0.5 * sin, 0.36, 0.25, tilt=angle)


def _heart() -> Outline:
    """About 2 wide, point down."""
    t = np.linspace(0, 2 * math.pi, 30, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -y / 17], axis=1).astype(np.float32)


def _crescent() -> Outline:
    """A waning moon of radius 1, open to the right."""
    outer = _arc(0, 0, 1, 1, 50, 310)
    x1 = float(outer[-1, 0])
    y1 = float(outer[-1, 1])
    radius = math.hypot(x1 - 0.55, y1)
    half = math.degrees(math.atan2(-y1, x1 - 0.55))
    inner = _arc(0.55, 0, radius, radius, half, 360 - half)
    return np.concatenate([outer, inner[::-1]]).astype(np.float32)


def _canopy() -> Outline:
    """The umbrella's dome with a scalloped lower edge."""
    dome = _arc(0, 0, 1, 0.85, 180, 360)
    scallops = [_arc(x, 0, 0.25, 0.12, 180, 360)[::-1] for x in (0.75, 0.25, -0.25, -0.75)]
    return np.concatenate([dome, *scallops]).astype(np.float32)


_OUTLINES: Final[dict[str, Callable[..., Outline]]] = {
    "ellipse": _ellipse,
    "arc": _arc,
    "rectangle": _rectangle,
    "bar": _bar,
    "star": _star,
    "petal": _petal,
    "heart": _heart,
    "crescent": _crescent,
    "canopy": _canopy,
}


def _outline(text: str) -> Outline:
    name, *words = text.split()
    if name == "polygon":
        return np.array(
            [[float(value) for value in corner.split(",")] for corner in words],
            dtype=np.float32,
        )
    options = dict(word.split("=") for word in words if "=" in word)
    numbers = (float(word) for word in words if "=" not in word)
    return _OUTLINES[name](*numbers, **{key: float(value) for key, value in options.items()})


@cache
def shapes() -> dict[str, tuple[ShapePart, ...]]:
    """Return kind -> its parts in painting order, centred on its bounding box, the longer side 1."""
    parts_by_kind: dict[str, list[ShapePart]] = {}
    for line in files(__package__).joinpath("shapes.txt").read_text(encoding="utf-8").splitlines():
        entry = line.partition("#")[0].strip()
        if entry.startswith("["):
            parts = parts_by_kind.setdefault(entry[1:-1], [])
        elif entry:
            tone, _, outlines = entry.removeprefix("in ").partition(" ")
            shape = tuple(map(_outline, outlines.split(" + ")))
            parts.append(ShapePart(shape, tone, entry.startswith("in ")))
    return {kind: _centre(parts) for kind, parts in parts_by_kind.items()}


def _centre(parts: list[ShapePart]) -> tuple[ShapePart, ...]:
    points = np.concatenate([outline for part in parts for outline in part.outlines])
    low = points.min(axis=0)
    high = points.max(axis=0)
    centre = (low + high) / 2
    side = float((high - low).max())
    return tuple(
        part._replace(
            outlines=tuple(((outline - centre) / side).astype(np.float32) for outline in part.outlines)
        )
        for part in parts
    )


@cache
def _noise_tile() -> npt.NDArray[np.int8]:
    """A fixed tile of white noise; crops of it are far cheaper than new noise."""
    noise = np.random.default_rng(20_240_601).normal(0.0, 32.0, size=(_NOISE_SIDE, _NOISE_SIDE, 3))
    return np.clip(noise, -127, 127).astype(np.int8)


def _noise(rng: np.random.Generator, side_px: int) -> npt.NDArray[np.int8]:
    """A (side, side, 3) crop of the noise tile, standard deviation 32."""
    y, x = (int(v) for v in rng.integers(0, _NOISE_SIDE - side_px, size=2))
    return _noise_tile()[y : y + side_px, x : x + side_px]


def _muted_colours(rng: np.random.Generator, count: int) -> Floats32:
    """Random background colours (count, 3), 0-255: muted, never near black or white."""
    grey = rng.uniform(75.0, 215.0, size=(count, 1))
    tint = rng.normal(0.0, 22.0, size=(count, 3))
    return np.clip(grey + tint, 55, 228).astype(np.float32)


def paint_background(rng: np.random.Generator, side_px: int) -> Rgb:
    """Return a gradient, soft noise, stripes or checks, often with clutter on top: uint8 RGB (side_px, side_px, 3)."""
    image: Rgb
    style = rng.random()
    if style < 0.70:
        if style < 0.40:
            cells = int(rng.integers(2, 4))
            coarse = _muted_colours(rng, cells * cells).reshape(cells, cells, 3)
        else:
            cells = int(rng.integers(4, 22))
            rough = _muted_colours(rng, 1) + rng.normal(
                0.0,
                rng.uniform(4.0, 20.0),
                size=(cells, cells, 3),
            )
            coarse = np.clip(rough, 50, 230).astype(np.float32)
        image = cv2.resize(
            coarse,
            (side_px, side_px),
            interpolation=cv2.INTER_LINEAR,
        ).astype(np.uint8)
    elif style < 0.90:
        image = _pattern(rng, side_px)
    else:
        image = np.full((side_px, side_px, 3), _muted_colours(rng, 1).astype(np.uint8))
    if rng.random() < 0.5:
        _paint_clutter(rng, image)
    return image


def _pattern(rng: np.random.Generator, side_px: int) -> Rgb:
    """Stripes at any angle, or checks, in two muted colours."""
    first, second = _muted_colours(rng, 2)
    second = first + np.clip(second - first, -45, 45)
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(0.06, 0.3) * side_px
    ramp = np.arange(side_px, dtype=np.float32) * np.float32(2 * np.pi / period)
    cos = np.float32(np.cos(angle))
    sin = np.float32(np.sin(angle))
    wave = np.sin(ramp[None, :] * cos + ramp[:, None] * sin)
    if rng.random() < 0.5:
        wave = wave * np.sin(ramp[:, None] * cos - ramp[None, :] * sin)
    level = np.clip(wave * np.float32(rng.uniform(1.0, 4.0)), -1, 1) * np.float32(0.5) + np.float32(0.5)
    image: Rgb = (first + level[..., None] * (second - first)).astype(np.uint8)
    return image


def _paint_clutter(rng: np.random.Generator, image: Rgb) -> None:
    """Paint meaningless muted strokes, blobs and boxes; none has the shape of a kind."""
    side = image.shape[0]
    count = int(rng.integers(2, 9))
    colours = _muted_colours(rng, count).astype(int).tolist()
    points = rng.uniform(-0.1, 1.1, size=(count, 4)) * side
    sizes = rng.uniform(0.02, 0.16, size=(count, 2)) * side
    styles = rng.random(count)
    for number in range(count):
        x0, y0, x1, y1 = (int(v) for v in points[number])
        width = int(sizes[number, 0]) + 1
        height = int(sizes[number, 1]) + 1
        if styles[number] < 0.45:
            cv2.line(image, (x0, y0), (x1, y1), colours[number], max(1, height // 4), cv2.LINE_AA)
        elif styles[number] < 0.75:
            cv2.ellipse(
                image,
                (x0, y0),
                (width, height),
                float(x1),
                0,
                360,
                colours[number],
                -1,
                cv2.LINE_AA,
            )
        else:
            cv2.rectangle(image, (x0, y0), (x0 + width, y0 + height), colours[number], -1)


def pick_tones(rng: np.random.Generator, colour: str) -> dict[str, Colour]:
    """Return tone -> RGB for one object: its jittered colour, a darker, a lighter and two neutral ones."""
    mean = np.array(COLOURS[colour], dtype=np.float64)
    gain = rng.uniform(0.86, 1.12)
    main = np.clip(mean * gain + rng.normal(0.0, 7.0, size=3), 4, 252)
    dark = main * 0.66
    light = main + (255 - main) * 0.45
    if colour == "black":
        dark = main + 22
        light = main + 48
    elif colour == "white":
        main = np.clip(main, 226, 252)
        dark = main * 0.84
        light = main * 0.93
    ink = np.full(3, rng.uniform(30, 62))
    glass = rng.uniform(205, 235) + np.array([-12.0, 0.0, 10.0])

    def rgb(values: Floats) -> Colour:
        r, g, b = (int(v) for v in np.clip(values, 0, 255))
        return r, g, b

    return {
        "main": rgb(main),
        "dark": rgb(dark),
        "light": rgb(light),
        "ink": rgb(ink),
        "glass": rgb(glass),
    }


def paint_object(
    image: Rgb,
    kind: str,
    tones: dict[str, Colour],
    matrix: Floats32,
) -> None:
    """Paint one object over an image in place, in tones of `pick_tones`, with anti-aliased outlines.

    `matrix` is float32 (2, 3): unit shape coordinates -> pixels.
    """
    for part in shapes()[kind]:
        cv2.fillPoly(image, _place_outlines(part, matrix), tones[part.tone], cv2.LINE_AA, _SHIFT)


def paint_silhouette(
    labels: Levels,
    label: int,
    kind: str,
    matrix: Floats32,
) -> None:
    """Write a label into every pixel that an object covers, in place.

    Without anti-aliasing a pixel has one label.
    """
    for part in shapes()[kind]:
        if not part.is_inside:
            cv2.fillPoly(labels, _place_outlines(part, matrix), (label,), cv2.LINE_8, _SHIFT)


def silhouette_bounds(
    kind: str,
    matrix: Floats32,
) -> tuple[float, float, float, float]:
    """Return the bounds (x0, y0, x1, y1) in pixels of a placed shape, before occlusion and cuts at the border."""
    points = np.concatenate([outline for part in shapes()[kind] for outline in part.outlines])
    points_px = points @ matrix[:, :2].T + matrix[:, 2]
    x0, y0 = points_px.min(axis=0).tolist()
    x1, y1 = points_px.max(axis=0).tolist()
    return x0, y0, x1, y1


def _place_outlines(
    part: ShapePart,
    matrix: Floats32,
) -> list[npt.NDArray[np.int32]]:
    scale = np.float32(1 << _SHIFT)
    return [
        np.rint((outline @ matrix[:, :2].T + matrix[:, 2]) * scale).astype(np.int32)
        for outline in part.outlines
    ]


def add_camera_effects(rng: np.random.Generator, image: Rgb) -> Rgb:
    """Return an image with the effects of a camera: noise, sometimes a slight blur or another brightness."""
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), 0.4 + 0.5 * float(rng.random()))
    strength = float(rng.uniform(0.0, 0.35)) if rng.random() < 0.7 else 0.0
    gain = float(rng.uniform(0.88, 1.08)) if rng.random() < 0.5 else 1.0
    noise = _noise(rng, image.shape[0])
    noisy: Rgb = cv2.addWeighted(image, gain, noise, strength, 0.0, dtype=cv2.CV_8U)
    return noisy
