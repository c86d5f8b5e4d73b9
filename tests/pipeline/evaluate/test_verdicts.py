"""What each command advises, from figures that are given."""

import pytest

from phrasebox.pipeline.evaluate.estimates import Estimate, ScoreFilter
from phrasebox.pipeline.evaluate.verdicts import (
    calibration_verdict,
    evaluation_verdict,
    replacement_verdict,
)

BETTER = Estimate(value=0.02, low=0.01, high=0.03, n=200)
WORSE = Estimate(value=-0.02, low=-0.03, high=-0.01, n=200)
UNDECIDED = Estimate(value=0.02, low=-0.01, high=0.05, n=200)


FALLS = "falls by 0.020 (95 % interval 0.010 to 0.030)"
MAY_FALL = "falls by 0.020 (95 % interval -0.010 to 0.050)"
RISES = "rises by 0.020 (95 % interval 0.010 to 0.030)"


@pytest.mark.parametrize(
    ("gain", "replaces", "verdict", "change"),
    [
        (BETTER, False, "use it. It tells right regions from wrong ones", FALLS),
        (UNDECIDED, False, "do not use it, it needs more images", MAY_FALL),
        (WORSE, False, "do not use it, it needs more images", RISES),
        (BETTER, True, "use it: ", FALLS),
        (UNDECIDED, True, "keep the dataset's scores, or more. The new calibration is not shown", MAY_FALL),
        (WORSE, True, "keep the dataset's scores. The new calibration is worse: ", RISES),
    ],
)
def test_a_calibration_is_advised_if_it_is_better_beyond_chance(gain, replaces, verdict, change) -> None:
    sentence = replacement_verdict(gain, "scores", ", or more") if replaces else calibration_verdict(gain)
    assert sentence.startswith(f"Verdict: {verdict}")
    assert change in sentence


@pytest.mark.parametrize(("gain", "is_used"), [(BETTER, True), (UNDECIDED, True), (WORSE, False)])
def test_better_boxes_count_where_scores_are_no_worse(gain: Estimate, is_used: bool) -> None:
    sentence = replacement_verdict(gain, "calibration", has_better_boxes=True)
    assert sentence.startswith("Verdict: use it") == is_used


def line(score: float, share: float, *precision: float, n: int = 100) -> ScoreFilter:
    value, low, high = precision
    return ScoreFilter(score=score, share=share, precision=Estimate(value=value, low=low, high=high, n=n))


HALF = line(0.0, 1.0, 0.6, 0.51, 0.7)
FEW = line(0.0, 1.0, 0.2, 0.12, 0.29)
FILTERED = line(0.5, 0.25, 0.38, 0.19, 0.57)
RIGHT = line(0.6, 0.1, 0.7, 0.6, 0.8)
TINY = line(0.9, 0.01, 1.0, 1.0, 1.0, n=4)


@pytest.mark.parametrize(
    ("above", "lines", "verdict", "right"),
    [
        (
            BETTER,
            [HALF, RIGHT],
            "use the regions: ",
            "of the regions 60% (95 % interval 51% to 70%) are right",
        ),
        (
            BETTER,
            [FEW, RIGHT],
            "use the regions with --min-score 0.6: ",
            "0.6 or more (10% of all) 70% (95 %",
        ),
        (
            BETTER,
            [FEW, FILTERED, TINY],
            "look at the regions before you use them. ",
            "0.5 or more (25% of all) 38%",
        ),
        (
            UNDECIDED,
            [FEW, RIGHT],
            "do not rely on the regions. Their box recall is not shown to be higher ",
            "70%",
        ),
        (
            WORSE,
            [FEW, TINY],
            "do not rely on the regions. Their box recall is lower ",
            "of the regions 20%",
        ),
        (
            None,
            [FEW, RIGHT],
            "use the regions with --min-score 0.6: ",
            "70% (95 % interval 60% to 80%) are right.",
        ),
    ],
)
def test_regions_are_advised_from_the_score_on_that_leaves_half_right(above, lines, verdict, right) -> None:
    sentence = evaluation_verdict(lines, above)
    assert sentence.startswith(f"Verdict: {verdict}")
    assert right in sentence


def test_a_dataset_without_regions() -> None:
    nothing = ScoreFilter(score=0.0, share=None, precision=Estimate())
    assert evaluation_verdict([nothing], None) == "Verdict: there is no region to use."
