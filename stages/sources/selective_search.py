"""Proposals without classes and without training: parts of an image that stand apart, from a hierarchy of segments.

Selective search (Uijlings and others, IJCV 2013): graph-based segments (Felzenszwalb and Huttenlocher, IJCV 2004) are
joined again and again, the most alike neighbours first, until one is left. Every segment on the way is a proposal.

Deviations: one colour space and one segmentation instead of up to 80 strategies; textures are left out; proposals are
ordered by how long they last instead of at random within their level, so that the first ones are the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

BINS: Final = 8
"""Of each channel of the colour histograms."""

SMOOTHING: Final = 0.8
"""Standard deviation in pixels of the blur before the segmentation; that of Felzenszwalb and Huttenlocher."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of the hierarchy.

    Attributes:
        parts: Numbers of the finest segments that it is made of.
        box_xyxy: Whole pixels, half open.
        area_px: Its pixels.
        lasts: The share of all joins during which it stands, 0 .. 1.
    """

    parts: frozenset[int]
    box_xyxy: tuple[int, int, int, int]
    area_px: int
    lasts: float


def segmentation() -> ModuleType:
    """scikit-image's module. Raises ConfigError where it is not installed."""
    try:
        import skimage.segmentation  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigError('source.kind: proposals needs scikit-image: pip install "phrasebox[proposals]"') from error
    module: ModuleType = skimage.segmentation
    return module


def finest_segments(rgb: NDArray[np.uint8], *, scale: float, min_size_px: int) -> NDArray[np.int32]:
    """Numbers from 0 of the finest segments, int32 (H, W).

    Args:
        rgb: uint8 (H, W, 3).
        scale: Larger gives larger segments, see `skimage.segmentation.felzenszwalb`.
        min_size_px: Smaller segments are joined with a neighbour.
    """
    found: Any = segmentation().felzenszwalb(rgb, scale=scale, sigma=SMOOTHING, min_size=min_size_px)
    labels: NDArray[np.int32] = found.astype(np.int32)
    return labels


def hierarchy(rgb: NDArray[np.uint8], labels: NDArray[np.int32]) -> list[Segment]:
    """All segments on the way from the finest to the whole image, without the last, in the order they come about.

    Two neighbours are as alike as the intersection of their colour histograms, how little of the image both take, and
    how much of the box around both they fill: three of the four measures of selective search, added up.

    Args:
        rgb: uint8 (H, W, 3).
        labels: int32 (H, W), numbers from 0.
    """
    count = int(labels.max()) + 1
    total = labels.size
    tree = _Tree(rgb, labels, 2 * count - 1)
    near = _neighbours(labels, count)
    alike = {(a, b): tree.likeness(a, b, total) for a in range(count) for b in near[a] if a < b}
    joins = max(1, count - 1)
    for number in range(count, 2 * count - 1):
        if not alike:
            break
        best = max(alike, key=lambda pair: (alike[pair], -pair[0], -pair[1]))
        tree.join(*best, number, (number - count + 1) / joins)
        beside = (near[best[0]] | near[best[1]]) - set(best)
        for old in best:
            for other in near[old]:
                alike.pop((min(old, other), max(old, other)), None)
                near[other].discard(old)
        near.append(beside)
        for other in beside:
            near[other].add(number)
            alike[other, number] = tree.likeness(other, number, total)
    return [tree.found(number) for number in range(tree.count) if len(tree.parts[number]) < count]


class _Tree:
    """What is known of the segments, the finest first."""

    def __init__(self, rgb: NDArray[np.uint8], labels: NDArray[np.int32], most: int) -> None:
        self.count = int(labels.max()) + 1
        self.parts = [frozenset((number,)) for number in range(self.count)]
        self.born = [0.0] * self.count
        self.died = [1.0] * most
        flat = labels.ravel()
        self.areas: list[int] = np.bincount(flat, minlength=self.count).tolist()
        colours = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).reshape(-1, 3).astype(np.int64) * BINS // 256
        places = flat.astype(np.int64)[:, None] * (3 * BINS) + np.arange(3) * BINS + colours
        counted = np.bincount(places.ravel(), minlength=self.count * 3 * BINS).reshape(self.count, 3 * BINS)
        self.histograms = [*(counted / (3 * np.maximum(counted.sum(axis=1, keepdims=True) / 3, 1)))]
        rows, columns = np.divmod(np.arange(flat.size), labels.shape[1])
        low = np.full((self.count, 2), flat.size, np.int64)
        high = np.zeros((self.count, 2), np.int64)
        for axis, place in enumerate((columns, rows)):
            np.minimum.at(low[:, axis], flat, place)
            np.maximum.at(high[:, axis], flat, place + 1)
        self.boxes = [(x0, y0, x1, y1) for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True)]

    def likeness(self, a: int, b: int, total: int) -> float:
        colour = float(np.minimum(self.histograms[a], self.histograms[b]).sum())
        both = self.areas[a] + self.areas[b]
        x0, y0, x1, y1 = _around(self.boxes[a], self.boxes[b])
        return round(colour + (1 - both / total) + (1 - ((x1 - x0) * (y1 - y0) - both) / total), 9)

    def join(self, a: int, b: int, number: int, when: float) -> None:
        areas = (self.areas[a], self.areas[b])
        mixed = (self.histograms[a] * areas[0] + self.histograms[b] * areas[1]) / sum(areas)
        self.parts.append(self.parts[a] | self.parts[b])
        self.areas.append(sum(areas))
        self.histograms.append(mixed)
        self.boxes.append(_around(self.boxes[a], self.boxes[b]))
        self.born.append(when)
        self.died[a] = self.died[b] = when
        self.count = number + 1

    def found(self, number: int) -> Segment:
        lasts = self.died[number] - self.born[number]
        return Segment(self.parts[number], self.boxes[number], self.areas[number], lasts)


def _around(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _neighbours(labels: NDArray[np.int32], count: int) -> list[set[int]]:
    """The segments that touch each segment along an edge of a pixel."""
    near: list[set[int]] = [set() for _ in range(count)]
    sides = ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:]))
    for one, other in sides:
        differ = one != other
        for a, b in set(zip(one[differ].tolist(), other[differ].tolist(), strict=True)):
            near[a].add(b)
            near[b].add(a)
    return near


def spread_out(found: list[Segment], *, most: int, iou: float, least_px: int, most_px: int) -> list[Segment]:
    """The proposals that last longest, without those whose boxes overlap a better one's by more than `iou`.

    Args:
        found: Segments.
        most: How many are kept.
        iou: Of boxes, 0 .. 1.
        least_px: Smaller segments are left out.
        most_px: Larger ones too.
    """
    fitting = [each for each in found if least_px <= each.area_px <= most_px]
    ordered = sorted(fitting, key=lambda each: (-round(each.lasts, 9), -each.area_px, each.box_xyxy))
    if not ordered:
        return []
    boxes = np.array([each.box_xyxy for each in ordered], np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = np.ones(len(ordered), np.bool_)
    kept: list[Segment] = []
    for number, each in enumerate(ordered):
        if not alive[number]:
            continue
        kept.append(each)
        if len(kept) == most:
            break
        low = np.maximum(boxes[:, :2], boxes[number, :2])
        high = np.minimum(boxes[:, 2:], boxes[number, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        alive &= shared <= iou * (areas + areas[number] - shared)
    return kept
