"""Ultralytics: detection, segmentation, open vocabularies by class names and by captions, and an epoch of training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import exported
from tests.trainers.scenes import CATS, IMAGES, OBJECTS, expected

SIDE = 96


def opened(kind: str, images: Path, **options: Any) -> Any:
    from ultralytics.cfg import get_cfg
    from ultralytics.data import dataset

    common = {"imgsz": SIDE, "augment": False, "hyp": get_cfg(), "batch_size": 2, "rect": False}
    return getattr(dataset, kind)(img_path=str(images), **common, **options)


def boxes_of(label: Any) -> list[tuple[int, ...]]:
    """Corners in pixels."""
    center = label["bboxes"] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    edges = np.hstack([center[:, :2] - center[:, 2:] / 2, center[:, :2] + center[:, 2:] / 2])
    return [tuple(box) for box in edges.round().astype(int).tolist()]


def as_heads(objects: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted((name.rsplit(maxsplit=1)[-1].removesuffix("s"), box) for name, box in objects)


@pytest.mark.parametrize(("labels", "task"), [("boxes", "detect"), ("polygons", "segment")])
def test_detection_and_segmentation(labels: str, task: str, scenes: Path, tmp_path: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    out, _ = exported("yolo", scenes, tmp_path / "out", {"labels": labels}, split="train=0.75,val=0.25")
    data = check_det_dataset(str(out / "data.yaml"))
    read = []
    for split in ("train", "val"):
        for label in opened("YOLODataset", data[split], data=data, task=task).labels:
            names = [data["names"][int(number)] for number in label["cls"].ravel()]
            read += zip(names, boxes_of(label), strict=True)
            assert (len(label["segments"]) == len(names)) == (task == "segment")
    assert sorted(read) == as_heads(expected())


def test_synonyms_of_a_class_and_a_slash_in_its_name(scenes: Path, tmp_path: Path) -> None:
    from ultralytics.data.utils import check_det_dataset

    settings = {"labels": "boxes", "classes": "phrase", "synonyms": True}
    out, _ = exported("yolo", scenes, tmp_path / "out", settings)
    data = check_det_dataset(str(out / "data.yaml"))
    dataset = opened("YOLOMultiModalDataset", data["train"], data=data, task="detect")
    assert dataset.category_names == {"boy", "young child", "dog", "two dogs", "black white cat"}
    texts = {
        tuple(texts)
        for label in map(dataset.update_labels_info, dataset.labels)
        for texts in label["texts"]
    }
    assert ("boy", "young child") in texts
    assert len(texts) == 4


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_region_has_the_class_of_one_phrase(task: str, scenes: Path, tmp_path: Path) -> None:
    """Boxes follow the polygons, which are within a pixel of the masks."""
    out, _ = exported("mdetr", scenes, tmp_path / "out", {"trainer": "ultralytics", "images": True})
    dataset = opened(
        "GroundingDataset", out / "images" / "train", json_file=str(out / "train.json"), task=task
    )
    assert dataset.category_names == {"boy", "dog", "two dogs", "black/white cat"}
    assert len(dataset.labels) == IMAGES
    read = [
        (label["texts"][int(number)][0], box)
        for label in dataset.labels
        for number, box in zip(label["cls"].ravel(), boxes_of(label), strict=True)
    ]
    assert len(read) == IMAGES * len(OBJECTS) + CATS
    for (name, box), (wanted, true) in zip(sorted(read), expected(), strict=True):
        assert name == wanted
        assert np.abs(np.subtract(box, true)).max() <= 1


@pytest.mark.parametrize(("labels", "model"), [("boxes", "yolo11n.yaml"), ("polygons", "yolo11n-seg.yaml")])
def test_an_epoch_of_training(labels: str, model: str, scenes: Path, tmp_path: Path) -> None:
    from ultralytics import YOLO

    out, _ = exported("yolo", scenes, tmp_path / "out", {"labels": labels}, split="train=0.75,val=0.25")
    trained = YOLO(model)
    trained.train(
        data=str(out / "data.yaml"),
        epochs=1,
        imgsz=SIDE,
        batch=8,
        device="cpu",
        workers=0,
        project=str(tmp_path),
        name="run",
        pretrained=False,
        plots=False,
        amp=False,
        verbose=False,
    )
    assert (tmp_path / "run" / "weights" / "last.pt").is_file()
    header, values = (
        line.split(",") for line in (tmp_path / "run" / "results.csv").read_text().splitlines()
    )
    losses = [float(value) for name, value in zip(header, values, strict=True) if "loss" in name]
    assert len(losses) >= 6
    assert all(math.isfinite(loss) for loss in losses)
    assert list(trained.names.values()) == ["boy", "cat", "dog"]


def test_the_loss_on_boxes_can_be_switched_off(scenes: Path, tmp_path: Path) -> None:
    """As the guide says; classes are still learned."""
    from ultralytics import YOLO

    out, _ = exported("yolo", scenes, tmp_path / "out", {"labels": "boxes"}, split="train=0.75,val=0.25")
    losses: dict[str, float] = {}
    model = YOLO("yolo11n.yaml")
    model.add_callback(
        "on_train_epoch_end", lambda trainer: losses.update(trainer.label_loss_items(trainer.tloss))
    )
    settings = {"imgsz": SIDE, "batch": 8, "device": "cpu", "workers": 0, "plots": False, "amp": False}
    model.train(
        data=str(out / "data.yaml"), epochs=1, box=0, dfl=0, project=str(tmp_path), name="run", **settings
    )
    assert float(losses["train/box_loss"]) == float(losses["train/dfl_loss"]) == 0
    assert float(losses["train/cls_loss"]) > 0
