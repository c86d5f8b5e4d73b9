"""The rules by which maps are cut, and the learned one among them."""

import cv2
import numpy as np
import pytest

from phrasebox.stages.contract.levels import LEVELS, quantise
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.cut_rules import (
    cut_features,
    fixed_cut,
    mean_cut,
    otsu_cut,
    thresholds_of,
)
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.fitted_cut import CUT_FEATURES, SHARES, FittedCut
from tests.build.cases import cases


def levels_of(*values: int) -> np.ndarray:
    return np.array([values], dtype=np.uint8)


@cases(
    ("cut", "values", "expected"),
    {
        "mean 25, itself outside": (mean_cut, (0, 0, 0, 100), 25.5),
        "mean 33.67": (mean_cut, (0, 0, 101), 33.5),
        "mean 127.5": (mean_cut, (0, 255), 127.5),
        "one hot cell: halfway, not just above zero": (otsu_cut, (0, 0, 0, 255), 127.5),
        "cuts 10 .. 19 are equal, the middle is 14": (otsu_cut, (10, 10, 20, 20), 14.5),
        # variances n0 n1 (m1 - m0)^2: {0}|{4, 10}: 2 * 7^2 = 98, {0, 4}|{10}: 2 * 8^2 = 128
        "cuts 4 .. 9": (otsu_cut, (0, 4, 10), 6.5),
        # {0}|{9, 10, 10}: 3 * (29/3)^2 = 280, {0, 9}|{10, 10}: 4 * 5.5^2 = 121
        "cuts 0 .. 8": (otsu_cut, (0, 9, 10, 10), 4.5),
        # {10}|{20, 30} and {10, 20}|{30}: 2 * 15^2 both
        "two equal gaps, the lower one": (otsu_cut, (10, 20, 30), 14.5),
        "a single level has nothing above": (otsu_cut, (7, 7, 7), 7.5),
    },
)
def test_mean_and_otsu(cut, values, expected):
    assert cut(levels_of(*values)) == expected


@pytest.mark.parametrize(
    ("rule", "expected"), [("mean", 30.5), ("otsu", 24.5), ("fixed", 127.5), ("fitted", 51.5)]
)
def test_each_rule_uses_its_own_setting_and_a_rule_without_weights_is_a_fixed_share(rule, expected):
    config = RegionsConfig(rule=rule, threshold=0.5)
    assert thresholds_of(config, None, levels_of(30, 10, 50, 20, 40)[None], [0.0]) == [expected]


def chooses(mean: float = 0.0, scale: float = 1.0, **weight: float) -> FittedCut:
    """A rule that weighs some features, by default as they are."""
    weights = {name: weight.get(name, 0.0) for name in CUT_FEATURES}
    means, scales = (dict.fromkeys(CUT_FEATURES, value) for value in (mean, scale))
    return FittedCut(weight=weights, mean=means, scale=scales, usual={"field": 1.5, "hat": -2.0})


def cut_by(rule: FittedCut, levels: np.ndarray, usual_size: float = 0.0) -> float:
    [threshold] = thresholds_of(RegionsConfig(), rule, levels[None], [usual_size])
    return threshold


def test_a_stage_knows_the_rule_that_it_cuts_by() -> None:
    assert RegionsStage(RegionsConfig()).config == RegionsConfig(rule="fixed", threshold=0.2)
    assert RegionsStage(RegionsConfig(rule="otsu")).config == RegionsConfig(rule="otsu")
    assert RegionsStage(RegionsConfig(), fitted_cut=chooses(share=1)).config == RegionsConfig()


def random_maps(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = cv2.GaussianBlur(rng.random((12, 9, count), dtype=np.float32), (0, 0), 1.3)
    levels = [quantise(np.ascontiguousarray(values[..., number])) for number in range(count)]
    return np.stack([each for each in levels if each is not None])


def features_by_hand(levels: np.ndarray, share: float, usual: float) -> list[float]:
    """The features of one cut of one map, one part after the other."""
    inside = (levels > fixed_cut(share)).astype(np.uint8)
    count, labels = cv2.connectedComponents(inside, connectivity=8)
    main = max((labels == label for label in range(1, count)), key=lambda part: int(levels[part].sum()))
    rows, columns = np.nonzero(main)
    box = np.log((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / levels.size)
    area = np.log(main.mean())
    energy = levels[main].sum() / levels.sum()
    hot = levels[main].mean() / LEVELS
    cold = levels[~main].mean() / LEVELS
    alone = [share, share**2, energy, energy**2, hot, cold, area, area**2, box, box**2]
    return [*alone, cold / hot, (cold / hot) ** 2, share * box, energy * box, hot * box, usual * box]


def test_features_are_those_of_the_part_with_most_heat_of_each_cut() -> None:
    maps = random_maps(6)
    for levels, features_of_cuts in zip(maps, cut_features(maps, [-1.5] * 6), strict=True):
        for share, features in zip(SHARES, features_of_cuts, strict=True):
            assert features.tolist() == pytest.approx(features_by_hand(levels, share, -1.5))


def test_a_cut_that_nothing_lies_above_is_not_taken() -> None:
    """As where the highest sample of an interpolated map is not its highest cell."""
    levels = np.full((3, 3), 40, np.uint8)
    levels[1, 1] = 120
    [features] = cut_features(levels[None], [0.0])
    assert np.isnan(features[SHARES.index(0.5) :]).all()
    assert np.isfinite(features[: SHARES.index(0.5)]).all()
    assert cut_by(chooses(share=1.0), levels) == fixed_cut(0.4)


def test_the_cut_of_the_highest_worth_is_taken_and_the_lowest_of_equals() -> None:
    for levels in random_maps(3):
        assert cut_by(chooses(share=1.0), levels) == fixed_cut(SHARES[-1])
        assert cut_by(chooses(share=-1.0), levels) == fixed_cut(SHARES[0])
        assert cut_by(chooses(share=0.8, share_squared=-1.0), levels) == fixed_cut(0.4)
        assert cut_by(chooses(), levels) == fixed_cut(SHARES[0])


def test_what_is_usually_large_is_cut_lower() -> None:
    """With a weight of the usual size alone: the larger a thing usually is, the larger its part.

    On a cone every cut has a box of its own.
    """
    grid = np.mgrid[:41, :41] - 20.0
    levels = np.rint(LEVELS * np.maximum(0, 1 - np.hypot(*grid) / 20)).astype(np.uint8)
    rule = chooses(usual_by_box_area=1.0)
    sizes = [rule.usual_size([head]) for head in ("field", "hat", "thing")]
    assert [cut_by(rule, levels, size) for size in sizes] == [
        fixed_cut(SHARES[place]) for place in (0, -1, 0)
    ]
    assert rule.usual_size(("field", "hat", "field")) == pytest.approx(1 / 3)
    assert rule.usual_size(()) == 0
