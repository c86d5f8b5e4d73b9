"""Every metric on cases small enough to work out by hand: 8 x 8 pixels, a 2 x 2 map, boxes with whole edges."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.evaluate.estimates import Estimate
from phrasebox.pipeline.evaluate.evaluation import Outcomes, report_figures
from phrasebox.pipeline.evaluate.metrics import (
    METRICS,
    judge_answers,
)
from phrasebox.pipeline.evaluate.text_only import TextOnly, fit_usual_places
from phrasebox.stages.truth.ground_truth import TruthImage
from tests.pipeline.evaluate.query_builders import answer_of, map_of, query_of, target_of

TOP_LEFT = (0.0, 0.0, 4.0, 4.0)
TOP_RIGHT = (4.0, 0.0, 4.0, 4.0)


def value(name: str, *args: object, **kwargs: object) -> float | None:
    return METRICS[name].value(query_of(*args, **kwargs))  # type: ignore[arg-type]


def one_hot(row: int, column: int, cells: int = 8) -> list[list[float]]:
    return [[float((r, c) == (row, column)) for c in range(cells)] for r in range(cells)]


@pytest.mark.parametrize(("cell", "hit"), [((0, 0), 1.0), ((3, 3), 1.0), ((3, 4), 0.0)])
def test_pointing_asks_for_the_mask_at_the_peak(cell: tuple[int, int], hit: float) -> None:
    heat = map_of(one_hot(*cell))
    assert value("pointing", target_of(TOP_LEFT), heat=heat) == hit
    assert value("pointing", target_of(TOP_LEFT, masked=False), heat=heat) == hit
    assert value("pointing_off_centre", target_of(TOP_LEFT), heat=heat) == hit
    assert value("pointing_off_centre", target_of((4.0, 4.0, 2.0, 2.0)), heat=heat) is None


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
        ("box_recall", TWO, [answer_of(TOP_LEFT, 0.1), answer_of(APART, 0.9)], 0.0),
        # The box around both is 8 x 4: half of it.
        ("box_recall_merged", TWO, [answer_of(TOP_LEFT)], 1.0),
        ("box_recall_merged", TWO, [answer_of((0.0, 0.0, 3.0, 4.0))], 0.0),
        # 4 x 4 against 4 x 2 within it: 8 of 16.
        ("box_iou", LEFT, [answer_of((0.0, 0.0, 4.0, 2.0))], 0.5),
        ("box_recall", LEFT, [answer_of((0.0, 0.0, 4.0, 2.0))], 1.0),
        # Masks are compared all together.
        ("mask_iou", TWO, [answer_of(TOP_LEFT)], 0.5),
        ("mask_iou", TWO, [answer_of(TOP_LEFT), answer_of(TOP_RIGHT)], 1.0),
        ("mask_iou", target_of(TOP_LEFT, masked=False), [answer_of(TOP_LEFT)], None),
        ("centre", target_of((4.0, 4.0, 2.0, 2.0)), [], 1.0),
        ("chance", LEFT, [], 0.25),
        ("centred_box", target_of(TOP_LEFT, (1.0, 1.0, 5.0, 5.0)), [], 1.0),  # with the second box
        ("centred_box", LEFT, [], 0.0),
    ],
)
def test_boxes_masks_and_baselines_by_hand(
    name: str, target: Any, answers: list[Any], expected: float | None
) -> None:
    assert value(name, target, *answers) == (expected if expected is None else pytest.approx(expected))


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


def quarter() -> TextOnly:
    """The usual place of a car: the top left quarter."""
    target = target_of((0.0, 0.0, 40.0, 40.0))
    return fit_usual_places(
        [TruthImage(file_name="b.jpg", width_px=80, height_px=80, targets=(target,))] * 40
    )


def test_answers_from_text_alone_and_from_other_phrases_by_hand() -> None:
    target = target_of(TOP_LEFT, TOP_RIGHT)
    query = query_of(target, answer_of(APART), other_boxes=(TOP_RIGHT, APART), text_only=quarter())
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
    usual = quarter()
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
