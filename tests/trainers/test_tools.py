"""Tools for looking and correcting: FiftyOne, Datumaro and CVAT, Label Studio."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from phrasebox.stages.truth import read_truth
from tests.build.files import read_json, write_json
from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported
from tests.trainers.scenes import CATS, IMAGES, PIEBALD, corners, expected

INSTANCES = "annotations/instances_train.json"


def whole(xywh: Any) -> tuple[int, ...]:
    return corners(tuple(round(value) for value in xywh))


def test_fiftyone(scenes: Path, tmp_path: Path) -> None:
    """Its importer; the database and the app are not started."""
    from fiftyone.utils.coco import COCODetectionDatasetImporter

    out, _ = exported("fiftyone", scenes, tmp_path / "out")
    importer = COCODetectionDatasetImporter(dataset_dir=str(out / "train"), label_types=["segmentations"])
    read = []
    with importer:
        for path, metadata, labels in importer:
            assert Path(path).is_file()
            assert (metadata.width, metadata.height) == (WIDTH, HEIGHT)
            for item in (
                labels["segmentations"].detections if isinstance(labels, dict) else labels.detections
            ):
                x, y, w, h = item.bounding_box
                read.append((item.label, whole((x * WIDTH, y * HEIGHT, w * WIDTH, h * HEIGHT))))
                assert item.mask.any()
                assert item["phrase"] == item.label
    assert sorted(read) == expected()


def test_datumaro_and_cvat(scenes: Path, tmp_path: Path) -> None:
    """`attributes` reach both, images are needed."""
    import datumaro

    out, _ = exported("coco", scenes, tmp_path / "out", {"images": True, "attributes": True})
    dataset = datumaro.Dataset.import_from(str(out), "coco_instances")
    categories = dataset.categories()[datumaro.AnnotationType.label]
    boxes = datumaro.AnnotationType.bbox  # a mask stands beside each
    items = [entry for item in dataset for entry in item.annotations if entry.type == boxes]
    read = [(categories[entry.label].name, whole(entry.get_bbox())) for entry in items]
    assert sorted(read) == expected()
    assert {entry.attributes["phrase"] for entry in items} == {name for name, _ in expected()}
    dataset.export(str(tmp_path / "cvat"), "cvat", save_media=False)
    (path,) = (tmp_path / "cvat").rglob("*.xml")
    tree = ElementTree.parse(path)
    assert len(tree.findall("image")) == IMAGES
    labels = [shape.get("label") for image in tree.findall("image") for shape in image]
    assert set(labels) == {name for name, _ in expected()}


@pytest.fixture(scope="module")
def tasks(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("label-studio", scenes, tmp_path_factory.mktemp("tasks") / "out", {"images": True})[0]


def test_label_studio_takes_the_tasks(tasks: Path) -> None:
    """Its own check of tasks and predictions against the labelling interface."""
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((tasks / "label_config.xml").read_text())
    interface.validate()
    content = read_json(tasks / "train.json")
    for task in content:
        (prediction,) = task.pop("predictions")
        interface.validate_task(task)
        assert interface.validate_prediction(prediction), interface.validate_prediction(
            prediction, return_errors=True
        )
    assert len(content) == IMAGES


def test_label_studio_s_export_is_ground_truth(tasks: Path, tmp_path: Path) -> None:
    """Accepted as they are: phrases have the boxes of their objects, and the cat is absent where it was ticked."""
    content = read_json(tasks / "train.json")
    for number, task in enumerate(content, start=1):
        annotation = {"id": number, "result": task["predictions"][0]["result"], "was_cancelled": False}
        task |= {"id": number, "annotations": [annotation]}
    path = tmp_path / "project.json"
    write_json(path, content)
    truth = read_truth(path)
    read = [
        (target.phrase, whole(box))
        for image in truth.images.values()
        for target in image.targets
        for box in target.boxes_xywh_px
    ]
    assert sorted(read) == expected(per="phrase")
    assert sum(PIEBALD in image.absent for image in truth.images.values()) == IMAGES - CATS


def test_mlcroissant_reads_every_row(scenes: Path, tmp_path: Path) -> None:
    """The metadata are valid, and lead to the images."""
    import mlcroissant

    out, _ = exported("hf", scenes, tmp_path / "out")
    dataset = mlcroissant.Dataset(jsonld=str(out / "croissant.json"))
    assert not dataset.metadata.issues.errors
    rows = list(dataset.records("rows"))
    assert len({row["rows/image_id"] for row in rows}) == IMAGES
    assert {row["rows/image"].size for row in rows} == {(WIDTH, HEIGHT)}
