"""Many maps cut together have the regions that each has alone, found the plain way."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract.levels import levels_of, quantise_each
from stages.contract.records import HeatMap
from stages.regions.colours import Canvas
from stages.regions.components import components, smooth
from stages.regions.config import RegionsConfig
from stages.regions.cut import MapToCut, map_regions
from stages.regions.paint import paint
from tests.stages.regions.plain import plain_levels, plain_regions

DEFAULT = RegionsConfig()


def soft_spots(seed: int, grid_hw: tuple[int, int] = (14, 14), shift_cells: float = 0.0) -> HeatMap:
    rng, grid = np.random.default_rng(seed), np.mgrid[: grid_hw[0], : grid_hw[1]]
    heat = rng.normal(-0.05, 0.1, grid_hw)
    for strength in (1.0, 0.7, 0.5):
        centre = rng.uniform(0, 1, (2, 1, 1)) * np.array(grid_hw)[:, None, None]
        heat += strength * np.exp(-((grid - centre) ** 2).sum(0) / rng.uniform(1, 8))
    values = np.maximum(heat, 0).astype(np.float32)
    return HeatMap(text=str(seed), values=values, similarity=0.01 * (seed % 40), shift_cells=shift_cells)


def wanted(count: int, shift_cells: float = 0.0, canvas: Canvas | None = None) -> list[MapToCut]:
    """Maps of images of several sizes; among them one without heat, one with a fault, and one of another grid."""
    sizes = [(48, 64), (64, 48), (37, 81), (7, 200)]
    maps = [soft_spots(seed, shift_cells=shift_cells) for seed in range(count)]
    maps[3] = HeatMap(text="flat", values=np.ones((14, 14), np.float32), similarity=0.1)
    maps[5] = HeatMap(text="fault", values=np.zeros((14, 14), np.float32), similarity=0.1, fault="empty")
    maps[6] = soft_spots(6, (7, 11), shift_cells)
    return [
        MapToCut(heat_map=each, size_hw=sizes[number % 4], limit=1 + number % 3, canvas=canvas)
        for number, each in enumerate(maps)
    ]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="default"),
        pytest.param({"rule": "mean", "smooth_patches": 1.0}, id="photographs"),
        pytest.param({"rule": "quantile", "smooth_patches": 0.0, "keep_share": 0.0}, id="quantile"),
        pytest.param({"rule": "fixed", "fill_holes": False, "min_area_px": 100}, id="fixed, no hole filled"),
        pytest.param({"threshold_on": "fine", "rank": "peak", "min_area_share": 0.0}, id="fine"),
        pytest.param({"open_patches": 0.3, "close_patches": 0.5, "keep_share": 0.0}, id="cleaned"),
    ],
)
@pytest.mark.parametrize("shift_cells", [0.0, 0.4])
def test_maps_together_have_the_regions_of_each_alone(change: dict[str, object], shift_cells: float) -> None:
    config, maps = DEFAULT.model_copy(update=change), wanted(16, shift_cells)
    found = map_regions(maps, config)
    assert found == [plain_regions(each, config) for each in maps]
    assert sum(map(len, found)) >= len(maps) - 2


def test_guided_maps_together_have_the_regions_of_each_alone() -> None:
    canvas = Canvas(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    config = RegionsConfig(upsample="guided", rule="fixed", min_area_share=0.0)
    maps = wanted(12, canvas=canvas)
    assert map_regions(maps, config) == [plain_regions(each, config) for each in maps]


@pytest.mark.parametrize("sigma_patches", [0.3, 0.5, 1.0, 2.7])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (14, 14), (24, 17)])
def test_maps_are_blurred_as_each_alone(shape: tuple[int, int], sigma_patches: float) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    blurred, seen = smooth(levels, sigma_patches)
    for own, is_seen, each in zip(blurred, seen, levels, strict=True):
        alone = plain_levels(
            cv2.GaussianBlur(each.astype(np.float32), (0, 0), sigma_patches, borderType=cv2.BORDER_REPLICATE)
        )
        assert is_seen == (alone is not None)
        np.testing.assert_array_equal(own, np.zeros(shape) if alone is None else alone)


def test_levels_of_each_map() -> None:
    rng = np.random.default_rng(0)
    maps = rng.lognormal(0, 4, (9, 5, 6)).astype(np.float32)
    maps[1], maps[3, 2, 2], maps[5, 0, 0], maps[7] = 3.0, np.nan, np.inf, maps[7] * 1e-30
    maps[8] = 7 + rng.uniform(0, 6e-5, (5, 6))
    levels, seen = quantise_each(maps)
    assert seen.tolist() == [True, False, True, False, True, False, True, True, False]
    for own, each in zip(levels, maps, strict=True):
        alone = plain_levels(each)
        np.testing.assert_array_equal(own, np.zeros((5, 6)) if alone is None else alone)
    mixed = levels_of([maps[0], maps[1], maps[2, :3], maps[4]])
    assert [own is None for own in mixed] == [False, True, False, False]
    np.testing.assert_array_equal(mixed[2], plain_levels(maps[2, :3]))
    np.testing.assert_array_equal(mixed[3], levels[4])
    assert quantise_each(np.zeros((2, 0, 3), np.float32))[1].tolist() == [False, False]


@settings(max_examples=200)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.1, 0.9), st.integers(0, 2**32 - 1))
def test_outlines_hold_what_the_flood_does_not_reach(height: int, width: int, share: float, seed: int) -> None:
    inside = np.random.default_rng(seed).random((height, width)) < share
    outside = np.pad(inside.astype(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    filled = outside[1:-1, 1:-1] != 2
    count, labels = cv2.connectedComponents(filled.astype(np.uint8), connectivity=8)
    fine = np.ones(inside.shape, np.float32)
    found = components(fine, inside, threshold=0.5, similarity=0.0, min_area_share=0.0, fill_holes=True)
    together = np.zeros(inside.shape, np.int64)
    for part in found:
        h, w = part.inside.shape
        together[part.top : part.top + h, part.left : part.left + w] += part.inside
        assert part.inside.sum() == part.samples
        first = np.argwhere(part.inside)[0] + (part.top, part.left)
        assert (labels == labels[tuple(first)]).sum() == part.samples
    np.testing.assert_array_equal(together, filled)
    assert len(found) == count - 1


def test_nothing_to_paint_or_to_cut() -> None:
    assert paint([], []) == []
    assert map_regions([], DEFAULT) == []
