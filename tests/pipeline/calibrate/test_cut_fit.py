"""Fitting the rule `fitted` to images with known boxes."""

import numpy as np
import pytest

from phrasebox.pipeline.calibrate.cut_fit import SizedObject, UsualSizes, fit_cut
from phrasebox.stages.scores.fitted_cut import CUT_FEATURES, SHARES


def test_usual_sizes_are_those_of_other_images() -> None:
    """Sizes -1, -3 and -5, whose mean is -3; three things of usual size stand beside those that were seen."""
    objects = [(1, "dog", -1.0), (2, "dog", -3.0), (2, "hat", -5.0)]
    sizes = UsualSizes(
        [SizedObject(image=image, head=head, log_size=size) for image, head, size in objects]
    )
    assert sizes.by_head() == {"dog": 0.4, "hat": -0.5}
    assert sizes.of_other_images(1, ["dog"]) == {"dog": 0}
    assert sizes.of_other_images(2, ["dog", "hat"]) == {"dog": pytest.approx(2 / 4), "hat": 0}
    assert sizes.of_other_images(3, ["dog", "bird"]) == {"dog": pytest.approx(2 / 5), "bird": 0}


@pytest.mark.parametrize("all_right", [False, True])
def test_a_fit_needs_right_and_wrong_cuts(all_right: bool) -> None:
    features = np.zeros((5, len(SHARES), len(CUT_FEATURES)))
    with pytest.raises(ValueError, match="right and wrong"):
        fit_cut(features, np.full(features.shape[:2], all_right))
