"""The outline by colour: one red square on grey ground, and a heat map that only roughly knows where it is."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import HeatMap, Pixels
from phrasebox.stages.regions.colours import CANVAS_SIDE, Canvas, grabcut
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.paint import RegionMask
from phrasebox.stages.regions.stage import RegionsStage
from tests.build.cases import cases
from tests.stages.regions.cutting import regions_of, share
from tests.stages.regions.test_stage import record

CONTOUR = RegionsConfig(rule="otsu", smooth_patches=0.5)
GRABCUT = CONTOUR.model_copy(update={"refine": "grabcut"})
SIDE = 200
PATCH = 10
SQUARE = (slice(63, 117), slice(84, 138))  # rows, columns; on no cell's border


def picture(*squares: tuple[slice, slice], noise: float = 6.0, seed: int = 0) -> np.ndarray:
    """uint8 (200, 200, 3): noisy grey with noisy red squares."""
    rgb = np.full((SIDE, SIDE, 3), (120.0, 125.0, 130.0))
    for square in squares:
        rgb[square] = (200, 40, 50)
    return np.clip(rgb + np.random.default_rng(seed).normal(0, noise, rgb.shape), 0, 255).astype(np.uint8)


def blurry(
    *squares: tuple[slice, slice], shift: int = 0, blur: float = 1.2, text: str = "red square"
) -> HeatMap:
    """The squares on the grid, `shift` pixels too far down and right, blurred by so many patches."""
    full = np.zeros((SIDE, SIDE), np.float32)
    for square in squares:
        full[square] = 1
    moved = np.roll(full, (shift, shift), (0, 1))
    grid = cv2.resize(moved, (SIDE // PATCH, SIDE // PATCH), interpolation=cv2.INTER_AREA)
    return HeatMap(text=text, values=cv2.GaussianBlur(grid, (0, 0), blur), similarity=0.3)


def union(regions: list[tuple[RegionMask, float]]) -> np.ndarray:
    return np.any([decode_mask(painted.mask) for painted, _ in regions], axis=0)


def overlap(regions: list[tuple[RegionMask, float]], *squares: tuple[slice, slice]) -> float:
    """IoU of all regions together with the squares."""
    return share(union(regions), *squares)


@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("scale", [1, 3])
def test_the_square_is_recovered_from_a_blurry_map(shift: int, scale: int) -> None:
    heat_map = blurry(SQUARE, shift=shift)
    size_hw = (SIDE * scale, SIDE * scale)
    contour = regions_of(heat_map, size_hw, 1, CONTOUR)
    (region,) = regions_of(heat_map, size_hw, 1, GRABCUT, Canvas(picture(SQUARE)))
    square = (slice(63 * scale, 117 * scale), slice(84 * scale, 138 * scale))
    assert overlap(contour, square) < 0.85
    assert overlap([region], square) > 0.95
    assert region[0].box_xywh_px == pytest.approx(
        (84 * scale, 63 * scale, 54 * scale, 54 * scale), abs=2 * scale
    )


def test_several_things_stay_several() -> None:
    squares = ((slice(30, 70), slice(20, 64)), (slice(120, 171), slice(125, 170)))
    rgb = picture(*squares)
    heat_map = blurry(*squares, blur=0.8)
    regions = regions_of(heat_map, (SIDE, SIDE), 6, GRABCUT, Canvas(rgb))
    assert len(regions) == 2
    assert overlap(regions, *squares) > 0.95
    assert sum(painted.area_px for painted, _ in regions) == union(regions).sum()
    (best,) = regions_of(heat_map, (SIDE, SIDE), 1, GRABCUT, Canvas(rgb))
    assert (
        overlap([best], squares[1]) > 0.95
    )  # the larger one; the other one does not come back by its colour


@cases(
    "rgb",
    {
        "one colour": np.full((SIDE, SIDE, 3), 128, np.uint8),
        "noise": picture(noise=20),
        "fewer pixels than cells": np.zeros((8, 8, 3), np.uint8),
    },
)
def test_the_contour_stays_where_colours_say_nothing(rgb: np.ndarray) -> None:
    heat_map = blurry(SQUARE)
    contour = regions_of(heat_map, (SIDE, SIDE), 1, CONTOUR)
    assert len(contour) == 1
    ((painted, evidence),) = regions_of(heat_map, (SIDE, SIDE), 1, GRABCUT, Canvas(rgb))
    assert (painted.refined, painted.fallback) == ("none", "colours")
    assert [(replace(painted, fallback=None), evidence)] == contour


@cases(
    "part",
    {
        "everything": (slice(None), slice(None)),
        "one pixel has no mixture of colours": (slice(90, 91), slice(100, 101)),
        "900 pixels of one colour around 36": (slice(90, 96), slice(90, 96)),
    },
)
def test_degenerate_cuts_have_no_outline(part: tuple[slice, slice]) -> None:
    inside = np.zeros((SIDE, SIDE), bool)
    inside[part] = True
    assert grabcut(picture((slice(80, 110), slice(80, 110))), inside, inside, PATCH) is None


def test_large_canvases_are_shrunk() -> None:
    small = picture(SQUARE)
    assert Canvas(small).rgb is small
    large = cv2.resize(small, (1600, 1000), interpolation=cv2.INTER_NEAREST)
    assert Canvas(large).rgb.shape == (CANVAS_SIDE * 5 // 8, CANVAS_SIDE, 3)


def test_neither_order_nor_random_state_matters() -> None:
    squares = [(slice(20 + 9 * n, 70 + 9 * n), slice(30 + 5 * n, 80 + 7 * n)) for n in range(3)]
    records = [
        replace(
            record(blurry(square), width_px=320, height_px=240),
            pixels=Pixels(rgb=picture(square, noise=35, seed=number)),
        )
        for number, square in enumerate(squares)
    ]
    stage = RegionsStage(GRABCUT)
    together = stage.process(records)
    cv2.setRNGSeed(7)
    assert stage.process(records[::-1]) == together[::-1]
    assert together != RegionsStage(CONTOUR).process(records)
