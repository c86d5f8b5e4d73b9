"""Paints backgrounds and objects with OpenCV; knows nothing of captions.

Images are uint8 RGB (H, W, 3); a label map is uint8 (H, W) with 0 for the background and i + 1 where object i
is visible. An object's visible pixels are those whose label it still holds after everything in front was
painted.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.scenes.kinds import Part, Tone, shape_of
from pipeline.scenes.vocabulary import COLOURS

ImageU8 = npt.NDArray[np.uint8]
Rgb = tuple[int, int, int]

_SHIFT: Final = 4
"""Fractional bits of the coordinates given to OpenCV: outlines are placed to 1/16 pixel."""

_NOISE_SIDE: Final = 640


@cache
def _noise_tile() -> npt.NDArray[np.int8]:
    """A fixed tile of white noise; taking crops of it is far cheaper than drawing noise afresh."""
    rng = np.random.default_rng(20_240_601)
    noise = rng.normal(0.0, 32.0, size=(_NOISE_SIDE, _NOISE_SIDE, 3))
    return np.clip(noise, -127, 127).astype(np.int8)


def _noise(rng: np.random.Generator, side_px: int) -> npt.NDArray[np.int8]:
    """A (side, side, 3) crop of the noise tile, standard deviation 32; sides above the tile's repeat it."""
    tile = _noise_tile()
    if side_px > _NOISE_SIDE - 40:
        repeats = side_px // (_NOISE_SIDE - 40) + 1
        tile = np.tile(tile, (repeats, repeats, 1))
    room = tile.shape[0] - side_px
    y, x = (int(v) for v in rng.integers(0, room, size=2))
    return tile[y : y + side_px, x : x + side_px]


