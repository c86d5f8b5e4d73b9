"""What is asked of an image: single things with their names, and phrases among boxes that differ."""

from __future__ import annotations

import pytest

from pipeline.evaluate.probe.questions import asked_of
from stages.contract.errors import InputError
from stages.shared.truth.ground_truth import TruthImage, TruthTarget, TruthThing

SIZE_HW = (50, 100)


def thing(*box: float, category: str | None = "car") -> TruthThing:
    described = None if category is None else f"red {category}"
    return TruthThing(box_xywh_px=(box[0], box[1], box[2], box[3]), category=category, described=described, mask=None)


def image(*phrases: tuple[str, list[tuple[float, float, float, float]]], match: str = "phrase") -> TruthImage:
    targets = tuple(TruthTarget(phrase=text, boxes_xywh_px=tuple(boxes), match=match) for text, boxes in phrases)  # type: ignore[arg-type]
    return TruthImage(file_name="a.jpg", width_px=100, height_px=50, targets=targets)


LEFT, RIGHT, BELOW = (0, 0, 50, 25), (50, 0, 50, 25), (0, 25, 100, 25)


def test_things_come_first_and_boxes_of_phrases_behind_them() -> None:
    things = [thing(*LEFT), thing(*RIGHT, category="bus")]
    asked = asked_of(image(("a car", [LEFT]), ("the road", [BELOW])), things, SIZE_HW, resized=False)
    assert asked.classes == ("car", "bus", None)
    assert asked.described == ("red car", "red bus", None)
    assert asked.boxes_rel.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 1, 1]]
    assert asked.candidates.tolist() == [0, 1, 2]
    assert asked.phrases == (("a car", (0,)), ("the road", (2,)))


def test_things_with_the_same_box_are_two_regions_and_one_candidate() -> None:
    things = [thing(*LEFT), thing(*LEFT, category="bus"), thing(*RIGHT)]
    asked = asked_of(image(("cars", [LEFT, RIGHT]), ("right car", [RIGHT])), things, SIZE_HW, resized=False)
    assert asked.classes == ("car", "bus", "car")
    assert asked.candidates.tolist() == [0, 2]
    assert asked.phrases == (("right car", (1,)),), "a phrase that means every box asks nothing"


def test_boxes_end_with_the_image_and_empty_ones_are_left_out() -> None:
    things = [thing(-10, -10, 20, 20), thing(100, 0, 10, 10), thing(90, 40, 30, 30)]
    asked = asked_of(image(("gone", [(100, 0, 10, 10)])), things, SIZE_HW, resized=False)
    assert asked.boxes_rel.tolist() == [[0, 0, 0.1, 0.2], [0.9, 0.8, 1, 1]]
    assert asked.phrases == ()


def test_categories_are_not_phrases() -> None:
    asked = asked_of(image(("car", [LEFT]), match="category"), [thing(*LEFT), thing(*RIGHT)], SIZE_HW, resized=False)
    assert asked.phrases == ()
    assert len(asked.boxes_rel) == 2


def test_another_size_is_refused_unless_the_image_was_resized() -> None:
    with pytest.raises(InputError, match=r"a\.jpg has 50x25 pixels, but the truth is for 100x50: .*--resized"):
        asked_of(image(), [thing(*LEFT)], (25, 50), resized=False)
    asked = asked_of(image(), [thing(*LEFT)], (25, 50), resized=True)
    assert asked.boxes_rel.tolist() == [[0, 0, 0.5, 0.5]]
