"""Thresholds against tables that were computed by hand, and against all scores that there are."""

import numpy as np
import pytest

from phrasebox.stages.contract.score_threshold import (
    PRECISIONS,
    USEFUL_SHARE,
    ScoreRanking,
    Threshold,
    useful_threshold,
)

# Mean of the best: 0.9, 0.8, 0.7 (twice 0.5), 0.58, 0.5.
SCORES = np.float32([0.5, 0.1, 0.9, 0.5, 0.7, 0.1])
COUNTS = ScoreRanking.of(SCORES)


@pytest.mark.parametrize(
    ("precision", "score", "regions"),
    [
        (0.95, None, 0),
        (0.9, 0.9, 1),
        (0.81, 0.9, 1),
        (0.8, 0.7, 2),
        (0.65, 0.5, 4),
        (0.5, 0.5, 4),
        (0.46, 0.1, 6),
    ],
)
def test_a_precision_has_a_lowest_score(precision: float, score: float | None, regions: int) -> None:
    threshold = COUNTS.at_precision(precision)
    if score is None:
        assert threshold is None
        return
    assert threshold is not None
    assert (threshold.goal, threshold.score, threshold.regions) == (precision, np.float32(score), regions)
    assert (threshold.total, threshold.share) == (6, regions / 6)


@pytest.mark.parametrize(
    ("share", "score", "regions"), [(0.0, 0.9, 1), (0.3, 0.7, 2), (0.5, 0.5, 4), (0.9, 0.1, 6)]
)
def test_a_share_keeps_the_best_and_their_equals(share: float, score: float, regions: int) -> None:
    threshold = COUNTS.at_share(share)
    assert threshold is not None
    assert (threshold.goal, threshold.score, threshold.regions) == (share, np.float32(score), regions)


def test_the_table_has_the_precisions_that_a_score_reaches() -> None:
    table = COUNTS.table()
    assert [(line.goal, line.regions) for line in table] == [(0.5, 4), (0.6, 4), (0.7, 2), (0.8, 2)]
    assert ScoreRanking.of(SCORES - np.float32(0.25)).table()[-1].goal == 0.6
    assert COUNTS.highest_precision == pytest.approx(0.9)
    assert ScoreRanking.of(np.float32([0.5])).table()[0].precision == 0.5


def line(goal: float, regions: int) -> Threshold:
    return Threshold(goal=goal, score=goal, precision=goal, regions=regions, total=100)


@pytest.mark.parametrize(
    ("regions", "goal"), [([90, 80, 34, 33], 0.7), ([90, 80, 70, 60], 0.8), ([30, 20, 10], 0.5), ([], None)]
)
def test_advice_keeps_a_useful_share_or_else_the_most(regions: list[int], goal: float | None) -> None:
    thresholds = [line(precision, count) for precision, count in zip(PRECISIONS, regions, strict=False)]
    advised = useful_threshold(thresholds)
    assert (advised and advised.goal) == goal
    if advised and goal != 0.5:
        assert advised.share >= USEFUL_SHARE


def test_no_regions() -> None:
    counts = ScoreRanking.of(np.zeros(0, np.float32))
    assert (counts.total, counts.highest_precision, counts.table()) == (0, 0.0, ())
    assert counts.at_precision(0.5) is counts.at_share(0.5) is None
