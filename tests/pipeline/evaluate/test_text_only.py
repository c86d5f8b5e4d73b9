"""The usual place of a noun: what ground truth of other images says without a look at the image."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from phrasebox.pipeline.evaluate.text_only import FEWEST, Extent, fit_halves, fit_usual_places, head_of
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box, box_iou
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.truth.ground_truth import TruthImage, TruthTarget
from tests.messages import expect_error

SKY: Box = (0.0, 0.0, 80.0, 20.0)
GRASS: Box = (0.0, 40.0, 80.0, 20.0)
LEFT: Box = (0.0, 20.0, 20.0, 30.0)
RIGHT: Box = (60.0, 20.0, 20.0, 30.0)


def image_of(*named: tuple[str, tuple[Box, ...]], scale: float = 1.0) -> TruthImage:
    targets = []
    for phrase, boxes in named:
        scaled: Any = tuple(tuple(side * scale for side in box) for box in boxes)
        targets.append(TruthTarget(phrase=phrase, boxes_xywh_px=scaled, match="phrase"))
    size = {"width_px": round(80 * scale), "height_px": round(60 * scale)}
    return TruthImage(file_name="a.jpg", targets=tuple(targets), **size)


IMAGES = [
    image_of(("blue sky", (SKY,)), ("grass", (GRASS,)), ("pair of posts", (LEFT, RIGHT)), scale=scale)
    for scale in (1.0, 2.0, 3.0) * 10
]


@pytest.mark.parametrize(
    ("phrase", "head"),
    [
        ("man in blue shirt", "man"),
        ("group of people", "group"),
        ("of", "of"),
        ("", ""),
    ],
)
def test_the_head_of_a_phrase_stands_before_what_describes_it(phrase: str, head: str) -> None:
    assert head_of(phrase) == head


def test_a_noun_has_its_usual_box_and_point_in_the_pixels_of_any_image() -> None:
    usual = fit_usual_places(IMAGES)
    for phrase, place in (("dark sky with clouds", SKY), ("green grass", GRASS)):
        twice: Any = tuple(2 * side for side in place)
        assert box_iou(usual.box_of(phrase, 160, 120), twice) > 0.5
        x, y = usual.point_of(phrase, 80, 60)
        assert place[0] <= x < place[0] + place[2]
        assert place[1] <= y < place[1] + place[3]
    single, pair = (usual.box_of("pair of posts", 80, 60, extent) for extent in get_args(Extent))
    assert max(box_iou(single, LEFT), box_iou(single, RIGHT)) > 0.5
    assert box_iou(pair, (0.0, 20.0, 80.0, 30.0)) > 0.5


def test_a_rare_noun_has_the_place_of_all_phrases() -> None:
    rare = [image_of(("cloud", ((30.0, 22.0, 20.0, 16.0),)))] * (FEWEST - 1)
    usual = fit_usual_places([*IMAGES, *rare])
    assert usual.box_of("cloud", 80, 60) == usual.box_of("unheard of", 80, 60)
    assert fit_usual_places([*IMAGES, *rare * 20]).box_of("cloud", 80, 60) != usual.box_of("cloud", 80, 60)


def test_an_image_is_judged_by_what_is_usual_in_the_other_half() -> None:
    """In one half the dog is left, in the other right: each image has its box from images that show the opposite."""
    sides = {f"{number}.jpg": stable_id(f"{number}.jpg") % 2 for number in range(80)}
    images = {name: image_of(("dog", ((LEFT, RIGHT)[side],))) for name, side in sides.items()}
    usual = fit_halves(images)
    for name, side in sides.items():
        assert box_iou(usual[name].box_of("dog", 80, 60), (RIGHT, LEFT)[side]) > 0.5
    assert fit_halves({name: images[name] for name, side in sides.items() if side}) == {}


def test_nothing_is_fitted_to_no_phrases() -> None:
    with expect_error(InputError):
        fit_usual_places([replace(IMAGES[0], width_px=0, height_px=0)])
