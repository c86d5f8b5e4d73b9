"""Captions that belong to another image, and the share of them."""

from dataclasses import replace

import numpy as np
import pytest

from phrasebox.stages.contract.records import Record
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.foreign_captions import (
    USUAL_SHARE,
    caption_log_ratios,
    estimate_absent_share,
    foreign_share,
)
from phrasebox.stages.scores.score import at_share
from tests.stages.regions.test_presence import EVEN, FIXED
from tests.stages.regions.test_stage import heat_map, phrase, record, spots

LIKELY = {"dog": 0.9, "tree": 0.8, "boat": 0.2, "sea": 0.1, "sky": 0.6}


def told(*captions: str, of_captions: tuple[float | None, ...]) -> Record:
    """A record whose captions are lists of words, with a presence for each word."""
    phrases = tuple(
        replace(phrase(word, start=caption.index(word)), caption_index=index)
        for index, caption in enumerate(captions)
        for word in caption.split()
    )
    texts = dict.fromkeys(phrase.text for phrase in phrases)
    maps = [replace(heat_map(spots((4, 4), r1c2=1.0), text, 0.3), presence=LIKELY[text]) for text in texts]
    made = record(*maps, phrases=phrases)
    return replace(made, sample=replace(made.sample, captions=captions), caption_presences=of_captions)


def absent_of(made: Record, share: float) -> list[str]:
    (answer,) = RegionsStage(
        FIXED.model_copy(update={"absent_share": share, "min_presence": 0.5}), EVEN
    ).process([made])
    return [made.phrases[entry.phrase_index].text for entry in answer.absent]


def test_all_phrases_of_a_foreign_caption_are_absent_and_those_of_others_stay() -> None:
    """The sky may be there by chance. A text that another caption says, too, is judged by that one."""
    made = told("dog tree", "boat sea sky", of_captions=(0.9, 0.02))
    assert absent_of(made, 0.5) == ["boat", "sea", "sky"]
    assert absent_of(told("dog tree sky", "boat sea sky", of_captions=(0.9, 0.02)), 0.5) == ["boat", "sea"]


def test_no_caption_is_foreign_where_few_phrases_are_expected_to_be_absent() -> None:
    made = told("dog tree", "boat sea sky", of_captions=(0.9, 0.02))
    assert absent_of(made, USUAL_SHARE) == []
    assert foreign_share(USUAL_SHARE) == 0.0 < foreign_share(0.06)


def test_without_the_presence_of_captions_phrases_are_judged_by_themselves() -> None:
    for of_captions in ((), (None, None)):
        made = told("dog tree", "boat sea sky", of_captions=of_captions)
        assert caption_log_ratios(made, 0.5) == {}
        assert absent_of(made, 0.5) == ["boat", "sea"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_foreign_captions_is_estimated(share: float) -> None:
    rng = np.random.default_rng(2)
    is_foreign = rng.random(400) < share
    evidence = rng.normal(
        np.where(is_foreign, -4.0, 4.0), np.sqrt(8.0)
    )  # log ratios of two normal distributions
    expected = USUAL_SHARE + (1 - USUAL_SHARE) * is_foreign.mean()
    assert estimate_absent_share(evidence.tolist()) == pytest.approx(expected, abs=0.03)


def test_the_highest_estimate_is_a_setting_with_which_certain_phrases_are_present() -> None:
    share = estimate_absent_share([-9.0] * 1000)
    assert RegionsConfig(absent_share=share).expected_absent_share == share == 0.99
    assert at_share(1.0, 0.5, share) == 1.0
