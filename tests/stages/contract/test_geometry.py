import cv2
import numpy as np
import pytest

from phrasebox.stages.contract.geometry import (
    box_iou,
    cell_to_px,
    px_to_cell,
    resize_shifted,
)
from tests.build.cases import cases
from tests.closeness import assert_close


@cases(
    ("a", "b", "expected"),
    {
        "one pixel of 4 + 4 shared": ((0, 0, 2, 2), (1, 1, 2, 2), 1 / 7),
        "one within the other": ((0, 0, 10, 10), (2, 3, 2, 5), 0.1),
        "one empty": ((0, 0, 2, 2), (5, 5, 0, 0), 0.0),
        "both empty": ((1, 1, 0, 0), (1, 1, 0, 0), 0.0),
    },
)
def test_box_iou(a, b, expected):
    assert box_iou(a, b) == pytest.approx(expected)


@cases(
    ("position_px", "side_px", "cells", "position_cells"),
    {
        "left edge of the image": (0.0, 40, 4, -0.5),
        "centre of the first cell": (5.0, 40, 4, 0.0),
        "centre of the third cell": (25.0, 40, 4, 2.0),
        "one pixel under 14 cells": (0.5, 1, 14, 6.5),
    },
)
def test_cells_and_pixels(position_px, side_px, cells, position_cells):
    assert px_to_cell(position_px, side_px=side_px, cells=cells) == pytest.approx(position_cells)
    assert cell_to_px(position_cells, side_px=side_px, cells=cells) == pytest.approx(position_px)


def test_a_grid_without_a_shift_is_drawn_as_opencv_draws_it() -> None:
    values = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    for size_hw in ((35, 91), (3, 4)):
        wanted = cv2.resize(values, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
        assert_close(resize_shifted(values, size_hw, 0.0), wanted)


@pytest.mark.parametrize("shift", [0.46875, -0.25, 1.5])
def test_a_shifted_value_is_drawn_where_it_lies(shift: float) -> None:
    """One hot cell of 16 px: its peak is the cell's centre, moved by the shift; beyond the border nothing is lost."""
    values = np.zeros((6, 8), np.float32)
    values[2, 3] = 1
    drawn = resize_shifted(values, (96, 128), shift)
    centres = np.indices(drawn.shape).reshape(2, -1) @ drawn.ravel() / drawn.sum() + 0.5
    assert centres == pytest.approx([(2.5 + shift) * 16, (3.5 + shift) * 16], abs=1e-3)
    assert (resize_shifted(np.ones((6, 8), np.float32), (96, 128), shift) == 1).all()
