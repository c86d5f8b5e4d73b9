"""Masks: run-length coding, area, overlap, outlines, and the box around a mask.

Codec: pycocotools. Masks are (H, W); pixels that are not zero are inside. Run-length codes
count down the columns (Fortran order) and begin with the pixels outside. `counts` is text
everywhere in phrasebox; pycocotools' bytes stay in this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.contract.values import Integers, Json, PixelBox, Sides

Mask = NDArray[np.bool_] | NDArray[np.uint8]

# Farthest vertex of a polygon from the origin: pycocotools walks along every edge in steps of a fifth of a pixel.
_FARTHEST_PX: Final = 100_000

_LONGEST_NUMBER: Final = (
    7  # Characters of a number in run-length text: 34 bits and a sign, beyond any image's pixels
)


def encode_mask(mask: Mask) -> Rle:
    """Return the code of a mask: bool or uint8 (H, W), at least one pixel.

    Raise ValueError for another shape.

    >>> rle = encode_mask(np.array([[0, 1], [0, 1]], np.bool_))
    >>> rle.size_hw, rle_area_px(rle)
    ((2, 2), 2)
    """
    return _from_coco(coco_mask.encode(np.asfortranarray(_as_ones(mask))))


def encode_edges(edges: Integers, size_hw: Sides) -> Rle:
    """Return the code of a mask without an image-sized array.

    Args:
        edges: (2 x runs,), beginning and end of each run of pixels inside: pixels down the
            columns, rising, 0 .. height x width.
        size_hw: Height and width of the mask.

    Raises:
        ValueError: Edges are out of order or outside.
    """
    h, w = size_hw
    ends = np.concatenate(([0], edges, [h * w]))
    counts = ends[1:] - ends[:-1]  # `np.diff` with values to prepend takes as long as the encoder
    if (counts[1:-1] <= 0).any() or counts[0] < 0 or counts[-1] < 0:
        raise ValueError(f"expected rising edges within {h} x {w} px, got {edges}")
    runs = (counts if counts[-1] else counts[:-1]).astype(np.uint32)
    return _from_coco(coco_mask.frPyObjects({"size": [h, w], "counts": runs}, h, w))


def encode_box(box_xyxy: PixelBox, size_hw: Sides) -> Rle:
    """Return the code of the pixels in a half-open box.

    Raise ValueError if it is empty or leaves the image.

    >>> decode_mask(encode_box((1, 0, 3, 1), (2, 3))).astype(int)
    array([[0, 1, 1],
           [0, 0, 0]])
    """
    x0, y0, x1, y1 = box_xyxy
    h, w = size_hw
    if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
        raise ValueError(f"expected a box within {w} x {h} px, got {box_xyxy}")
    box_xywh = np.array([[x0, y0, x1 - x0, y1 - y0]], np.float64)
    return _from_coco(coco_mask.frPyObjects(box_xywh, h, w)[0])


def encode_counts(counts: Sequence[int], size_hw: Sides) -> Rle:
    """Return the code of integer counts from other tools; any run may be 0.

    Raise ValueError for other counts.
    """
    h, w = size_hw
    if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != h * w:
        raise ValueError(f"expected whole run lengths >= 0 that sum to {h} x {w}, got {len(counts)} others")
    edges, times = np.unique(np.cumsum(counts, dtype=np.int64)[:-1], return_counts=True)
    return encode_edges(edges[times % 2 == 1], size_hw)  # two edges in one place are no edge


def encode_polygons(polygons: Sequence[Sequence[float]], size_hw: Sides) -> Rle:
    """Return the code of the union of polygons [x0, y0, x1, y1, ...] in pixels, as COCO draws them.

    Parts outside the image are cut off; a polygon of one or two points draws nothing. Raise
    ValueError if a number of coordinates is odd, or a coordinate is not finite or beyond
    100,000 px.
    """
    for polygon in polygons:
        if len(polygon) % 2 or not all(-_FARTHEST_PX <= value <= _FARTHEST_PX for value in polygon):
            raise ValueError(
                f"expected pairs of coordinates within {_FARTHEST_PX} px, got {len(polygon)} numbers"
            )
    # pycocotools takes four numbers for a box
    coco_polygons = [[float(value) for value in polygon] for polygon in polygons if len(polygon) >= 6]
    if not coco_polygons:
        return encode_edges(np.zeros(0, np.int64), size_hw)
    return _from_coco(coco_mask.merge(coco_mask.frPyObjects(coco_polygons, *size_hw)))


def run_ends(text: NDArray[np.uint8], offsets: Integers, pixels: Integers) -> tuple[Integers, Integers]:
    """Return the ends of the runs of many masks. pycocotools cannot do that, and reads beyond the end of damaged text.

    Args:
        text: uint8 (characters,), the counts of all masks, one after the other.
        offsets: (masks + 1,), the places between the characters of one mask and those of the
            next.
        pixels: (masks,), height x width of each mask. Raise ValueError if the text is damaged,
            or of another size.

    Returns:
        Ends (runs,), in pixels from the beginning of the mask down its columns, and offsets
            (masks + 1,) into them.
    """
    # five bits a character, lowest first; 0x20: more to come, 0x10 of the last one: the sign
    bits = text - np.uint8(48)  # what is below 0 becomes large
    is_last = (bits & 0x20) == 0
    if (bits > 63).any() or (np.diff(offsets) < 1).any() or not is_last[offsets[1:] - 1].all():
        raise ValueError("expected run-length text in the characters 0 .. o that ends with a whole number")
    last = np.flatnonzero(is_last)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max(initial=0) > _LONGEST_NUMBER:
        raise ValueError(f"expected runs of at most {_LONGEST_NUMBER} characters")
    runs = np.zeros(len(last), np.int64)
    for digit in range(int(digits.max(initial=0))):
        longer = np.flatnonzero(digits > digit)
        runs[longer] |= (bits[first[longer] + digit] & 0x1F).astype(np.int64) << (5 * digit)
    runs -= ((bits[last] & 0x10) != 0).astype(np.int64) << (5 * digits)
    starts = np.searchsorted(last, offsets)
    counts = np.diff(starts)
    place = np.arange(len(runs)) - np.repeat(starts[:-1], counts)
    # From the fourth on, the difference to the last run of the same kind is stored: two sums a mask.
    odd = (place & 1).astype(np.bool_)
    for kind, lengths in ((odd, counts // 2), (~odd & (place > 0), (counts - 1) // 2)):
        runs[kind] = _sums_within(runs[kind], lengths)
    ends = _sums_within(runs, counts)
    if (runs < 0).any() or not np.array_equal(ends[starts[1:] - 1], pixels):
        raise ValueError("expected runs that sum to height x width")
    return ends, starts


def _sums_within(values: Integers, lengths: Integers) -> Integers:
    """Return running sums that begin anew in each stretch of these lengths."""
    sums = np.concatenate([[0], np.cumsum(values)])
    within: Integers = sums[1:] - np.repeat(sums[np.cumsum(lengths) - lengths], lengths)
    return within


def decode_runs(rle: Rle) -> Integers:
    """Return COCO's integer counts, which some tools read instead of the text.

    Raise ValueError as `run_ends`.
    """
    text = np.frombuffer(rle.counts.encode(), np.uint8)
    ends, _ = run_ends(text, np.array([0, len(text)]), np.array([math.prod(rle.size_hw)]))
    return np.diff(ends, prepend=0)


def decode_mask(rle: Rle) -> NDArray[np.bool_]:
    """Return bool (H, W), Fortran-contiguous. Raise ValueError as `run_ends`."""
    counts = decode_runs(rle)
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(rle.size_hw[::-1]).T


def rle_area_px(rle: Rle) -> int:
    """Return the number of pixels inside."""
    return int(coco_mask.area(_to_coco(rle)))


def rle_box_xywh_px(rle: Rle) -> Box:
    """Return the half-open box around a mask; (0, 0, 0, 0) if it is empty."""
    x, y, w, h = map(float, coco_mask.toBbox(_to_coco(rle)))
    return x, y, w, h


def rle_iou(a: Rle, b: Rle) -> float:
    """Return the intersection over union, 0 .. 1; 0 if both masks are empty.

    Raise ValueError if sizes differ.
    """
    union = rle_area_px(rle_union([a, b]))
    return (rle_area_px(a) + rle_area_px(b) - union) / union if union else 0.0


def rle_union(rles: Sequence[Rle]) -> Rle:
    """Return the union of the masks of one image.

    Raise ValueError if there are none, or if sizes differ.

    >>> rle_area_px(rle_union([encode_box((0, 0, 1, 2), (2, 2)), encode_box((0, 0, 2, 1), (2, 2))]))
    3
    """
    sizes = {rle.size_hw for rle in rles}
    if len(sizes) != 1:
        raise ValueError(f"expected masks of one size, got {sorted(sizes)}")
    return _from_coco(coco_mask.merge([_to_coco(rle) for rle in rles]))


def mask_box_xywh_px(mask: Mask) -> Box:
    """Return the half-open box around the non-zero pixels of (H, W); (0, 0, 0, 0) for an empty mask."""
    x, y, w, h = map(float, cv2.boundingRect(np.ascontiguousarray(_as_ones(mask))))
    return x, y, w, h


def innermost_pixel(mask: Mask) -> tuple[int, int]:
    """Return x, y of the pixel that is farthest from all pixels outside the mask (H, W) and from the image's edges.

    Of several, it is the one in their middle.

    >>> innermost_pixel(np.ones((3, 5), np.bool_))
    (2, 1)
    """
    padded = np.pad(_as_ones(mask), 1)
    depths = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    places = np.argwhere(depths == depths.max())
    y, x = places[np.square(places - places.mean(axis=0)).sum(axis=1).argmin()]
    return int(x), int(y)


def mask_outlines(mask: Mask, tolerance_px: float = 0.0) -> tuple[list[list[float]], int]:
    """Return the outer outlines of a mask as COCO polygons [x0, y0, x1, y1, ...] in pixels, and their filled holes.

    There is one polygon for each 8-connected part; it touches itself where the part hangs
    together by a corner. `pycocotools` draws the same mask again, except for holes, which COCO
    polygons cannot express.

    tolerance_px: how far an outline may run from the mask's to do with fewer corners
        (Douglas-Peucker); a part that would lose its area keeps all its corners.

    >>> mask_outlines(np.array([[0, 1, 1]], np.uint8))
    ([[1, 0, 1, 1, 3, 1, 3, 0]], 0)
    """
    rings = mask_rings(mask, tolerance_px)
    outer = [list[float](ring.ravel().tolist()) for ring, depth in rings if depth == 0]
    return sorted(outer), sum(depth == 1 for _, depth in rings)


def mask_rings(mask: Mask, tolerance_px: float = 0.0) -> list[tuple[Integers, int]]:
    """Return all outlines of a mask with their depth: 0 for outer ones, 1 for their holes, 2 for islands therein, ...

    The vertices (n, 2) are x, y of pixel *corners*: a one-pixel mask is a square of side 1. See
    `mask_outlines`.
    """
    left, top, w, h = (int(value) for value in mask_box_xywh_px(mask))
    if not w:
        return []
    # findContours walks through pixel centres, which loses half a pixel on every side. In the mask at twice the size
    # the parity of a border pixel says on which side of its pixel it lies.
    part = np.ascontiguousarray(_as_ones(mask)[top : top + h, left : left + w])
    doubled = cv2.resize(part, (2 * w, 2 * h), interpolation=cv2.INTER_NEAREST)
    outlines, tree = cv2.findContours(doubled, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    parents = tree[0, :, 3].tolist()
    rings = []
    for outline, parent in zip(outlines, parents, strict=True):
        depth = 0
        while parent >= 0:
            depth += 1
            parent = parents[parent]  # noqa: PLW2901  up to the outermost outline
        corners = (outline.reshape(-1, 2).astype(np.int64) + 1) // 2 + (left, top)
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
        if tolerance_px > 0 and len(corners) > 8:  # fewer are exact and short
            fewer = cv2.approxPolyDP(corners.astype(np.int32), tolerance_px, closed=True)
            fewer = fewer.reshape(-1, 2)
            corners = fewer.astype(np.int64) if len(fewer) >= 4 else corners
        rings.append((corners, depth))
    return rings


def _as_ones(mask: Mask) -> NDArray[np.uint8]:
    """Return uint8 of zeros and ones: pycocotools would start a new run wherever the value changes."""
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"expected a mask (H, W) with at least one pixel, got shape {mask.shape}")
    inside = mask if mask.dtype == np.bool_ else mask != 0
    return inside.view(np.uint8)


def _to_coco(rle: Rle) -> Json:
    return {"size": list(rle.size_hw), "counts": rle.counts.encode("ascii")}


def _from_coco(code: Json) -> Rle:
    h, w = code["size"]
    return Rle(size_hw=(int(h), int(w)), counts=code["counts"].decode("ascii"))
