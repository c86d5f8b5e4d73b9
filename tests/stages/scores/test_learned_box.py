"""Learned boxes: what they see of a map, and the regions that they make of it."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import Record, Region
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.ladder import ladders_of
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.learned_box import FACTS, INPUTS, LADDER_CUTS, BoxModel, MapView
from tests.stages.regions.cutting import ENDS, USUAL, fit_that
from tests.stages.regions.test_stage import heat_map, record

FIXED = RegionsConfig(rule="fixed", threshold=0.5, smooth_patches=0, group="none")


def random_fit(seed: int = 0) -> BoxModel:
    rng = np.random.default_rng(seed)
    networks = tuple(rng.normal(0, 0.05, ENDS[1] + 65 * 4) for _ in range(2))
    return BoxModel(
        usual=USUAL, mean=rng.normal(size=INPUTS), scale=rng.uniform(0.5, 2, INPUTS), networks=networks
    )


def record_of(square: tuple[slice, slice]) -> Record:
    """An image of 160 x 80 px with a phrase and its hot square, in a warm neighbourhood."""
    values = np.zeros((8, 16), np.float32)
    values[square] = 1.0
    values = np.maximum(values, 0.3 * cv2.dilate(values, np.ones((3, 3))))
    made = record(heat_map(values), width_px=160, height_px=80)
    return replace(made, sample=replace(made.sample, captions=("a dog",)))


SQUARE = (slice(2, 5), slice(4, 8))


def regions_of(box_fit: BoxModel | None) -> tuple[Region, ...]:
    return RegionsStage(FIXED, box_fit=box_fit).process([record_of(SQUARE)])[0].regions


def test_a_ladder_by_hand() -> None:
    levels = np.zeros((8, 16), np.uint8)
    levels[2:6, 4:12] = 80
    levels[3:5, 6:10] = 255
    [ladder] = ladders_of(levels[None], [0.0])
    low, high = ladder.boxes[0, LADDER_CUTS == 0.1][0], ladder.boxes[0, LADDER_CUTS == 0.9][0]
    np.testing.assert_allclose(low, [4 / 16, 2 / 8, 12 / 16, 6 / 8], atol=0.05)
    np.testing.assert_allclose(high, [6 / 16, 3 / 8, 10 / 16, 5 / 8], atol=0.05)
    assert np.array_equal(ladder.boxes[0], ladder.boxes[1]), "there is one part"
    assert ladder.parts[:, 4].all(), "which holds the highest heat"
    assert (np.diff(ladder.parts[:, 1]) <= 0).all(), "and is smaller at higher cuts"


def test_a_usual_place_is_that_of_the_words() -> None:
    np.testing.assert_allclose(USUAL.of({"red dogs": "dog", "cat": "cat"}), [0.55, 0.6, -1, -1])
    np.testing.assert_allclose(USUAL.of({}), [0.5, 0.5, -1, -1])


def test_a_network_that_changes_nothing_leaves_the_box_of_the_cut() -> None:
    (plain,) = regions_of(None)
    (region,) = regions_of(fit_that((0, 0, 0, 0)))
    assert np.abs(np.array(region.box_xywh_px) - plain.box_xywh_px).max() <= 2


@pytest.mark.parametrize(
    ("growth", "box_of"),
    [
        (0.6, "mask"),  # a larger box that the warm neighbourhood fills
        (5.0, "learned"),  # nearly the whole image, most of it cold
    ],
)
def test_the_mask_fills_the_learned_box_as_far_as_the_heat_goes(growth: float, box_of: str) -> None:
    (plain,) = regions_of(None)
    (region,) = regions_of(fit_that((0.0, 0.0, growth, growth)))
    assert region.box_of == box_of
    assert region.area_px > plain.area_px
    x, y, w, h = (round(edge) for edge in region.box_xywh_px)
    mask = decode_mask(region.mask)
    assert mask[y : y + h, x : x + w].sum() == region.area_px
    assert w * h > plain.box_xywh_px[2] * plain.box_xywh_px[3]


def test_a_learned_box_lies_in_the_image() -> None:
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 256, (6, 7), dtype=np.uint8)
    levels.flat[:2] = 0, 255
    for seed in range(20):
        fit = random_fit(seed)
        corner = rng.uniform(0, 0.9, 2)
        box = np.concatenate([corner, corner + rng.uniform(0.01, 0.1, 2)])
        [ladder] = ladders_of(levels[None], [0.3])
        view = MapView(ladder, rng.normal(0, 9, len(FACTS)), rng.normal(size=4), box)
        [[x0, y0, x1, y1]] = fit.boxes_of([view]).tolist()
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
    stored = BoxModel.model_validate_json(fit.model_dump_json())
    assert stored.boxes_of([view]) == pytest.approx(fit.boxes_of([view]), abs=1e-2)
