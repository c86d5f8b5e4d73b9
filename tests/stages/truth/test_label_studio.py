"""Tasks of Label Studio as ground truth, on cases counted by hand."""

from pathlib import Path
from typing import Any

import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.ground_truth import TruthImage
from tests.build.cases import cases
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error

PHRASES = [{"value": "red car"}, {"value": "tree"}, {"value": "dog"}]


def rectangle(*labels: str, **value: Any) -> Json:
    """A quarter of an image of 200 x 100 pixels."""
    place = {"x": 10, "y": 20, "width": 50, "height": 50, "rotation": 0, **value}
    size = {"original_width": 200, "original_height": 100}
    return {
        "type": "rectanglelabels",
        "from_name": "label",
        **size,
        "value": {**place, "rectanglelabels": [*labels]},
    }


def task(*results: Json, **keys: Any) -> Json:
    data = {"image": "/data/upload/1/ab%20c.jpg", "file_name": "folder/a.jpg", "phrases": PHRASES}
    return {
        "id": 1,
        "data": data,
        "annotations": [{"result": [*results]}],
        "predictions": [{"id": 1}],
    } | keys


def written(folder: Path, *tasks: Any) -> Path:
    path = folder / "project.json"
    write_json(path, [*tasks])
    return path


def image_of(folder: Path, *tasks: Any) -> TruthImage:
    (image,) = read_truth(written(folder, *tasks)).images.values()
    return image


def test_a_label_is_a_phrase_with_the_boxes_that_have_it(tmp_path: Path) -> None:
    image = image_of(
        tmp_path, task(rectangle("The red  car", "tree"), rectangle("tree", x=60), {"type": "textarea"})
    )
    assert (image.file_name, image.width_px, image.height_px) == ("folder/a.jpg", 200, 100)
    boxes = {target.phrase: target.boxes_xywh_px for target in image.targets}
    assert boxes == {"red car": ((20, 20, 100, 50),), "tree": ((20, 20, 100, 50), (120, 20, 80, 50))}
    car, tree = image.targets
    assert car.match == "phrase"
    assert car.groups == {"number": "singular", "size": "medium", "objects": "2"}
    assert tree.groups["number"] == "plural"


def test_a_turned_rectangle_gives_the_box_around_it(tmp_path: Path) -> None:
    """Of 40 x 20 pixels, about its first corner at (100, 50), by a quarter clockwise; within the image."""
    place = {"x": 50, "y": 50, "width": 20, "height": 20}
    (target,) = image_of(tmp_path, task(rectangle("dog", rotation=90, **place))).targets
    assert target.boxes_xywh_px[0] == pytest.approx((80, 50, 20, 40))
    (target,) = image_of(tmp_path, task(rectangle("dog", **{**place, "x": 95}, rotation=0))).targets
    assert target.boxes_xywh_px[0] == pytest.approx((190, 50, 10, 20))


def test_ticked_phrases_are_absent_unless_they_have_a_box(tmp_path: Path) -> None:
    ticked = {"type": "choices", "from_name": "absent", "value": {"choices": ["Dog", "tree"]}}
    other = {"type": "choices", "from_name": "weather", "value": {"choices": ["red car"]}}
    image = image_of(tmp_path, task(rectangle("tree"), ticked, other))
    assert image.absent == {"dog"}
    image = image_of(tmp_path, task(ticked))
    assert (image.absent, image.targets, image.width_px) == ({"dog", "tree"}, (), 0)


def test_the_annotation_that_counts(tmp_path: Path) -> None:
    """The one that is marked, else the last one; not a cancelled one. A task without one is left out."""
    entries = [{"result": [rectangle(name)]} for name in ("red car", "tree", "dog")]
    entries[2]["was_cancelled"] = True
    idle = task(annotations=[entries[2]], data={"image": "b.jpg"})
    for expected in ("tree", "red car"):
        (target,) = image_of(tmp_path, task(annotations=entries), idle).targets
        assert target.phrase == expected
        entries[0]["ground_truth"] = True


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/local-files/?d=photos/a%20b.jpg", "a b.jpg"),
        ("https://host/photos/a%20b.jpg?token=1", "a b.jpg"),
    ],
)
def test_labels_of_other_projects_are_categories(address: str, name: str, tmp_path: Path) -> None:
    image = image_of(tmp_path, task(rectangle("car"), data={"image": address}))
    assert image.file_name == name
    assert [(target.phrase, target.match) for target in image.targets] == [("car", "category")]


@cases(
    "tasks",
    {
        "no annotation": [task(annotations=[])],
        "an image twice": [task(), task()],
        "no image": [task(data={"picture": "a.jpg"})],
        "a brush": [task({"type": "brushlabels", "value": {}})],
        "the smaller form": [{"image": "a.jpg", "label": []}],
    },
)
def test_what_is_wrong_is_said(tasks: list[Any], tmp_path: Path) -> None:
    with expect_error(InputError):
        read_truth(written(tmp_path, *tasks))
