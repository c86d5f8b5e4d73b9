"""The guided filter against its definition, and what it does to heat beside an edge."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import HeatMap, Pixels
from phrasebox.stages.regions.colours import EPSILON, Canvas, Guide
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut import CutMap, Cutter
from phrasebox.stages.regions.maker import RegionMaker
from tests.stages.regions.cutting import object_map, regions_of, share
from tests.stages.regions.test_refine import picture
from tests.stages.regions.test_stage import record

GUIDED = RegionsConfig(upsample="guided", rule="fixed", threshold=0.45, smooth_patches=0.5)
LINEAR = GUIDED.model_copy(update={"upsample": "linear"})
SIDE = 200
GRID = 20
THING = (slice(63, 117), slice(84, 104))  # rows, columns; on no cell's border


def noisy(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_definition(rgb: np.ndarray, heat: np.ndarray, radius: int) -> np.ndarray:
    """The two sums of the paper, window by window, over the mirrored image; float64."""

    def windows(values: np.ndarray) -> np.ndarray:
        """The values (H, W, channels) around each pixel: (H, W, channels, pixels of the window)."""
        padded = np.pad(values, [(radius, radius), (radius, radius), (0, 0)], mode="symmetric")
        around = np.lib.stride_tricks.sliding_window_view(padded, [2 * radius + 1] * 2, (0, 1))
        return around.reshape(*values.shape, -1)

    colours = windows(rgb / 255)
    values = windows(heat[..., None].astype(np.float64))
    mean = colours.mean(axis=-1)
    beside = colours - mean[..., None]
    covariance = np.einsum("hwin,hwjn->hwij", beside, beside) / beside.shape[-1] + EPSILON * np.eye(3)
    together = (beside * (values - values.mean(axis=-1, keepdims=True))).mean(axis=-1)
    slopes = np.linalg.solve(covariance, together[..., None])[..., 0]
    offsets = values.mean(axis=-1) - (slopes * mean).sum(axis=-1, keepdims=True)
    return (windows(slopes).mean(axis=-1) * rgb / 255 + windows(offsets).mean(axis=-1) / 3).sum(axis=-1)


def test_it_is_the_guided_filter_of_the_paper() -> None:
    rgb = noisy(9, 12)
    heat = np.random.default_rng(10).uniform(0, 255, (9, 12)).astype(np.float32)
    assert np.allclose(Guide(rgb, 2)(heat), by_definition(rgb, heat, 2), atol=2e-2)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_peak_beside_a_thin_thing_moves_onto_it(step: int) -> None:
    """A thing 6 px wide, and a cell's broad hump of heat whose top lies 2 px beside it."""
    rgb = np.full((40, 60, 3), 200, np.uint8)
    rgb[:, 15:21] = (40, 90, 160)
    heat = np.tile((255 * np.exp(-(((np.arange(60) - 22) / 9) ** 2))).astype(np.float32), (40, 1))
    guided = Guide(rgb, 20, step=step)(
        cv2.resize(heat, (60 // step, 40 // step), interpolation=cv2.INTER_AREA)
    )
    assert heat[20].argmax() == 22
    assert 15 <= guided[20].argmax() < 21
    assert guided[20, 15:21].min() > 1.2 * guided[20, 23:].max()


@pytest.mark.parametrize("step", [2, 4])
def test_a_guide_fitted_to_the_shrunk_image_is_near_that_of_the_full_one(step: int) -> None:
    rgb = cv2.GaussianBlur(noisy(96, 120), (0, 0), 6)
    rgb[30:60, 44:80] = 255 - rgb[30:60, 44:80]
    cells = np.random.default_rng(1).uniform(0, 255, (6, 8)).astype(np.float32)
    full = Guide(rgb, 24)
    shrunk = Guide(rgb, 24, step=step)
    assert shrunk.size_hw == (96 // step, 120 // step)
    expected = full(cv2.resize(cells, (120, 96)))
    filled = shrunk(cv2.resize(cells, (120 // step, 96 // step)))
    assert filled.shape == expected.shape
    assert np.abs(filled - expected).mean() < 0.05 * np.ptp(expected)


def test_a_guide_is_made_once_for_an_image_and_shrinks_it_as_far_as_its_window_allows() -> None:
    canvas = Canvas(noisy(64, 64))
    assert [canvas.guide((cells, cells)).size_hw[0] for cells in (18, 16, 8, 2)] == [64, 32, 16, 16]
    assert canvas.guide((8, 8)) is canvas.guide((8, 8))


def blurry(shift_px: int = 7) -> HeatMap:
    """The thing on the grid, moved to the right and blurred."""
    full = np.zeros((SIDE, SIDE), np.float32)
    full[THING] = 1
    grid = cv2.resize(np.roll(full, shift_px, 1), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return HeatMap(text="red thing", values=cv2.GaussianBlur(grid, (0, 0), 1.0), similarity=0.3)


def overlap(heat_map: HeatMap, config: RegionsConfig, rgb: np.ndarray) -> float:
    """IoU of the best region with the thing."""
    ((painted, _),) = regions_of(heat_map, (SIDE, SIDE), 1, config, Canvas(rgb))
    return share(decode_mask(painted.mask), THING)


def surface(heat_map: HeatMap, config: RegionsConfig, canvas: Canvas | None = None) -> np.ndarray:
    levels, is_guided = Cutter(config).surface_of(object_map(heat_map, canvas=canvas))
    assert is_guided == (levels.shape != heat_map.values.shape)
    return levels


def cut(heat_map: HeatMap, config: RegionsConfig, canvas: Canvas) -> CutMap:
    [cut_map] = Cutter(config).cut([object_map(heat_map, canvas=canvas)])
    return cut_map


def test_a_guided_contour_follows_the_thing() -> None:
    assert overlap(blurry(), LINEAR, picture(THING)) < 0.6
    assert overlap(blurry(), GUIDED, picture(THING)) > 0.85
    assert overlap(blurry(), GUIDED.model_copy(update={"refine": "grabcut"}), picture(THING)) > 0.9


def test_the_surface_is_the_map_that_regions_are_cut_from() -> None:
    heat_map = blurry()
    canvas = Canvas(picture(THING))
    for config in (GUIDED, GUIDED.model_copy(update={"refine": "grabcut"})):
        levels = surface(heat_map, config, canvas)
        assert levels.shape == (SIDE, SIDE)
        assert (levels.min(), levels.max()) == (0, 255)
        assert np.array_equal(cut(heat_map, config, canvas).fine, levels)
    assert surface(heat_map, LINEAR).shape == (GRID, GRID)


def test_the_stage_guides_a_map_by_its_image() -> None:
    guided = replace(record(blurry(), width_px=SIDE, height_px=SIDE), pixels=Pixels(rgb=picture(THING)))
    maker = RegionMaker(GUIDED)
    (shown,) = maker.surfaces_of(guided).values()
    assert np.array_equal(shown.values, surface(blurry(), GUIDED, Canvas(picture(THING))))
    assert maker.surfaces_of(replace(guided, heat_maps=(replace(blurry(), fault="empty"),))) == {}
