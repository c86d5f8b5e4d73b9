"""The maps of an image are cut together."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from phrasebox.stages.contract.levels import quantise
from phrasebox.stages.contract.values import Levels
from phrasebox.stages.regions.colours import Canvas
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.contours import regions_of_maps
from phrasebox.stages.regions.cut import Cutter
from phrasebox.stages.regions.parts import ObjectMap
from phrasebox.stages.scores.fitted_cut import CUT_FEATURES, FittedCut
from phrasebox.stages.scores.learned_box import FACTS, INPUTS, BoxContext, BoxModel
from tests.stages.regions.cutting import ENDS, USUAL

SIZES = [(7, 7), (5, 9), (7, 7), (7, 7), (5, 9)]


def levels_of(size_hw: tuple[int, int], rng: np.random.Generator) -> Levels:
    levels = quantise(cv2.GaussianBlur(rng.random(size_hw, dtype=np.float32), (0, 0), 1.0))
    assert levels is not None
    return levels


def random_cutter(config: RegionsConfig, rng: np.random.Generator) -> Cutter:
    weights = dict(zip(CUT_FEATURES, rng.normal(size=len(CUT_FEATURES)).tolist(), strict=True))
    mean, scale = (dict.fromkeys(CUT_FEATURES, value) for value in (0.0, 1.0))
    network = rng.normal(0, 0.1, ENDS[1] + 65 * 4)
    return Cutter(
        config,
        FittedCut(weight=weights, mean=mean, scale=scale, usual={}),
        BoxModel(usual=USUAL, mean=np.zeros(INPUTS), scale=np.ones(INPUTS), networks=(network, -network)),
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"rule": "otsu"}, {"rule": "mean"}, {"upsample": "guided"}, {"refine": "grabcut"}],
    ids=["fitted", "otsu", "mean", "guided", "grabcut"],
)
def test_maps_of_any_sizes_have_the_regions_that_each_has_alone(settings: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    canvas = Canvas(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8))
    maps = [
        ObjectMap(
            levels=levels_of(size_hw, rng),
            shift_cells=0.25 * number,
            size_hw=(90, 120),
            limit=3,
            usual_size=float(rng.normal()),
            context=BoxContext(rng.normal(size=len(FACTS)), rng.normal(size=4)),
            canvas=canvas,
        )
        for number, size_hw in enumerate(SIZES)
    ]
    # One that the blur leaves nothing of has no regions, and moves no other's.
    maps.insert(2, replace(maps[0], levels=np.zeros((7, 7), np.uint8)))
    cutter = random_cutter(RegionsConfig.model_validate(settings), rng)
    together = regions_of_maps(maps, cutter)
    alone = [regions for object_map in maps for regions in regions_of_maps([object_map], cutter)]
    assert not together[2]
    assert all(regions for number, regions in enumerate(together) if number != 2)
    for each, expected in zip(together, alone, strict=True):
        assert [region for region, _ in each] == [region for region, _ in expected]
        for (_, evidence), (_, same) in zip(each, expected, strict=True):
            assert evidence.score == pytest.approx(same.score)
            assert evidence.of_box == pytest.approx(same.of_box, abs=1e-9)
