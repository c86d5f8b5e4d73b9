import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.records import HeatMap
from stages.regions.colours import Canvas
from stages.regions.components import FINE_SIDE, refine_grid, samples_per_cell, smooth
from stages.regions.config import RegionsConfig
from tests.stages.regions.plain import regions_of_map


def test_smooth_spreads_a_spot_evenly_and_uses_all_levels():
    levels = np.zeros((7, 7), dtype=np.uint8)
    levels[3, 3] = 255
    (blurred,), _ = smooth(levels[None], 0.7)
    assert blurred[3, 3] == 255
    assert blurred.min() == 0
    # a Gaussian's share one cell away, to its value at the centre: exp(-1 / (2 * 0.7^2)) = .360
    assert blurred[3, 4] == pytest.approx(0.360 * 255, abs=1)
    np.testing.assert_array_equal(blurred, blurred.T)
    np.testing.assert_array_equal(blurred, blurred[::-1])


def test_smooth_goes_on_beyond_the_border():
    step = np.repeat([[0, 0, 0, 255, 255, 255]], 3, axis=0).astype(np.uint8)
    (blurred,), _ = smooth(step[None], 0.5)
    np.testing.assert_array_equal(blurred[0], blurred[1])
    assert blurred[0, 0] == 0
    assert blurred[0, -1] == 255


@given(st.integers(1, 400), st.integers(1, 400))
def test_samples_are_odd_and_within_the_side(height, width):
    samples = samples_per_cell((height, width))
    assert samples % 2 == 1
    assert samples == 1 or samples * max(height, width) <= FINE_SIDE


def test_fine_map_holds_the_grid_at_the_cell_centres():
    levels = np.random.default_rng(0).integers(0, 256, (14, 5)).astype(np.uint8)
    fine = refine_grid(levels)
    assert fine.shape == (98, 35)
    np.testing.assert_allclose(fine[3::7, 3::7], levels, atol=1e-3)


def test_fine_map_is_bilinear_with_flat_borders():
    fine = refine_grid(np.array([[0, 90]], dtype=np.uint8))
    samples = samples_per_cell((1, 2))
    assert fine.shape == (samples, 2 * samples)
    # half-pixel centres: constant up to the first cell's centre, then linear to the second's
    steps = (np.arange(2 * samples) + 0.5) / samples - 0.5
    np.testing.assert_allclose(fine[0], np.clip(steps, 0, 1) * 90, atol=1e-3)
    np.testing.assert_allclose(fine, np.repeat(fine[:1], samples, axis=0), atol=1e-3)


@pytest.mark.parametrize("upsample", ["linear", "guided"])
def test_regions_are_drawn_where_the_values_lie(upsample):
    """A round spot on a 14 x 14 grid over 224 px whose values lie 7.5 px right of and below their cells' centres."""
    y, x = np.mgrid[:14, :14]
    spot = np.exp(-((x - 6) ** 2 + (y - 5) ** 2) / 6).astype(np.float32)
    config = RegionsConfig(upsample=upsample, smooth_patches=0)
    canvas = Canvas(np.full((224, 224, 3), 120, np.uint8))
    centres = []
    for shift in (0.0, 7.5 / 16):
        heat_map = HeatMap(text="dog", values=spot, similarity=0.3, shift_cells=shift)
        ((painted, _),) = regions_of_map(heat_map, (448, 448), 1, config, canvas)
        left, top, width, height = painted.box_xywh_px
        centres.append((left + width / 2, top + height / 2))
    assert centres[0] == pytest.approx((6.5 * 32, 5.5 * 32), abs=2)
    assert centres[1] == pytest.approx((6.5 * 32 + 15, 5.5 * 32 + 15), abs=2)
