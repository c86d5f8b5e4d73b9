"""Absent phrases: which are asked for, and the figures by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.evaluate.absent import AskedImage, Pair, absent_figures, absent_phrases
from stages.contract.records import Phrase
from tests.pipeline.evaluate.asked import answer_of, query_of, target_of

BOX = (0.0, 0.0, 4.0, 4.0)
FAR = (4.0, 4.0, 4.0, 4.0)


def image_of(number: int, *names: str, caption: str = "", present: frozenset[str] = frozenset()) -> AskedImage:
    """An image whose phrases are of the type of their first letter."""
    phrases = tuple(Phrase(text=name, caption_index=0, start=0, end=1, head=name.split()[-1]) for name in names)
    return AskedImage(
        number=number,
        sample_id=f"s{number}",
        captions=(caption or " and ".join(names),),
        phrases=phrases,
        queries=tuple(query_of(target_of(BOX, groups={"type": name[0]}), phrase=name) for name in names),
        present=present,
    )


def test_absent_phrases_share_no_word_with_the_captions_and_the_truth() -> None:
    images = [
        image_of(1, "red car", "dog", caption="A red car, a dog; no Boat"),
        image_of(2, "blue car", "cat", "dark house"),
        image_of(3, "boat", "red hat", "wide road", "tree"),
        image_of(4, "dove", "cart", "bench", present=frozenset({"tree"})),
    ]
    chosen = absent_phrases(images)
    assert chosen == absent_phrases(images)
    own = {image.number: image for image in images}
    for number, (easy, hard) in chosen.items():
        texts = [phrase.text for phrase in (*easy, *hard)]
        assert len(texts) == len(set(texts))
        assert not set(texts) & set(own[number].there)
        assert {phrase.text[0] for phrase in hard} <= {name[0] for name in own[number].there}
    names = {number: {phrase.text for phrase in (*easy, *hard)} for number, (easy, hard) in chosen.items()}
    assert not {"blue car", "boat", "red hat"} & names[1]
    assert len(chosen[1][0]) == 2
    assert {"cat", "cart", "dark house", "dove"} & {phrase.text for phrase in chosen[1][1]}
    assert "tree" not in names[4]


def pair_of(
    image: int, there: bool, presence: float | None, *boxes: Any, score: float = 0.5, hard: bool = False
) -> Pair:
    return Pair(
        image=image,
        there=there,
        hard=hard,
        similarity=0.1 * image,
        presence=presence,
        answers=tuple(answer_of(box, score=score) for box in boxes),
        boxes_xywh_px=(BOX,) if there else (),
    )


def test_figures_by_hand() -> None:
    """Of three phrases that are there one is answered rightly, one wrongly, one not; of two others one is answered."""
    pairs = [
        pair_of(1, True, 0.9, BOX, score=0.75),
        pair_of(2, True, 0.8, FAR, score=0.25),
        pair_of(3, True, 0.4, BOX, score=0.5),
        replace(pair_of(4, False, 0.6, FAR, score=0.25), doubtful=True),
        pair_of(5, False, 0.1),
        pair_of(6, False, 0.95, FAR, score=0.5, hard=True),
    ]
    figures = absent_figures(pairs)
    assert figures["pairs"] == {"there": 3, "absent": 2, "hard": 1, "without_synonyms": 1}
    assert figures["without_synonyms"]["presence_auc"]["value"] == 1.0
    assert figures["presence_auc"]["value"] == pytest.approx(5 / 6)
    assert figures["similarity_auc"]["value"] == 0.0
    assert figures["hard"]["presence_auc"]["value"] == 0.0
    assert figures["il_mcc"]["value"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
    assert figures["positive_f1"]["value"] == pytest.approx(2 / 5)
    assert figures["cgf1"]["value"] == pytest.approx(2 / 5 / 6)
    # 0.75 and 0.5 were right, 0.25 and 0.25 were not: 0.25 + 0.5 + 0.25 + 0.25 over four regions.
    assert figures["ece"]["value"] == pytest.approx(1.25 / 4)
    assert figures["lost"]["value"] == 0.0
    assert figures["kept"][-1] == {"presence": 0.5, "there": pytest.approx(2 / 3), "absent": 0.5}


def test_without_presence_the_score_decides() -> None:
    figures = absent_figures([pair_of(1, True, None, BOX, score=0.6), pair_of(2, False, None, FAR, score=0.4)])
    assert figures["presence_auc"] is None
    assert figures["hard"] is figures["kept"] is None
    assert (figures["il_mcc"]["value"], figures["positive_f1"]["value"]) == (1.0, 1.0)
    assert figures["by_similarity"]["il_mcc"]["value"] == 0.0
