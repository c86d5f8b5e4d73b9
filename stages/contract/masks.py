"""Masks: run-length coding, area, overlap, outlines, and the box around a mask. Codec: pycocotools.

Masks are (H, W); pixels that are not zero are inside. Run-length codes count down the columns (Fortran order) and begin
with the pixels outside. `counts` is text everywhere in phrasebox; pycocotools' bytes stay in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stages.contract.geometry import Box
from stages.contract.records import Rle

Mask = NDArray[np.bool_] | NDArray[np.uint8]

_FARTHEST_PX: Final = 100_000
"""Farthest vertex of a polygon from the origin: pycocotools walks along every edge in steps of a fifth of a pixel."""

_LONGEST_RUN_TEXT: Final = 7
"""Most characters of a number in run-length text: 34 bits and a sign count more pixels than any image has."""


def encode_mask(mask: Mask) -> Rle:
    """COCO run-length code of a mask.

    Args:
        mask: bool or uint8 (H, W), at least one pixel. Fastest when bool and Fortran-contiguous.

    Raises:
        ValueError: The mask has another shape.
    """
    coded = coco_mask.encode(np.asfortranarray(_as_ones(mask)))
    return _from_coco(coded)


def encode_runs(counts: NDArray[np.uint32], size_hw: tuple[int, int]) -> Rle:
    """COCO run-length code of runs that are known already, without an image-sized array.

    Args:
        counts: uint32 (runs,), lengths of the alternating runs outside, inside, outside, ... in column order. Only the
            first may be 0; their sum is height x width.
        size_hw: Height and width of the mask.

    Raises:
        ValueError: The counts are not such runs.
    """
    h, w = size_hw
    if counts.size == 0 or int(counts.sum(dtype=np.int64)) != h * w or not counts[1:].all():
        raise ValueError(f"expected runs > 0 (the first >= 0) that sum to {h} x {w}, got {counts}")
    return _from_coco(coco_mask.frPyObjects({"size": [h, w], "counts": counts}, h, w))


def encode_edges(
    edges: NDArray[np.int64], offsets: NDArray[np.int64], sizes_hw: Sequence[tuple[int, int]]
) -> list[Rle]:
    """COCO run-length codes of many masks; like `encode_runs` for each of them.

    Args:
        edges: (edges,), where runs of pixels inside begin and end, in turn: pixels from the beginning of their mask
            down its columns, 0 .. height x width, rising within a mask.
        offsets: (masks + 1,), where the edges of each mask begin and end.
        sizes_hw: Height and width of each mask.

    Raises:
        ValueError: The edges of a mask do not rise, or lie outside.
    """
    if not sizes_hw:
        return []
    counts = np.diff(offsets)
    bounds = np.zeros(len(edges) + 2 * len(counts), np.int64)  # of each mask: 0, its edges, all its pixels
    bounds[np.arange(1, len(edges) + 1) + 2 * np.repeat(np.arange(len(counts)), counts)] = edges
    ends = offsets[1:] + 2 * np.arange(1, len(offsets)) - 1
    bounds[ends] = [h * w for h, w in sizes_hw]
    runs = np.diff(bounds)
    first, last = ends - counts - 1, ends - 1
    allowed = runs > 0
    allowed[ends[:-1]] = True  # from one mask to the next
    allowed[first] = runs[first] >= 0
    allowed[last] |= runs[last] == 0
    if not allowed.all():
        raise ValueError(f"expected edges of runs that rise within their mask, got {edges}")
    lengths = runs.astype(np.uint32)
    stops = ends - (runs[last] == 0)
    entries = [
        {"size": size_hw, "counts": lengths[begin:stop]}
        for begin, stop, size_hw in zip(first.tolist(), stops.tolist(), sizes_hw, strict=True)
    ]
    return [_from_coco(coded) for coded in coco_mask.frPyObjects(entries, *sizes_hw[0])]


def encode_box(box_xyxy: tuple[int, int, int, int], size_hw: tuple[int, int]) -> Rle:
    """COCO run-length code of the pixels in a box (x0, y0, x1, y1), half open, without an image-sized array.

    Raises ValueError for a box that is empty or leaves the image.
    """
    x0, y0, x1, y1 = box_xyxy
    h, w = size_hw
    if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
        raise ValueError(f"expected a box within {w} x {h} px, got {box_xyxy}")
    if y1 - y0 == h:  # whole columns are one run
        edges = np.array([x0 * h, x1 * h], np.int64)
    else:
        edges = (np.arange(x0, x1, dtype=np.int64)[:, None] * h + np.array([y0, y1], np.int64)).ravel()
    (coded,) = encode_edges(edges, np.array([0, len(edges)], np.int64), [size_hw])
    return coded


def encode_counts(counts: Sequence[int], size_hw: tuple[int, int]) -> Rle:
    """COCO run-length code of integer counts from other tools, in which any run may be 0.

    Raises ValueError unless all counts are whole numbers >= 0 that sum to height x width; see `encode_runs`.
    """
    h, w = size_hw
    if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != h * w:
        raise ValueError(f"expected whole run lengths >= 0 that sum to {h} x {w}, got {len(counts)} others")
    runs = [0]  # the last one is inside if their number is even
    for index, run in enumerate(counts):
        if index % 2 == (len(runs) - 1) % 2:
            runs[-1] += run
        elif run:
            runs.append(run)
    return encode_runs(np.array(runs, dtype=np.uint32), size_hw)


def encode_polygons(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> Rle:
    """COCO run-length code of the union of polygons [x0, y0, x1, y1, ...] in pixels, as COCO draws them.

    Parts outside the image are cut off; a polygon of one or two points draws nothing. Raises ValueError for an odd
    number of coordinates, and for a coordinate that is not finite or beyond 100,000 px.
    """
    h, w = size_hw
    for polygon in polygons:
        if len(polygon) % 2 or not all(-_FARTHEST_PX <= value <= _FARTHEST_PX for value in polygon):
            raise ValueError(f"expected pairs of coordinates within {_FARTHEST_PX} px, got {len(polygon)} numbers")
    # pycocotools takes four numbers for a box
    drawn = [[float(value) for value in polygon] for polygon in polygons if len(polygon) >= 6]
    if not drawn:
        return encode_runs(np.array([h * w], dtype=np.uint32), size_hw)
    return _from_coco(coco_mask.merge(coco_mask.frPyObjects(drawn, h, w)))


def decode_runs(rle: Rle) -> NDArray[np.uint32]:
    """Inverse of `encode_runs`: COCO's integer counts, which some tools read instead of the text.

    Raises ValueError if the text is damaged or belongs to another size. Not by pycocotools, which
    has no such function and reads beyond the end of damaged text.
    """
    try:
        bits = np.frombuffer(rle.counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise ValueError(f"expected run-length text in the characters 0 .. o, got {error}") from error
    strange = (bits < 0) | (bits >= 64)
    if strange.any():
        raise ValueError(f"expected run-length text in the characters 0 .. o, got {rle.counts[strange.argmax()]!r}")
    # five bits a character, lowest first; 0x20: more to come, 0x10 of the last one: the sign
    last = (bits & 0x20) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    lengths = ends - starts + 1
    h, w = rle.size_hw
    if ends.size == 0 or not last[-1] or lengths.max() > _LONGEST_RUN_TEXT:
        raise ValueError(f"expected runs that sum to {h} x {w}, got {len(rle.counts)} bytes that say no number")
    places = np.arange(bits.size) - np.repeat(starts, lengths)
    counts = np.add.reduceat((bits & 0x1F) << (5 * places), starts)
    counts -= ((bits[ends] & 0x10) != 0).astype(np.int64) << (5 * lengths)
    # from the fourth on, the difference to the last run of the same kind is stored
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    if counts.min() < 0 or counts.sum() != h * w:
        raise ValueError(f"expected runs that sum to {h} x {w}, got {counts.sum()} from {len(rle.counts)} bytes")
    return counts.astype(np.uint32)


def run_ends(
    text: NDArray[np.uint8], offsets: NDArray[np.int64], pixels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the runs of many masks end; like `decode_runs` for all of them at once, four times faster.

    Args:
        text: uint8 (characters,), the counts of all masks, one after the other.
        offsets: (masks + 1,), where the characters of each mask begin and end.
        pixels: (masks,), height x width of each mask.

    Returns:
        Ends (runs,), in pixels from the beginning of the mask down its columns, and offsets (masks + 1,) into them.

    Raises:
        ValueError: As `decode_runs`.
    """
    bits = text - np.uint8(48)  # what is below 0 becomes large
    is_last = (bits & 0x20) == 0
    if (bits > 63).any() or (np.diff(offsets) < 1).any() or not is_last[offsets[1:] - 1].all():
        raise ValueError("expected run-length text in the characters 0 .. o that ends with a whole number")
    last = np.flatnonzero(is_last)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max(initial=0) > 7:
        raise ValueError("expected runs of at most 7 characters")
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


