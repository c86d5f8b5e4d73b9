"""F1 of links, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pipeline.evaluate.grouping import Grouping, b_cubed, counts_of, grouping_of, pair_f1
from pipeline.evaluate.report import Outcomes, report
from stages.shared.truth.ground_truth import ChainedPhrase, TruthImage


def totals_of(*links: tuple[int, str]) -> Any:
    return counts_of([Grouping(image=1, links=links)]).sum(axis=0)


def test_pairs_and_b_cubed_by_hand() -> None:
    """Groups {a a b} and {b}: pairs 3 linked, 2 true (aa, bb), 1 both. B-cubed: precision (2/3 + 2/3 + 1/3 + 1) / 4,
    recall (1 + 1 + 1/2 + 1/2) / 4."""
    totals = totals_of((0, "a"), (0, "a"), (0, "b"), (1, "b"))
    assert pair_f1(totals) == pytest.approx(2 * 1 / (3 + 2))
    precision, recall = (2 / 3 + 2 / 3 + 1 / 3 + 1) / 4, 3 / 4
    assert b_cubed(totals) == pytest.approx(2 * precision * recall / (precision + recall))


def test_right_links_and_none() -> None:
    right = totals_of((0, "a"), (1, "b"), (0, "a"))
    assert pair_f1(right) == b_cubed(right) == 1
    assert pair_f1(totals_of((0, "a"), (1, "a"))) == 0
    assert math.isnan(pair_f1(totals_of((0, "a"), (1, "b"))))
    assert math.isnan(b_cubed(totals_of()))


def region(caption: int, start: int, phrase: str, group: int | None) -> dict[str, Any]:
    return {"caption_index": caption, "span": [start, start + len(phrase)], "phrase": phrase, "group": group}


ROW = {
    "captions": ["A boy and a boy's hat.", "a child, it rains"],
    "annotations": [
        region(0, 2, "boy", 0),
        region(0, 2, "boy", 0),  # a second region of the phrase
        region(0, 12, "boy", 1),
        region(0, 18, "hat", 2),
        region(1, 2, "child", 0),
        region(1, 9, "it", 3),
    ],
}
IMAGE = TruthImage(
    file_name="1.jpg",
    width_px=8,
    height_px=8,
    targets=(),
    chained=tuple(
        ChainedPhrase(caption=caption, phrase=phrase, chain=chain)
        for caption, phrase, chain in (
            ("A boy and a boy 's hat .", "boy", "7"),
            ("A boy and a boy 's hat .", "boy", "8"),
            ("a child , it rains", "child", "7"),
            ("a child , it rains", "it", ""),
            ("another caption", "hat", "9"),
        )
    ),
)


def test_phrases_are_found_by_caption_text_and_order() -> None:
    assert grouping_of(5, ROW, IMAGE) == Grouping(image=5, links=((0, "7"), (1, "8"), (0, "7")))


def test_other_counts_of_a_text_in_a_caption_are_left_out() -> None:
    fewer = {**ROW, "annotations": [one for one in ROW["annotations"] if one["span"][0] != 12]}
    assert grouping_of(5, fewer, IMAGE).links == ((0, "7"),)


def test_datasets_without_groups_have_no_figures() -> None:
    old = {**ROW, "annotations": [{**one, "group": None} for one in ROW["annotations"]]}
    assert grouping_of(5, old, IMAGE).links == ()
    figures = report(Outcomes(groupings=[grouping_of(5, old, IMAGE)]))
    assert not {"group_f1", "group_b_cubed"} & set(figures)


def test_the_report_has_both_with_intervals_over_images() -> None:
    wrong = Grouping(image=6, links=((0, "a"), (1, "a")))
    figures = report(Outcomes(groupings=[grouping_of(5, ROW, IMAGE), wrong]))
    assert figures["group_f1"]["value"] == pytest.approx(2 / 3)
    assert (figures["group_f1"]["n"], figures["group_b_cubed"]["n"]) == (2, 5)
    assert figures["group_f1"]["low"] == 0
    assert figures["group_f1"]["high"] == 1


def test_a_caption_that_the_truth_spells_otherwise_is_the_same() -> None:
    said, marked = "A grey dog runs along the sea.", "A gray dog runs along the sea ."
    row = {"captions": [said], "annotations": [region(0, 2, "grey dog", 4)]}
    image = replace(IMAGE, chained=(ChainedPhrase(caption=marked, phrase="gray dog", chain="7"),))
    assert grouping_of(5, row, image).links == ((4, "7"),)
