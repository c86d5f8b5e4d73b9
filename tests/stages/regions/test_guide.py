"""The guided filter against its definition, and what it does to heat beside an edge."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from stages.contract.masks import decode_mask
from stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from stages.regions.colours import EPSILON, Canvas, Guide
from stages.regions.config import RegionsConfig
from stages.regions.cut import CutMap, Cutter
from stages.regions.maker import RegionMaker
from tests.stages.regions.cutting import regions_of, thing_map
from tests.stages.regions.test_refine import picture

GUIDED = RegionsConfig(upsample="guided", rule="fixed", threshold=0.45, smooth_patches=0.5)
LINEAR = GUIDED.model_copy(update={"upsample": "linear"})
SIDE = 200
GRID = 20
THING = (slice(63, 117), slice(84, 104))  # rows, columns; on no cell's border


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_definition(rgb: np.ndarray, heat: np.ndarray, radius: int) -> np.ndarray:
    """The two sums of the paper, window by window, over the mirrored image; float64."""
    margin = 2 * radius
    colours = np.pad(rgb / 255, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    mirrored = np.pad(heat.astype(np.float64), margin, mode="symmetric")
    height, width = heat.shape
    lines = {}
    for y in range(-radius, height + radius):
        for x in range(-radius, width + radius):
            window = (slice(y + radius, y + 3 * radius + 1), slice(x + radius, x + 3 * radius + 1))
            inner = colours[window].reshape(-1, 3)
            values = mirrored[window].ravel()
            covariance = np.cov(inner, rowvar=False, bias=True) + EPSILON * np.eye(3)
            together = ((inner - inner.mean(0)) * (values - values.mean())[:, None]).mean(0)
            slope = np.linalg.solve(covariance, together)
            lines[y, x] = (slope, values.mean() - slope @ inner.mean(0))
    guided = np.zeros(heat.shape)
    for y in range(height):
        for x in range(width):
            around = [
                lines[j, i]
                for j in range(y - radius, y + radius + 1)
                for i in range(x - radius, x + radius + 1)
            ]
            slope = np.mean([a for a, _ in around], axis=0)
            guided[y, x] = slope @ (rgb[y, x] / 255) + np.mean([b for _, b in around])
    return guided


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_guided_filter_of_the_paper(seed: int) -> None:
    rgb = noisy(9, 12, seed)
    heat = np.random.default_rng(seed + 10).uniform(0, 255, (9, 12)).astype(np.float32)
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
    truth = np.zeros((SIDE, SIDE), bool)
    truth[THING] = True
    mask = decode_mask(painted.mask)
    return float((mask & truth).sum() / (mask | truth).sum())


def surface(heat_map: HeatMap, config: RegionsConfig, canvas: Canvas | None = None) -> np.ndarray:
    levels, is_guided = Cutter(config).surface_of(thing_map(heat_map, canvas=canvas))
    assert is_guided == (levels.shape != heat_map.values.shape)
    return levels


def cut(heat_map: HeatMap, config: RegionsConfig, canvas: Canvas) -> CutMap:
    return Cutter(config).cut(thing_map(heat_map, canvas=canvas))


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


def test_guided_rules_look_at_the_fine_map() -> None:
    config = GUIDED.model_copy(update={"rule": "mean"})
    fine_map = cut(blurry(), config, Canvas(picture(THING)))
    assert fine_map.threshold == np.floor(fine_map.fine.mean(dtype=np.float64)) + 0.5


def test_the_stage_guides_each_map_by_its_own_image() -> None:
    records = [
        Record(
            sample=Sample(sample_id=str(seed), source="test"),
            width_px=SIDE,
            height_px=SIDE,
            phrases=(Phrase(text="red thing", caption_index=0, start=0, end=9, head="thing"),),
            pixels=Pixels(rgb=picture(THING, seed=seed)),
            heat_maps=(blurry(seed),),
        )
        for seed in range(3)
    ]
    maker = RegionMaker(GUIDED)
    for record in records:
        (shown,) = maker.surfaces_of(record).values()
        levels = surface(
            record.heat_maps[0], GUIDED, Canvas(record.pixels.rgb if record.pixels else picture(THING))
        )
        assert np.array_equal(shown.values, levels)
    empty = replace(records[0], heat_maps=(replace(blurry(), fault="empty"),))
    assert maker.surfaces_of(empty) == {}