def _muted(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    """Random background colours (count, 3), 0-255: muted, never near black or white."""
    grey = rng.uniform(75.0, 215.0, size=(count, 1))
    tint = rng.normal(0.0, 22.0, size=(count, 3))
    return np.clip(grey + tint, 55, 228).astype(np.float32)


def paint_background(rng: np.random.Generator, side_px: int) -> ImageU8:
    """Draw a background: a gradient, soft noise, stripes or checks, often with clutter on top.

    Args:
        rng: the only source of chance.
        side_px: side of the square image in pixels.

    Returns:
        uint8 RGB (side_px, side_px, 3).
    """
    image: ImageU8
    style = rng.random()
    if style < 0.40:
        cells = int(rng.integers(2, 4))
        coarse = _muted(rng, cells * cells).reshape(cells, cells, 3)
        image = cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    elif style < 0.70:
        cells = int(rng.integers(4, 22))
        base = _muted(rng, 1)[0]
        rough = base + rng.normal(0.0, rng.uniform(4.0, 20.0), size=(cells, cells, 3))
        coarse = np.clip(rough, 50, 230).astype(np.float32)
        image = cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
    elif style < 0.90:
        image = _pattern(rng, side_px)
    else:
        image = np.empty((side_px, side_px, 3), np.uint8)
        image[:] = _muted(rng, 1)[0].astype(np.uint8)
    if rng.random() < 0.5:
        _paint_clutter(rng, image)
    return image


def _pattern(rng: np.random.Generator, side_px: int) -> ImageU8:
    """Stripes at any angle, or checks, in two muted colours."""
    first, second = _muted(rng, 2)
    second = first + np.clip(second - first, -45, 45)
    angle = rng.uniform(0, np.pi)
    period = rng.uniform(0.06, 0.3) * side_px
    ramp = np.arange(side_px, dtype=np.float32) * np.float32(2 * np.pi / period)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    wave = np.sin(ramp[None, :] * c + ramp[:, None] * s)
    if rng.random() < 0.5:
        wave = wave * np.sin(ramp[:, None] * c - ramp[None, :] * s)
    level = np.clip(wave * np.float32(rng.uniform(1.0, 4.0)), -1, 1) * np.float32(0.5) + np.float32(0.5)
    image: ImageU8 = (first + level[..., None] * (second - first)).astype(np.uint8)
    return image


def _paint_clutter(rng: np.random.Generator, image: ImageU8) -> None:
    """Meaningless muted strokes, blobs and boxes: none has the shape of a kind."""
    side = image.shape[0]
    count = int(rng.integers(2, 9))
    colours = _muted(rng, count).astype(int)
    points = rng.uniform(-0.1, 1.1, size=(count, 4)) * side
    sizes = rng.uniform(0.02, 0.16, size=(count, 2)) * side
    styles = rng.random(count)
    for k in range(count):
        x0, y0, x1, y1 = (int(v) for v in points[k])
        a, b = int(sizes[k, 0]) + 1, int(sizes[k, 1]) + 1
        colour = (int(colours[k, 0]), int(colours[k, 1]), int(colours[k, 2]))
        if styles[k] < 0.45:
            cv2.line(image, (x0, y0), (x1, y1), colour, max(1, b // 4), cv2.LINE_AA)
        elif styles[k] < 0.75:
            cv2.ellipse(image, (x0, y0), (a, b), float(x1), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(image, (x0, y0), (x0 + a, y0 + b), colour, -1)


def pick_tones(rng: np.random.Generator, colour: str) -> dict[Tone, Rgb]:
    """The paints of one object: its colour jittered, a darker and a lighter tone of it, and the neutral ones.

    Args:
        rng: the only source of chance.
        colour: a name in `COLOURS`.

    Returns:
        Tone -> RGB, each 0-255.
    """
    mean = np.array(COLOURS[colour], dtype=np.float64)
    gain = rng.uniform(0.86, 1.12)
    main = np.clip(mean * gain + rng.normal(0.0, 7.0, size=3), 4, 252)
    dark = main * 0.66
    light = main + (255 - main) * 0.45
    if colour == "black":
        dark, light = main + 22, main + 48
    elif colour == "white":
        main = np.clip(main, 226, 252)
        dark, light = main * 0.84, main * 0.93
    ink = np.full(3, rng.uniform(30, 62))
    glass = rng.uniform(205, 235) + np.array([-12.0, 0.0, 10.0])

    def rgb(values: npt.NDArray[np.float64]) -> Rgb:
        r, g, b = (int(v) for v in np.clip(values, 0, 255))
        return r, g, b

    return {"main": rgb(main), "dark": rgb(dark), "light": rgb(light), "ink": rgb(ink), "glass": rgb(glass)}


def paint_object(image: ImageU8, kind: str, tones: dict[Tone, Rgb], matrix: npt.NDArray[np.float32]) -> None:
    """Paint one object over `image` in place, with anti-aliased outlines.

    Args:
        image: uint8 RGB (H, W, 3).
        kind: which shape.
        tones: the paints, from `pick_tones`.
        matrix: float32 (2, 3), unit shape coordinates -> pixels.
    """
    for part in shape_of(kind):
        cv2.fillPoly(image, _placed(part, matrix), tones[part.tone], cv2.LINE_AA, _SHIFT)


def paint_silhouette(labels: ImageU8, label: int, kind: str, matrix: npt.NDArray[np.float32]) -> None:
    """Write `label` into every pixel that the object covers, in place.

    Args:
        labels: uint8 (H, W); outlines are not anti-aliased, so every pixel has one owner.
        label: value to write, 1-255.
        kind: which shape.
        matrix: float32 (2, 3), unit shape coordinates -> pixels.
    """
    for part in shape_of(kind):
        if not part.inside:
            cv2.fillPoly(labels, _placed(part, matrix), (label,), cv2.LINE_8, _SHIFT)


def silhouette_size(kind: str, matrix: npt.NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Bounds (x0, y0, x1, y1) in pixels of a placed shape, before occlusion and cuts at the border."""
    points = np.concatenate([outline for part in shape_of(kind) for outline in part.outlines])
    placed = points @ matrix[:, :2].T + matrix[:, 2]
    x0, y0 = placed.min(axis=0)
    x1, y1 = placed.max(axis=0)
    return float(x0), float(y0), float(x1), float(y1)


def _placed(part: Part, matrix: npt.NDArray[np.float32]) -> list[npt.NDArray[np.int32]]:
    scale = np.float32(1 << _SHIFT)
    return [np.rint((outline @ matrix[:, :2].T + matrix[:, 2]) * scale).astype(np.int32) for outline in part.outlines]


def finish(rng: np.random.Generator, image: ImageU8) -> ImageU8:
    """Add what a camera adds: sensor noise of varying strength, sometimes a slight blur and a change of
    brightness.

    Args:
        rng: the only source of chance.
        image: uint8 RGB (H, W, 3).

    Returns:
        A new uint8 RGB image of the same shape.
    """
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), 0.4 + 0.5 * float(rng.random()))
    strength = float(rng.uniform(0.0, 0.35)) if rng.random() < 0.7 else 0.0
    gain = float(rng.uniform(0.88, 1.08)) if rng.random() < 0.5 else 1.0
    noise = _noise(rng, image.shape[0])
    finished: ImageU8 = cv2.addWeighted(image, gain, noise, strength, 0.0, dtype=cv2.CV_8U)
    return finished
