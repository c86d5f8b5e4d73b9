"""Every metric on cases small enough to work out by hand: 8 x 8 pixels, a 2 x 2 map, boxes with whole edges."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.evaluate.estimates import Estimate
from pipeline.evaluate.evaluation import Outcomes, report_figures
from pipeline.evaluate.metrics import (
    METRICS,
    Grouping,
    b_cubed,
    grouping_of,
    judge_answers,
    link_counts,
    pair_f1,
)
from pipeline.evaluate.text_only import fit_usual_places
from stages.truth.ground_truth import ChainedPhrase, TruthImage
from tests.build.datasets import Json
from tests.pipeline.evaluate.query_builders import answer_of, map_of, query_of, target_of

TOP_LEFT = (0.0, 0.0, 4.0, 4.0)
TOP_RIGHT = (4.0, 0.0, 4.0, 4.0)


def value(name: str, *args: object, **kwargs: object) -> float | None:
    return METRICS[name].value(query_of(*args, **kwargs))  # type: ignore[arg-type]


def one_hot(row: int, column: int, cells: int = 8) -> list[list[float]]:
    return [[float((r, c) == (row, column)) for c in range(cells)] for r in range(cells)]


@pytest.mark.parametrize(("cell", "hit"), [((0, 0), 1.0), ((3, 3), 1.0), ((3, 4), 0.0), ((7, 7), 0.0)])
def test_pointing_asks_for_the_mask_at_the_peak(cell: tuple[int, int], hit: float) -> None:
    heat = map_of(one_hot(*cell))
    assert value("pointing", target_of(TOP_LEFT), heat=heat) == hit
    assert value("pointing", target_of(TOP_LEFT, masked=False), heat=heat) == hit


def test_energy_is_the_share_of_the_heat_on_the_thing() -> None:
    heat = map_of(np.kron([[3.0, 1.0], [0.0, 0.0]], np.ones((4, 4))))
    assert value("energy", target_of(TOP_LEFT), heat=heat) == pytest.approx(0.75)
    assert value("energy", target_of(TOP_RIGHT, masked=False), heat=heat) == pytest.approx(0.25)


TWO = target_of(TOP_LEFT, TOP_RIGHT)
LEFT = target_of(TOP_LEFT)
APART = (0.0, 4.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("name", "target", "answers", "expected"),
    [
        # With the best true box, and the best-scored region, which is not the best one.
        ("box_recall", TWO, [answer_of(TOP_LEFT, 0.9), answer_of(APART, 0.1)], 1.0),
        ("box_iou", TWO, [answer_of(TOP_LEFT, 0.9), answer_of(APART, 0.1)], 1.0),
        ("box_recall", TWO, [answer_of(TOP_LEFT, 0.1), answer_of(APART, 0.9)], 0.0),
        # The box around both is 8 x 4: half of it.
        ("box_recall_merged", TWO, [answer_of(TOP_LEFT)], 1.0),
        ("box_recall_merged", TWO, [answer_of((0.0, 0.0, 3.0, 4.0))], 0.0),
        # 4 x 4 against 4 x 2 within it: 8 of 16.
        ("box_iou", LEFT, [answer_of((0.0, 0.0, 4.0, 2.0))], 0.5),
        ("box_recall", LEFT, [answer_of((0.0, 0.0, 4.0, 2.0))], 1.0),
        ("box_recall", LEFT, [answer_of((0.0, 0.0, 3.0, 2.0))], 0.0),
        # Masks are compared all together.
        ("mask_iou", TWO, [answer_of(TOP_LEFT)], 0.5),
        ("mask_iou", TWO, [answer_of(TOP_LEFT), answer_of(TOP_RIGHT)], 1.0),
        ("mask_iou", target_of(TOP_LEFT, masked=False), [answer_of(TOP_LEFT)], None),
        ("centre", target_of((4.0, 4.0, 2.0, 2.0)), [], 1.0),
        ("centre", LEFT, [], 0.0),
        ("chance", LEFT, [], 0.25),
        ("centred_box", target_of((0.0, 0.0, 8.0, 8.0)), [], 1.0),  # IoU 0.64
        ("centred_box", target_of(TOP_LEFT, (1.0, 1.0, 5.0, 5.0)), [], 1.0),  # with the second box
        ("centred_box", LEFT, [], 0.0),
    ],
)
def test_boxes_masks_and_baselines_by_hand(
    name: str, target: Any, answers: list[Any], expected: float | None
) -> None:
    assert value(name, target, *answers) == (expected if expected is None else pytest.approx(expected))


def test_off_centre_targets_are_those_that_the_centre_does_not_lie_on() -> None:
    assert value("pointing_off_centre", target_of((4.0, 4.0, 2.0, 2.0)), heat=map_of(one_hot(4, 4))) is None
    assert value("pointing_off_centre", target_of(TOP_LEFT), heat=map_of(one_hot(1, 1))) == 1.0
    assert value("pointing_off_centre", target_of(TOP_LEFT), heat=map_of(one_hot(4, 4))) == 0.0


DATASET_LINKS = (
    "pointing",
    "pointing_off_centre",
    "energy",
    "box_recall",
    "box_recall_merged",
    "box_iou",
    "mask_iou",
)


@pytest.mark.parametrize("name", DATASET_LINKS)
def test_what_was_missed_is_zero(name: str) -> None:
    assert value(name, target_of(TOP_LEFT), phrase=None) == 0.0
    assert value(name, target_of(TOP_LEFT), heat=map_of(np.zeros((2, 2)), fault="empty")) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_answer_has_the_best_value(name: str) -> None:
    box = (1.0, 1.0, 3.0, 3.0)
    values = np.zeros((8, 8))
    values[1:4, 1:4] = 1.0
    perfect = value(name, target_of(box), answer_of(box), heat=map_of(values))
    exceptions = {"chance": pytest.approx(9 / 64), "centre": 0.0} | {
        f"{kind}{end}": 0.0
        for kind in ("other_box", "centred_box", "whole_image")
        for end in ("", "_merged")
    }
    unknown = name.startswith("text_")  # without other images
    assert perfect == (None if unknown else exceptions.get(name, 1.0))


def test_answers_from_text_alone_and_from_other_phrases_by_hand() -> None:
    other_image = TruthImage(
        file_name="b.jpg", width_px=80, height_px=80, targets=(target_of((0.0, 0.0, 40.0, 40.0)),)
    )
    usual = fit_usual_places([other_image] * 40)  # of a "car": the top left quarter
    query = query_of(
        target_of(TOP_LEFT, TOP_RIGHT), answer_of(APART), other_boxes=(TOP_RIGHT, APART), text_only=usual
    )
    expected = {
        "text_box": 1.0,
        "text_point": 1.0,
        "text_point_off_centre": 1.0,
        "other_box": 0.5,  # one of two
        "other_box_merged": 0.5,  # half of the box around both
        "whole_image": 0.0,
        "whole_image_merged": 1.0,
    }
    assert {name: METRICS[name].value(query) for name in expected} == expected


def test_a_region_is_right_with_half_of_a_true_box_and_never_for_an_absent_phrase() -> None:
    answers = (answer_of(TOP_LEFT, 0.9), answer_of((0.0, 0.0, 4.0, 2.0), 0.5), answer_of(TOP_RIGHT, 0.1))
    assert judge_answers(query_of(target_of(TOP_LEFT), *answers)) == [True, True, False]
    assert judge_answers(query_of(None, *answers)) == [False, False, False]


def totals_of(*links: tuple[int, str]) -> Any:
    return link_counts([Grouping(image=1, links=links)]).sum(axis=0)


def test_pairs_and_b_cubed_by_hand() -> None:
    """Groups {a a b} and {b}: pairs 3 linked, 2 true (aa, bb), 1 both. B-cubed: precision (2/3 + 2/3 + 1/3 + 1) / 4,
    recall (1 + 1 + 1/2 + 1/2) / 4."""
    totals = totals_of((0, "a"), (0, "a"), (0, "b"), (1, "b"))
    assert pair_f1(totals) == pytest.approx(2 * 1 / (3 + 2))
    precision = (2 / 3 + 2 / 3 + 1 / 3 + 1) / 4
    recall = 3 / 4
    assert b_cubed(totals) == pytest.approx(2 * precision * recall / (precision + recall))
    right = totals_of((0, "a"), (1, "b"), (0, "a"))
    assert pair_f1(right) == b_cubed(right) == 1
    assert pair_f1(totals_of((0, "a"), (1, "a"))) == 0
    assert math.isnan(pair_f1(totals_of((0, "a"), (1, "b"))))
    assert math.isnan(b_cubed(totals_of()))


def region(caption: int, start: int, phrase: str, group: int | None) -> Json:
    return {
        "caption_index": caption,
        "span": [start, start + len(phrase)],
        "phrase": phrase,
        "group": group,
    }


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
CHAINED = (
    ("A boy and a boy 's hat .", "boy", "7"),
    ("A boy and a boy 's hat .", "boy", "8"),
    ("a child , it rains", "child", "7"),
    ("a child , it rains", "it", ""),
    ("another caption", "hat", "9"),
)
CHAINS = tuple(
    ChainedPhrase(caption=caption, phrase=phrase, chain=chain) for caption, phrase, chain in CHAINED
)
IMAGE = TruthImage(file_name="1.jpg", width_px=8, height_px=8, targets=(), chained_phrases=CHAINS)


def test_phrases_are_found_by_caption_text_and_order() -> None:
    assert grouping_of(5, ROW, IMAGE) == Grouping(image=5, links=((0, "7"), (1, "8"), (0, "7")))
    fewer = {**ROW, "annotations": [one for one in ROW["annotations"] if one["span"][0] != 12]}
    assert grouping_of(5, fewer, IMAGE).links == ((0, "7"),)
    caption = "A grey dog runs along the sea."
    true_caption = "A gray dog runs along the sea ."
    row = {"captions": [caption], "annotations": [region(0, 2, "grey dog", 4)]}
    image = replace(
        IMAGE, chained_phrases=(ChainedPhrase(caption=true_caption, phrase="gray dog", chain="7"),)
    )
    assert grouping_of(5, row, image).links == ((4, "7"),)


def test_datasets_without_groups_have_no_figures() -> None:
    old = {**ROW, "annotations": [{**one, "group": None} for one in ROW["annotations"]]}
    assert grouping_of(5, old, IMAGE).links == ()
    figures = report_figures(Outcomes(has_maps=False, groupings=[grouping_of(5, old, IMAGE)]))
    assert figures.links == {}


def test_the_report_has_both_with_intervals_over_images() -> None:
    wrong = Grouping(image=6, links=((0, "a"), (1, "a")))
    links = report_figures(Outcomes(has_maps=False, groupings=[grouping_of(5, ROW, IMAGE), wrong])).links
    assert links["group_f1"] == Estimate(value=pytest.approx(2 / 3), low=0, high=1, n=2)
    assert links["group_b_cubed"].n == 5


def test_a_region_counts_once_for_all_captions_that_say_its_phrase() -> None:
    query = query_of(LEFT, answer_of(TOP_LEFT, 0.9))
    again = replace(query, target=replace(LEFT, caption="the same in another caption"))
    other = query_of(target_of(TOP_RIGHT), answer_of(TOP_LEFT, 0.9))  # the same text for another thing
    outcomes = Outcomes(has_maps=False)
    outcomes.add([query, again, other])
    figures = report_figures(outcomes)
    assert figures.metrics["box_recall"].n == figures.counts.targets == 3
    assert figures.metrics["box_recall"].value == pytest.approx(2 / 3)
    assert figures.scores["score"].n == figures.counts.regions == 2
    assert figures.thresholds[0].precision.value == 0.5


def test_what_regions_have_above_text_alone_is_a_paired_difference() -> None:
    """Regions find one phrase more than the text alone in each image, and another in half of them like the text."""
    other_image = TruthImage(
        file_name="b.jpg", width_px=80, height_px=80, targets=(target_of((0.0, 0.0, 40.0, 40.0)),)
    )
    usual = fit_usual_places([other_image] * 40)  # of a "car": the top left quarter
    outcomes = Outcomes(has_maps=False)
    for image in range(12):
        boxes = [(TOP_RIGHT, TOP_RIGHT), (TOP_LEFT if image % 2 else APART, TOP_LEFT)]
        queries = [
            query_of(
                target_of(place), answer_of(answer), image=image, phrase=f"car {number}", text_only=usual
            )
            for number, (place, answer) in enumerate(boxes)
        ]
        outcomes.add(queries)
    metrics = report_figures(outcomes).metrics
    assert (metrics["box_recall"].value, metrics["text_box"].value) == (0.75, 0.25)
    gain = Estimate(value=0.5, low=0.5, high=0.5, n=24)
    assert metrics["box_recall_above_text"] == gain, "the gain is the same in every image"
