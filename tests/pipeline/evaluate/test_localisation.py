"""Places at any threshold, on maps whose answer is plain."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.localisation import (
    SAMPLES,
    SHARES,
    Place,
    at_shares,
    drawn,
    overlaps,
    place_of,
    samples_hw,
)
from stages.contract.records import HeatMap


def place(rows: slice, columns: slice, shape: tuple[int, int] = (64, 128)) -> Place:
    inside = np.zeros(shape, np.bool_)
    inside[rows, columns] = True
    box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
    return place_of(inside, [tuple(map(float, box))])


def test_what_lies_above_the_threshold_is_compared_exactly() -> None:
    heat = np.zeros((64, 128), np.float32)
    heat[10:30, 20:60] = 1.0
    heat[10:30, 60:80] = 0.4
    truth = place(slice(10, 30), slice(20, 60))
    assert (overlaps(heat, 0.5, truth).box, overlaps(heat, 0.5, truth).mask) == (1.0, 1.0)
    assert overlaps(heat, 0.3, truth).mask == pytest.approx(40 / 60)
    assert overlaps(heat, 0.3, truth).box == pytest.approx(40 / 60)
    assert overlaps(heat, 1.0, truth).mask == 0.0, "nothing lies above"


def test_the_box_is_that_of_the_part_with_most_heat_and_the_mask_of_all_parts() -> None:
    heat = np.zeros((64, 128), np.float32)
    heat[0:10, 0:10] = 0.9
    heat[40:60, 80:120] = 0.8
    large = overlaps(heat, 0.5, place(slice(40, 60), slice(80, 120)))
    small = overlaps(heat, 0.5, place(slice(0, 10), slice(0, 10)))
    assert (large.box, small.box) == (1.0, 0.0)
    assert large.mask == pytest.approx(800 / 900)
    assert small.mask == pytest.approx(100 / 900)


def test_parts_that_share_a_corner_are_one() -> None:
    heat = np.zeros((64, 128), np.float32)
    heat[0:8, 0:8] = heat[8:16, 8:16] = 1.0
    assert overlaps(heat, 0.5, place(slice(0, 16), slice(0, 16))).box == 1.0


def test_shares_are_of_the_maximum() -> None:
    heat = np.linspace(0, 5, 64 * 128, dtype=np.float32).reshape(64, 128)
    truth = place(slice(32, 64), slice(0, 128))
    found = at_shares(heat, truth)
    assert len(found) == len(SHARES)
    assert found[SHARES.index(0.5)].mask == pytest.approx(1.0, abs=0.001)
    assert found[SHARES.index(0.9)].mask == pytest.approx(0.2, abs=0.001)


def test_the_truth_on_the_samples() -> None:
    assert samples_hw((375, 500)) == (96, SAMPLES)
    inside = np.zeros((750, 1000), np.bool_)
    inside[150:450, 200:600] = True
    found = place_of(inside, [(200.0, 150.0, 400.0, 300.0)])
    assert found.inside.shape == (96, SAMPLES)
    assert found.inside.mean() == pytest.approx(inside.mean(), abs=0.005)
    assert found.boxes_xywh[0] == pytest.approx((25.6, 19.2, 51.2, 38.4))
    thin = np.zeros((750, 1000), np.bool_)
    thin[400:402, 100:900] = True
    assert place_of(thin, [(100.0, 400.0, 800.0, 2.0)]).inside.any(), "a thin thing does not vanish"


def test_a_map_is_drawn_where_its_tokens_look() -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = 1.0
    at = np.unravel_index(drawn(HeatMap(text="a", values=values, similarity=0.0), (40, 40)).argmax(), (40, 40))
    shifted = HeatMap(text="a", values=values, similarity=0.0, shift_cells=0.5)
    moved = np.unravel_index(drawn(shifted, (40, 40)).argmax(), (40, 40))
    assert np.subtract(moved, at).tolist() == [5, 5]
