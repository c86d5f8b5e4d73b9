"""Presence: of phrases that may not be there, their scores and regions, and of the phrases that name one thing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from phrasebox.stages.contract.records import Absent, Phrase, Record
from phrasebox.stages.regions.maker import share_presences
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.presence import ImageStatistics, Presence
from phrasebox.stages.scores.score import Calibration
from tests.stages.regions.test_stage import FIXED as PLAIN
from tests.stages.regions.test_stage import heat_map, phrase, record, spots

FIXED = PLAIN.model_copy(update={"absent_share": 0.5})

NOTHING: dict[str, float] = {}
IMAGES = ImageStatistics(mean=np.zeros(2), directions=np.zeros((1, 2)), rest=0.0, count=2)
PRESENCE = Presence(bias=0.0, weight=NOTHING, mean=NOTHING, scale=NOTHING, images=IMAGES)
EVEN = Calibration(
    bias=0.0,
    mean={"peak": 0},
    scale={"peak": 1},
    weight={"peak": 0},
    made_with={},
    made_from={},
    presence=PRESENCE,
)
"""Every region is right with a probability of one half."""


def dog_and_cat() -> Record:
    """Two phrases, the second one named twice and hardly present."""
    maps = (
        replace(heat_map(spots((4, 4), r1c2=1.0), "dog", 0.3), presence=0.8),
        replace(heat_map(spots((4, 4), r3c0=1.0), "cat", 0.1), presence=0.04),
    )
    return record(*maps, phrases=(phrase(), phrase("cat", start=4), phrase("cat", start=9)))


def judged(calibration: Calibration | None = EVEN, **settings: Any) -> Record:
    (answer,) = RegionsStage(FIXED.model_copy(update=settings), calibration).process([dog_and_cat()])
    return answer


@pytest.mark.parametrize(("least", "absent"), [(0.05, [1, 2]), (0.04, []), (0.9, [0, 1, 2])])
def test_phrases_below_the_least_presence_are_absent(least: float, absent: list[int]) -> None:
    answer = judged(min_presence=least)
    assert [each.phrase_index for each in answer.absent] == absent
    present = [index for index in range(3) if index not in absent]
    assert [each.phrase_index for each in answer.regions] == present
    if absent == [1, 2]:
        assert answer.absent[0] == Absent(phrase_index=1, presence=0.04, similarity=0.1)


@pytest.mark.parametrize(
    ("fitted", "expected", "dog", "cat"),
    [
        (0.5, 0.5, 0.8, 0.04),
        (0.5, 0.2, 0.941176, 0.142857),
        (0.5, 0.8, 0.5, 0.010309),
        (0.8, 0.8, 0.8, 0.04),
        (0.8, 0.5, 0.941176, 0.142857),
    ],
)
def test_presence_counts_on_the_share_that_is_expected(
    fitted: float, expected: float, dog: float, cat: float
) -> None:
    """Odds of 4 to 1 become 16 to 1 where one in five is absent, instead of one in two. A score is half of presence."""
    presence = PRESENCE.model_copy(update={"absent_share": fitted})
    calibration = EVEN.model_copy(update={"presence": presence})
    answer = judged(calibration, absent_share=expected, min_presence=None)
    assert [each.presence for each in answer.regions] == [dog, cat, cat]
    assert [each.score for each in answer.regions] == pytest.approx([dog / 2, cat / 2, cat / 2], abs=1e-6)
    assert answer.absent == ()


@pytest.mark.parametrize("calibration", [None, EVEN.model_copy(update={"presence": None})])
def test_nothing_is_absent_where_nothing_tells_presence(calibration: Calibration | None) -> None:
    answer = judged(calibration, min_presence=1.0)
    assert len(answer.regions) == 3
    assert {each.presence for each in answer.regions} == {None}
    assert answer.absent == ()


def named(text: str, caption: int) -> Phrase:
    return Phrase(text=text, caption_index=caption, start=0, end=len(text), head=text)


def test_a_thing_has_the_mean_of_the_log_odds_of_its_texts_each_once() -> None:
    """Odds of 16, 1 and 1/16 are even odds; odds of 64, 1 and 1 are 4 to 1."""
    phrases = [
        named(text, caption)
        for caption, text in enumerate(["boy", "child", "kid", "dog", "hound", "puppy"])
    ]
    presences = [16 / 17, 0.5, 1 / 17, 64 / 65, 0.5, 0.5]
    assert share_presences(phrases, [0, 0, 0, 1, 1, 1], presences) == [0.5] * 3 + [0.8] * 3
    phrases = [named("boy", 0), named("boy", 1), named("child", 3), named("kid", 4)]
    assert share_presences(phrases, [0] * 4, [16 / 17, 16 / 17, 0.5, 1 / 17]) == [0.5] * 4


def test_two_texts_do_not_outvote_each_other_and_what_is_alone_or_not_known_stays() -> None:
    """ "A car" is there and "a green car" is not: the mean would make the second half as likely as the first."""
    phrases = [named("car", 0), named("green car", 1)]
    assert share_presences(phrases, [0, 0], [0.9, 0.1]) == [0.9, 0.1]
    phrases = [named("boy", 0), named("dog", 0), named("boy", 1), named("cat", 1)]
    assert share_presences(phrases, [0, 1, 0, 2], [0.123456, 0.7, 0.123456, None]) == [
        0.123456,
        0.7,
        0.123456,
        None,
    ]
