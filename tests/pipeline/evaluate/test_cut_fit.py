"""Fitting the rule `fitted` to images with known boxes."""

import numpy as np
import pytest

from pipeline.evaluate.cut_fit import SizedThing, UsualSizes, fit_cut
from stages.contract.levels import quantise
from stages.regions.cut_rules import CUT_FEATURES, SHARES, FittedCut, cut_features, fixed_cut


def test_usual_sizes_are_those_of_other_images() -> None:
    """Sizes -1, -3 and -5, whose mean is -3; three things of usual size stand beside those that were seen."""
    things = [(1, "dog", -1.0), (2, "dog", -3.0), (2, "hat", -5.0)]
    sizes = UsualSizes([SizedThing(image=image, head=head, log_size=size) for image, head, size in things])
    assert sizes.by_head() == {"dog": 0.4, "hat": -0.5}
    assert sizes.of_other_images(1, ["dog"]) == {"dog": 0}
    assert sizes.of_other_images(2, ["dog", "hat"]) == {"dog": pytest.approx(2 / 4), "hat": 0}
    assert sizes.of_other_images(3, ["dog", "bird"]) == {"dog": pytest.approx(2 / 5), "bird": 0}


def test_a_fit_learns_how_large_things_are() -> None:
    """Of humps of any width, the cut is right whose box has a fifth of the map: no one share is."""
    rng = np.random.default_rng(5)
    grid = np.mgrid[:22, :22]
    maps = []
    for _ in range(160):
        centre = rng.uniform(6, 16, (2, 1, 1))
        width = rng.uniform(2.0, 9.0)
        levels = quantise(np.exp(-((grid - centre) ** 2).sum(0) / (2 * width**2)).astype(np.float32))
        assert levels is not None
        maps.append(levels)
    features = np.array([cut_features(levels, 0.0) for levels in maps])
    box = np.exp(features[..., CUT_FEATURES.index("log_box_area")])
    right = np.abs(np.log(box / 0.2)) < np.log(1.5)
    fit = fit_cut(features[:80], right[:80])
    rule = FittedCut(**fit.by_name(CUT_FEATURES), usual={})
    cuts = [[fixed_cut(share) for share in SHARES].index(rule(levels, 0.0)) for levels in maps[80:]]
    hits = right[80:][np.arange(80), cuts]
    assert hits[right[80:].any(axis=1)].mean() > 0.9
    assert hits.mean() > right[80:].mean(axis=0).max() + 0.2


@pytest.mark.parametrize("all_right", [False, True])
def test_a_fit_needs_right_and_wrong_cuts(all_right: bool) -> None:
    features = np.zeros((5, len(SHARES), len(CUT_FEATURES)))
    with pytest.raises(ValueError, match="right and wrong"):
        fit_cut(features, np.full(features.shape[:2], all_right))
