"""COCO instances as ground truth, on cases counted by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.masks import encode_mask, rle_area_px
from phrasebox.stages.truth.coco import read_coco, size_member
from phrasebox.stages.truth.ground_truth import GroundTruth, TruthTarget
from tests.build.cases import cases
from tests.build.datasets import Json
from tests.messages import expect_error

WIDTH = 20
HEIGHT = 10
SIZE = {"size": [HEIGHT, WIDTH]}
IMAGE = {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}


def square(x: int, y: int, side: int) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(**keys: Any) -> Json:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0} | keys


def without(entry: Json, key: str) -> Json:
    return {name: value for name, value in entry.items() if name != key}


def content(*annotations: Json, **keys: Any) -> Json:
    categories = [{"id": 1, "name": "Car"}, {"id": 2, "name": "the  traffic light"}]
    return {"images": [IMAGE], "annotations": list(annotations), "categories": categories} | keys


def written(folder: Path, value: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def read(folder: Path, *annotations: Json, **keys: Any) -> GroundTruth:
    return read_coco(written(folder, content(*annotations, **keys)))


def targets(folder: Path, *annotations: Json) -> list[TruthTarget]:
    return list(read(folder, *annotations).images["a.jpg"].targets)


def test_every_thing_by_itself(tmp_path: Path) -> None:
    truth = read(
        tmp_path,
        annotation(bbox=[1, 2, 3, 3], segmentation=[square(1, 2, 3)], colour="Red"),
        annotation(bbox=[3, 4, 3, 3], segmentation=[]),
        annotation(bbox=[0, 0, 9, 9], iscrowd=1, colour="blue"),
        annotation(bbox=[0, 0, 0, 9]),
    )
    first, second = truth.objects["a.jpg"]
    assert (first.box_xywh_px, first.category, first.description) == ((1, 2, 3, 3), "car", "red car")
    assert first.mask is not None
    assert rle_area_px(first.mask) == 9
    assert (second.box_xywh_px, second.category, second.description, second.mask) == (
        (3, 4, 3, 3),
        "car",
        None,
        None,
    )
    assert (truth.names, truth.descriptions) == ({"car", "traffic light"}, {"red car"})


def test_a_target_for_every_category_of_an_image(tmp_path: Path) -> None:
    truth = read(
        tmp_path,
        annotation(bbox=[1, 2, 3, 3], segmentation=[square(1, 2, 3)]),
        annotation(category_id=2, bbox=[0, 0, 2.5, 2], segmentation=[]),
        annotation(bbox=[3, 4, 3, 3], segmentation=[square(3, 4, 3)]),
        images=[IMAGE, {"id": "two", "file_name": "b/b.jpg", "width": 7, "height": 8}],
    )
    assert truth.categories == {"car", "traffic light"}
    first, second = truth.images.values()
    assert (first.width_px, first.height_px) == (WIDTH, HEIGHT)
    assert (second.file_name, second.targets) == ("b/b.jpg", ())
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:5, 1:4] = mask[4:7, 3:6] = True  # 9 + 9 pixels, one of them shared
    car, light = first.targets
    assert (car.phrase, car.match, car.mask) == ("car", "category", encode_mask(mask))
    assert car.boxes_xywh_px == ((1, 2, 3, 3), (3, 4, 3, 3))
    assert car.groups == {"number": "plural", "size": "small", "objects": "3"}
    assert (light.phrase, light.boxes_xywh_px, light.mask) == ("traffic light", ((0, 0, 2.5, 2),), None)


def test_a_target_for_every_mentioned_phrase_of_an_image(tmp_path: Path) -> None:
    two_cars, one_dog, rest = targets(
        tmp_path,
        annotation(phrase="Two  red cars", category_id=99, mentioned=True, unseen_combination=False),
        annotation(phrase="dog", bbox=[5, 5, 1, 1], mentioned=True, unseen_combination=False),
        annotation(phrase="blue car", mentioned=False, unseen_combination=True),
        annotation(phrase="two red cars", bbox=[6, 6, 1, 1], unseen_combination=True),
        annotation(phrase="the sky", bbox=[7, 7, 1, 1]),
    )
    assert (two_cars.phrase, two_cars.match, two_cars.caption) == ("two red cars", "phrase", None)
    assert two_cars.boxes_xywh_px == ((1, 2, 3, 4), (6, 6, 1, 1))
    assert two_cars.groups == {"number": "plural", "size": "small", "objects": "5", "combination": "unseen"}
    assert (one_dog.phrase, one_dog.groups["combination"]) == ("dog", "seen")
    assert (rest.phrase, "combination" in rest.groups) == ("sky", False)


def test_crowds_and_boxes_without_area_are_no_targets_and_present_all_the_same(tmp_path: Path) -> None:
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    image = read(
        tmp_path,
        annotation(iscrowd=1, category_id=2, segmentation=crowd),
        annotation(bbox=[1, 1, 0, 5]),
        annotation(bbox=[1, 1, 5, -1]),
        annotation(bbox=[2, 2, 2, 2], segmentation=[square(2, 2, 2)]),
    ).images["a.jpg"]
    (target,) = image.targets
    assert target.boxes_xywh_px == ((2, 2, 2, 2),)
    assert target.groups == {"number": "singular", "size": "small", "objects": "1"}
    assert rle_area_px(target.mask) == 4
    assert image.present == {"car", "traffic light"}


def test_every_form_of_a_segmentation_is_the_same_mask(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:5, 1:4] = True
    counts = [HEIGHT + 2, 3, HEIGHT - 3, 3, HEIGHT - 3, 3, HEIGHT * (WIDTH - 3) - 5]
    for segmentation in (
        [square(1, 2, 3), [0, 0, 9, 9]],
        SIZE | {"counts": [*counts[:-1], 1, 0, counts[-1] - 1]},
        SIZE | {"counts": encode_mask(mask).counts},
    ):
        (target,) = targets(tmp_path, annotation(segmentation=segmentation))
        assert target.mask == encode_mask(mask), segmentation


def test_no_mask_if_one_thing_has_none_or_it_has_no_pixel(tmp_path: Path) -> None:
    masked = annotation(segmentation=[square(1, 2, 3)])
    unknown = [annotation(), *(annotation(segmentation=value) for value in (None, [], [[1, 1, 9, 9]]))]
    for objects in (*([masked, one] for one in unknown), [annotation(segmentation=[square(50, 50, 3)])]):
        (target,) = targets(tmp_path, *objects)
        assert target.mask is None


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(0, 0, 32, 31.9)], "small"),
        ([(0, 0, 32, 32)], "medium"),
        ([(0, 0, 96, 96)], "large"),
        ([(0, 0, 32, 32), (0, 0, 1, 1)], "small"),
    ],
)
def test_size_is_of_the_mean_thing(boxes: list[tuple[float, float, float, float]], expected: str) -> None:
    assert size_member(None, boxes) == expected
    mask = encode_mask(np.ones((32, 32), dtype=bool))
    assert size_member(mask, boxes) == ("medium" if len(boxes) == 1 else "small"), "the mask decides"


@pytest.mark.parametrize(("objects", "expected"), [(5, "5"), (6, "6+")])
def test_objects(objects: int, expected: str, tmp_path: Path) -> None:
    (target,) = targets(tmp_path, *[annotation()] * objects, annotation(iscrowd=1))
    assert target.groups["objects"] == expected


@cases(
    "value",
    {
        "not JSON": "{",
        "too deep": "[" * 100_000,
        "no images": {"annotations": []},
        "neither categories nor phrases": without(content(annotation()), "categories"),
        "image id": content(images=[without(IMAGE, "id")]),
        "a flag as id": content(images=[IMAGE | {"id": True}]),
        "no file_name": content(images=[IMAGE | {"file_name": ""}]),
        "no width": content(images=[without(IMAGE, "width")]),
        "too high": content(images=[IMAGE | {"height": 10**9}]),
        "same id": content(images=[IMAGE, IMAGE]),
        "same file_name": content(images=[IMAGE, IMAGE | {"id": 2}]),
        "no word": content(categories=[{"id": 1, "name": "?!"}]),
        "category": content(categories=[{"id": 1, "name": name} for name in "ab"]),
        "other image": content(annotation(image_id=2)),
        "other category": content(annotation(category_id=3)),
        "no category": content(without(annotation(), "category_id")),
        "three numbers": content(annotation(bbox=[1, 2, 3])),
        "a huge number": content(annotation(bbox=[1, 2, 3, 10**400])),
        "some": content(annotation(phrase="a"), annotation()),
        "no letter": content(annotation(phrase="...")),
        "no file": None,
    },
)
def test_what_is_no_instances_file(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "none.json" if value is None else written(tmp_path, value)
    with expect_error(InputError):
        dict(read_coco(path).images)


@cases(
    "segmentation",
    {
        "text": "abc",
        "a bare polygon": [1, 2, 3, 4, 5, 6],
        "odd": [[1, 2, 3, 4, 5, 6, 7]],
        "other size": {"size": [WIDTH, HEIGHT], "counts": [200]},
        "too short": SIZE | {"counts": [100, 99]},
        "negative": SIZE | {"counts": [201, -1]},
        "text too short": SIZE | {"counts": "12"},
        "no run-length text": SIZE | {"counts": "\u00e9"},
    },
)
def test_damaged_segmentations(tmp_path: Path, segmentation: Any) -> None:
    with expect_error(InputError):
        targets(tmp_path, annotation(segmentation=segmentation))
