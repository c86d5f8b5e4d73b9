"""One outline for a mask of several parts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.export.yolo import _numbers, joined
from stages.masks import mask_outlines, mask_polygons
from tests.stages.export.datasets import mask


def parts_of(inside: np.ndarray) -> list[np.ndarray]:
    return [np.array(polygon).reshape(-1, 2) for polygon in mask_polygons(inside)]


def enclosed_area(outline: np.ndarray) -> float:
    return abs(cv2.contourArea(outline.astype(np.float32)))


@given(hnp.arrays(np.bool_, (9, 11)).filter(np.any))
def test_the_outline_encloses_what_the_parts_enclose(inside: np.ndarray) -> None:
    parts = parts_of(inside)
    outline = joined(parts)
    # Walked there and back, the joining lines enclose nothing. The parts all turn the same way.
    assert enclosed_area(outline) == pytest.approx(sum(enclosed_area(part) for part in parts))
    assert {tuple(point) for part in parts for point in part} == {tuple(point) for point in outline}


def test_parts_are_joined_at_their_nearest_corners() -> None:
    outline = joined(parts_of(mask((0, 0, 2, 2), (5, 0, 2, 2), (5, 9, 2, 2))))
    steps = np.abs(np.diff(np.vstack([outline, outline[:1]]), axis=0)).sum(axis=1)
    assert sorted(steps[steps > 2]) == [3, 3, 7, 7]


def test_holes_are_counted() -> None:
    ring = mask((4, 4, 20, 16), holes=((10, 8, 5, 5), (18, 8, 2, 2)))
    island = ring | mask((12, 10, 1, 1))
    assert mask_outlines(mask((1, 1, 4, 4), (9, 9, 3, 3)))[1] == 0
    assert mask_outlines(ring)[1] == 2
    # An island in a hole lies within the outer outline already.
    assert mask_outlines(island) == mask_outlines(ring)


def test_fewer_corners_stay_near_the_mask() -> None:
    y, x = np.mgrid[:200, :300]
    disc = np.hypot(x - 150, y - 100) < 80
    [exact], _ = mask_outlines(disc)
    [rough], _ = mask_outlines(disc, tolerance_px=1)
    assert len(rough) < len(exact) / 4
    contours = [np.array(ring, np.int32).reshape(-1, 1, 2) for ring in (exact, rough)]
    farthest = max(-cv2.pointPolygonTest(contours[1], tuple(map(float, point[0])), True) for point in contours[0])
    assert farthest <= 1
    assert enclosed_area(contours[1]) == pytest.approx(disc.sum(), rel=0.01)


@pytest.mark.parametrize("box", [(3, 4, 1, 1), (0, 0, 40, 1), (0, 0, 1, 30), (5, 5, 2, 2)])
def test_small_parts_keep_their_area(box: tuple[int, int, int, int]) -> None:
    assert mask_outlines(mask(box), tolerance_px=5) == mask_outlines(mask(box))


@given(st.floats(0, 1))
def test_numbers_are_plain_and_near(value: float) -> None:
    text = _numbers(np.array([value]))
    assert "e" not in text
    assert float(text) == pytest.approx(value, abs=5e-7)
