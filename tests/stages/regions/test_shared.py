"""What phrases of one thing share; that their maps are shared is in test_groups."""

from __future__ import annotations

import pytest

from stages.contract.records import Phrase
from stages.regions.shared import shared_presences


def named(text: str, caption: int) -> Phrase:
    return Phrase(text=text, caption_index=caption, start=0, end=len(text), head=text)


def test_a_thing_has_the_mean_of_the_log_odds_of_its_texts() -> None:
    """Odds of 16, 1 and 1/16 are even odds; odds of 64, 1 and 1 are 4 to 1."""
    phrases = [named(text, caption) for caption, text in enumerate(["boy", "child", "kid", "dog", "hound", "puppy"])]
    presences = [16 / 17, 0.5, 1 / 17, 64 / 65, 0.5, 0.5]
    assert shared_presences(phrases, [0, 0, 0, 1, 1, 1], presences) == [0.5] * 3 + [0.8] * 3


def test_a_text_counts_once_however_often_it_is_said() -> None:
    phrases = [named("boy", 0), named("boy", 1), named("boy", 2), named("child", 3), named("kid", 4)]
    assert shared_presences(phrases, [0] * 5, [16 / 17, 16 / 17, 16 / 17, 0.5, 1 / 17]) == [0.5] * 5


def test_two_texts_do_not_outvote_each_other() -> None:
    """ "A car" is there and "a green car" is not: the mean would make the second half as likely as the first."""
    phrases = [named("car", 0), named("green car", 1)]
    assert shared_presences(phrases, [0, 0], [0.9, 0.1]) == [0.9, 0.1]


def test_what_is_alone_or_not_known_stays_as_it_is() -> None:
    phrases = [named("boy", 0), named("dog", 0), named("boy", 1), named("cat", 1)]
    assert shared_presences(phrases, [0, 1, 0, 2], [0.123456, 0.7, 0.123456, None]) == [0.123456, 0.7, 0.123456, None]
    assert shared_presences(phrases, [0, 1, 0, 2], [None] * 4) == [None] * 4


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_certainty_can_be_outvoted(certain: float) -> None:
    """Presences have six decimals, so that 0 stands for less than a millionth."""
    phrases = [named("boy", 0), named("child", 1), named("kid", 2)]
    first, second, third = shared_presences(phrases, [0, 0, 0], [certain, 0.5, 0.5])
    assert first == second == third == pytest.approx(0.990099 if certain else 0.009901, abs=1e-5)
