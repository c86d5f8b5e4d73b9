"""Regions of phrases that may not be there: their scores, and the setting that drops them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.contract.records import Absent, Record
from stages.regions.score import Calibration
from stages.regions.stage import RegionsStage
from tests.stages.regions.test_stage import FIXED, heat_map, phrase, record, spots

EVEN = Calibration(bias=0.0, mean={}, scale={}, weight={}, made_with={}, made_from={}, presence={"any": 1})
"""Every region is right with a probability of one half."""


def asked() -> Record:
    """Two phrases, of which the second is named twice and hardly there."""
    maps = (
        replace(heat_map(spots((4, 4), r1c2=1.0), "dog", 0.3), presence=0.8),
        replace(heat_map(spots((4, 4), r3c0=1.0), "cat", 0.1), presence=0.04),
    )
    return record(*maps, phrases=(phrase(), phrase("cat", start=4), phrase("cat", start=9)))


def test_scores_are_of_presence_and_right_place() -> None:
    config = FIXED.model_copy(update={"min_presence": None})
    (answer,) = RegionsStage(config, EVEN).process([asked()])
    assert [(each.score, each.presence) for each in answer.regions] == [(0.4, 0.8), (0.02, 0.04), (0.02, 0.04)]
    assert answer.absent == ()


@pytest.mark.parametrize(("least", "absent"), [(0.05, [1, 2]), (0.04, []), (0.9, [0, 1, 2])])
def test_phrases_below_the_least_presence_are_absent(least: float, absent: list[int]) -> None:
    config = FIXED.model_copy(update={"min_presence": least})
    (answer,) = RegionsStage(config, EVEN).process([asked()])
    assert [each.phrase_index for each in answer.absent] == absent
    assert [each.phrase_index for each in answer.regions] == [index for index in range(3) if index not in absent]
    if absent == [1, 2]:
        assert answer.absent[0] == Absent(phrase_index=1, presence=0.04, similarity=0.1)


@pytest.mark.parametrize("calibration", [None, replace(EVEN, presence=None)])
def test_nothing_is_absent_where_nothing_tells_presence(calibration: Calibration | None) -> None:
    config = FIXED.model_copy(update={"min_presence": 1.0})
    (answer,) = RegionsStage(config, calibration).process([asked()])
    assert len(answer.regions) == 3
    assert {each.presence for each in answer.regions} == {None}
    assert answer.absent == ()
