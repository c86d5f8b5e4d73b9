"""From levels on the grid to the fine map, and the parts that a cut map falls into."""

import numpy as np
import pytest

from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.regions.colours import Canvas
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut import Cutter
from phrasebox.stages.regions.fine_map import refine_grid, samples_per_cell
from phrasebox.stages.regions.parts import HeatPart, ObjectMap, parts_of
from tests.build.cases import cases
from tests.stages.regions.cutting import mask_of, regions_of

ALL = RegionsConfig(min_area_share=0.0, keep_share=0.0)


def parts_in(fine: np.ndarray, inside: np.ndarray, **settings_: object) -> list[HeatPart]:
    return parts_of(fine.astype(np.float32), inside, 51.0, ALL.model_copy(update=settings_))


@cases(
    ("rows", "expected"),
    {
        "a hole and what is in it": (["#####", "#...#", "#.#.#", "#...#", "#####"], [["#####"] * 5]),
        "a bay is no hole": (["###", "#.#", "#.#"], [["###", "#.#", "#.#"]]),
        "closed by corners": ([".#.", "#.#", ".#."], [[".#.", "###", ".#."]]),
        "diagonal neighbours are one part": (["#...#", ".#..."], [["#.", ".#"], ["#"]]),
        "nothing inside": (["..."], []),
    },
)
def test_parts(rows, expected):
    mask = mask_of(*rows)
    parts = parts_in(np.full(mask.shape, 100.0), mask)
    assert [part.inside.tolist() for part in parts] == [mask_of(*part).tolist() for part in expected]


def test_evidence_by_hand():
    fine = np.array([[255.0, 153.0, 0.0, 51.0], [0.0, 0.0, 0.0, 51.0]])
    (part,) = parts_in(fine, mask_of("##..", "...."))
    evidence = part.evidence
    assert evidence.energy == pytest.approx(408 / 510)
    assert evidence.area == 2 / 8
    assert evidence.mean_inside == pytest.approx((1.0 + 0.6) / 2)
    assert evidence.mean_outside == pytest.approx((0.2 + 0.2) / 6)
    assert (evidence.peak, evidence.threshold) == (1.0, 0.2)


@pytest.mark.parametrize(("least", "samples"), [(0.25, [4]), (0.125, [4, 1]), (0.6, [])])
def test_small_parts_are_dropped(least, samples):
    parts = parts_in(np.full((2, 4), 100.0), mask_of("##..", "##.#"), min_area_share=least)
    assert [part.inside.sum() for part in parts] == samples


@cases(
    ("rows", "order"),
    {
        "larger first": (["#.##", "....", "....", "...."], [(0, 2), (0, 0)]),
        "then the left one": (["#..#", "....", "....", "...."], [(0, 0), (0, 3)]),
    },
)
def test_parts_of_equal_heat(rows, order):
    parts = parts_in(np.full((4, 4), 100.0), mask_of(*rows))
    assert [(part.top, part.left) for part in parts] == order


@pytest.mark.parametrize(("keep_share", "lefts"), [(0.5, [0, 5]), (0.51, [0])])
def test_parts_that_fall_behind_are_left_out(keep_share, lefts):
    parts = parts_in(
        np.full((1, 9), 100.0), mask_of("####.##.#"), keep_share=keep_share
    )  # energies 4, 2 and 1 of 9
    assert [part.left for part in parts] == lefts


def test_the_blur_spreads_a_spot_evenly_and_uses_all_levels():
    levels = np.zeros((7, 7), dtype=np.uint8)
    levels[3, 3] = 255
    object_map = ObjectMap(levels=levels, shift_cells=0.0, size_hw=(40, 40), limit=1)
    blurred, _ = Cutter(RegionsConfig(smooth_patches=0.7)).surface_of(object_map)
    assert (blurred.min(), blurred[3, 3]) == (0, 255)
    # a Gaussian's share one cell away, to its value at the centre: exp(-1 / (2 * 0.7^2)) = .360
    assert blurred[3, 4] == pytest.approx(0.360 * 255, abs=1)
    np.testing.assert_array_equal(blurred, blurred.T)
    np.testing.assert_array_equal(blurred, blurred[::-1])


def test_the_fine_map_holds_the_grid_at_the_cell_centres_and_is_bilinear_with_flat_borders():
    levels = np.random.default_rng(0).integers(0, 256, (14, 5)).astype(np.uint8)
    fine = refine_grid(levels)
    assert fine.shape == (98, 35)
    np.testing.assert_allclose(fine[3::7, 3::7], levels, atol=1e-3)
    fine = refine_grid(np.array([[0, 90]], dtype=np.uint8))
    samples = samples_per_cell((1, 2))
    # half-pixel centres: constant up to the first cell's centre, then linear to the second's
    steps = (np.arange(2 * samples) + 0.5) / samples - 0.5
    np.testing.assert_allclose(fine, np.tile(np.clip(steps, 0, 1) * 90, (samples, 1)), atol=1e-3)


@pytest.mark.parametrize("upsample", ["linear", "guided"])
def test_regions_are_drawn_where_the_values_lie(upsample):
    """A round spot on a 14 x 14 grid over 224 px whose values lie 7.5 px right of and below their cells' centres."""
    y, x = np.mgrid[:14, :14]
    spot = np.exp(-((x - 6) ** 2 + (y - 5) ** 2) / 6).astype(np.float32)
    config = RegionsConfig(rule="otsu", upsample=upsample, smooth_patches=0)
    canvas = Canvas(np.full((224, 224, 3), 120, np.uint8))
    for shift in (0.0, 7.5 / 16):
        heat_map = HeatMap(text="dog", values=spot, similarity=0.3, shift_cells=shift)
        ((painted, _),) = regions_of(heat_map, (448, 448), 1, config, canvas)
        left, top, width, height = painted.box_xywh_px
        centre = (left + width / 2, top + height / 2)
        assert centre == pytest.approx((6.5 * 32 + 32 * shift, 5.5 * 32 + 32 * shift), abs=2)