def _sums_within(values: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running sums that begin anew in each stretch of the given lengths."""
    sums = np.concatenate([[0], np.cumsum(values)])
    within: NDArray[np.int64] = sums[1:] - np.repeat(sums[np.cumsum(lengths) - lengths], lengths)
    return within


def decode_mask(rle: Rle) -> NDArray[np.bool_]:
    """bool (H, W) of a run-length code, Fortran-contiguous. Raises ValueError as `decode_runs`."""
    counts = decode_runs(rle)
    h, w = rle.size_hw
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape((w, h)).T


def rle_area_px(rle: Rle) -> int:
    """Number of pixels inside."""
    return int(coco_mask.area(_to_coco(rle)))


def rle_box_xywh_px(rle: Rle) -> Box:
    """Half-open box of a run-length code; (0, 0, 0, 0) for an empty mask."""
    x, y, w, h = coco_mask.toBbox(_to_coco(rle))
    return (float(x), float(y), float(w), float(h))


def rle_iou(a: Rle, b: Rle) -> float:
    """Intersection over union of two masks of one image, 0 .. 1; 0 if both are empty.

    Raises ValueError if the images differ in size.
    """
    if a.size_hw != b.size_hw:
        raise ValueError(f"expected two masks of one size, got {a.size_hw} and {b.size_hw}")
    inter = coco_mask.area(coco_mask.merge([_to_coco(a), _to_coco(b)], intersect=True))
    union = rle_area_px(a) + rle_area_px(b) - int(inter)
    return int(inter) / union if union else 0.0


def rle_union(rles: Sequence[Rle]) -> Rle:
    """What is inside any of the masks of one image, at least one. Raises ValueError if none, or if sizes differ."""
    sizes = {rle.size_hw for rle in rles}
    if len(sizes) != 1:
        raise ValueError(f"expected masks of one size, got {sorted(sizes)}")
    return _from_coco(coco_mask.merge([_to_coco(rle) for rle in rles]))


def mask_box_xywh_px(mask: Mask) -> Box:
    """Half-open box around the non-zero pixels of (H, W); (0, 0, 0, 0) for an empty mask."""
    x, y, w, h = _bounding_rectangle(_as_ones(mask))
    return (float(x), float(y), float(w), float(h))


def mask_polygons(mask: Mask) -> list[list[float]]:
    """Outer outlines of a mask as COCO polygons [x0, y0, x1, y1, ...] in pixels.

    One polygon for each 8-connected part; it touches itself where the part hangs together by a corner.
    The vertices are pixel *corners*, so that a one-pixel mask
    is a square of side 1 and `pycocotools` draws the same mask again, unless it has holes: COCO
    polygons cannot say holes, and they come back filled.
    """
    return mask_outlines(mask)[0]


def mask_outlines(mask: Mask, tolerance_px: float = 0.0) -> tuple[list[list[float]], int]:
    """`mask_polygons`, and the number of holes that they fill.

    tolerance_px  how far an outline may run from the mask's to do with fewer corners (Douglas-Peucker); a part that
                  would lose its area keeps all its corners
    """
    x0, y0, w, h = _bounding_rectangle(_as_ones(mask))
    if not w:
        return [], 0
    # findContours walks through pixel centres, which loses half a pixel on every side. In the mask
    # at twice the size the parity of a border pixel tells on which side of its pixel it lies.
    part = _as_ones(mask)[y0 : y0 + h, x0 : x0 + w]
    # Two bytes of a number side by side: a tenth of the time of a resize.
    pairs = (part.astype(np.uint16, order="C") * np.uint16(0x0101)).view(np.uint8)
    doubled = np.repeat(pairs, 2, axis=0)
    outlines, tree = cv2.findContours(doubled, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    parents = tree[0, :, 3]
    outer = parents < 0
    polygons: list[list[float]] = []  # of whole numbers
    for outline in (outline for outline, is_outer in zip(outlines, outer, strict=True) if is_outer):
        corners = (outline.reshape(-1, 2) + 1) // 2 + np.array([x0, y0])
        ring = _simplified(_without_repeats(corners), tolerance_px)
        polygons.append(list[float](ring.ravel().tolist()))
    return sorted(polygons), int(outer[parents[~outer]].sum())


def _simplified(corners: NDArray[np.int64], tolerance_px: float) -> NDArray[np.int64]:
    """Ring (n, 2) with fewer corners, see `mask_outlines`."""
    if tolerance_px <= 0:
        return corners
    fewer = cv2.approxPolyDP(corners.astype(np.int32), tolerance_px, closed=True).reshape(-1, 2)
    return fewer.astype(np.int64) if len(fewer) >= 4 else corners


def _bounding_rectangle(ones: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """x, y, w, h around the ones of (H, W). A decoded mask lies in memory column by column: then on its side."""
    if ones.flags.f_contiguous:
        y, x, h, w = cv2.boundingRect(ones.T)
    else:
        x, y, w, h = cv2.boundingRect(np.ascontiguousarray(ones))
    return x, y, w, h


def _without_repeats(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop vertices (n, 2) that equal the one before, around the ring."""
    differs: NDArray[np.bool_] = (corners != corners[np.arange(len(corners)) - 1]).any(axis=1)
    return corners[differs]


def _as_ones(mask: Mask) -> NDArray[np.uint8]:
    """uint8 of zeros and ones: pycocotools would start a new run wherever the value changes."""
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"expected a mask (H, W) with at least one pixel, got shape {mask.shape}")
    inside = mask if mask.dtype == np.bool_ else mask != 0
    return inside.view(np.uint8)


def _to_coco(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size_hw), "counts": rle.counts.encode("ascii")}


def _from_coco(coded: dict[str, Any]) -> Rle:
    h, w = coded["size"]
    return Rle(size_hw=(int(h), int(w)), counts=coded["counts"].decode("ascii"))
