"""Exports as the libraries read them that they are for: same counts, boxes and masks."""

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import supervision
import webdataset
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from transformers import DetrImageProcessor

from stages.contract.errors import ConfigError
from stages.contract.masks import decode_mask
from stages.contract.records import Rle
from stages.shared.images.decode import load_image_bytes
from stages.shared.images.faults import DecodeLimits
from stages.truth import read_truth
from tests.build.datasets import Json, rows_of
from tests.build.files import read_json
from tests.build.records import HEIGHT, WIDTH
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished
from tests.stages.read.inputs import read_all

INSTANCES = "annotations/instances_train.json"


@pytest.fixture(scope="module")
def annotations(demo_dataset: Path) -> dict[int, Json]:
    """Of the dataset, by id, with the decoded mask."""
    entries = [entry for row in rows_of(demo_dataset) for entry in row["annotations"]]
    return {entry["id"]: {**entry, "mask": mask_of(entry["segmentation"]["counts"])} for entry in entries}


def mask_of(counts: str) -> np.ndarray:
    return decode_mask(Rle(size_hw=(HEIGHT, WIDTH), counts=counts))


@pytest.fixture(scope="module")
def coco(demo_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With RLE and images."""
    return exported("coco", demo_dataset, tmp_path_factory.mktemp("read") / "coco", {"images": True})[0]


def test_pycocotools(coco: Path, annotations: dict[int, Json]) -> None:
    for library in ("pycocotools.coco", "faster_coco_eval"):
        truth = import_module(library).COCO(str(coco / INSTANCES))
        entries = {entry["id"]: entry for entry in truth.loadAnns(truth.getAnnIds())}
        assert entries.keys() == annotations.keys()
        for number, entry in entries.items():
            np.testing.assert_array_equal(truth.annToMask(entry).astype(bool), annotations[number]["mask"])
            assert entry["bbox"] == annotations[number]["bbox"]
            assert truth.cats[entry["category_id"]]["name"] == annotations[number]["phrase"]


def test_torchvision(coco: Path, annotations: dict[int, Json]) -> None:
    """As its own detectors want them: corners, masks and labels."""
    plain = CocoDetection(coco / "images" / "train", coco / INSTANCES)
    names = {number: entry["name"] for number, entry in plain.coco.cats.items()}
    read = []
    for image, target in wrap_dataset_for_transforms_v2(plain, target_keys=["boxes", "masks", "labels"]):
        assert image.size == (WIDTH, HEIGHT)
        areas = target["masks"].sum(dim=(1, 2)).tolist()
        labels = [names[number] for number in target["labels"].tolist()]
        read += zip(labels, target["boxes"].tolist(), areas, strict=True)
    boxes = ((entry["phrase"], entry["bbox"], entry["area"]) for entry in annotations.values())
    assert sorted(read) == sorted((name, [x, y, x + w, y + h], area) for name, (x, y, w, h), area in boxes)


def test_transformers(demo_dataset: Path, tmp_path: Path) -> None:
    """The images and objects of `hf` are what DETR's processor takes."""
    folder, _ = exported("hf", demo_dataset, tmp_path / "hf", {"classes": "head"})
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    for row in rows:
        objects = row["objects"]
        fields = zip(objects["bbox"], objects["category"], objects["area"], strict=True)
        entries = [
            {"bbox": box, "category_id": label, "area": area, "iscrowd": 0} for box, label, area in fields
        ]
        target = {"image_id": row["image_id"], "annotations": entries}
        answer = DetrImageProcessor()(row["image"].convert("RGB"), annotations=target, return_tensors="pt")
        (labels,) = answer["labels"]
        assert labels["class_labels"].tolist() == objects["category"]
        x, y, w, h = objects["bbox"][0]
        center = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
        np.testing.assert_allclose(labels["boxes"][0].numpy(), center, atol=1e-6)


def test_results_are_scored_by_the_instances_of_the_input(tmp_path: Path) -> None:
    """Images have the ids of their samples, which are those of COCO captions."""
    make = Maker()
    rows = [
        make.record(name, "a car", ("car", (3, 4, 10, 12)), file_name=f"{name}.jpg")
        for name in ("139", "7")
    ]
    dataset = finished(tmp_path / "dataset", rows)
    out, _ = exported("coco", dataset, tmp_path / "out", {"ids": "source"})
    content = read_json(out / INSTANCES)
    truth = import_module("pycocotools.coco").COCO()
    truth.dataset = {"images": [{"id": 7}, {"id": 139}], "annotations": [], "categories": []}
    truth.createIndex()
    fields = ("image_id", "category_id", "bbox", "score")
    results = truth.loadRes([{key: entry[key] for key in fields} for entry in content["annotations"]])
    assert sorted(results.getImgIds()) == [7, 139]
    for name in ("a", "007", "1.5"):
        other = finished(tmp_path / name / "dataset", [make.record(name, "a car", ("car", (3, 4, 10, 12)))])
        with expect_error(ConfigError):
            exported("coco", other, tmp_path / name / "out", {"ids": "source"})


def test_supervision(demo_dataset: Path, tmp_path: Path, annotations: dict[int, Json]) -> None:
    """Of polygons, its masks are a pixel wider on the right and below, because it paints the corners of outlines."""
    out, _ = exported("coco", demo_dataset, tmp_path / "out", {"images": True, "segmentation": "polygons"})
    loaded = supervision.DetectionDataset.from_coco(
        images_directory_path=str(out / "images" / "train"),
        annotations_path=str(out / INSTANCES),
        force_masks=True,
    )
    pairs = [pair for _, _, one in loaded for pair in zip(one.xyxy, one.mask, strict=True)]
    shapes = [(*box.tolist(), int(mask.sum())) for box, mask in pairs]
    boxes = ([*entry["bbox"], entry["area"]] for entry in annotations.values())
    wanted = sorted((x, y, x + w, y + h, area) for x, y, w, h, area in boxes)
    for (*box, drawn), (*true, area) in zip(sorted(shapes), wanted, strict=True):
        assert box == true
        assert area <= drawn <= (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


@pytest.mark.parametrize(("most", "labels"), [(14, True), (13, False)])
def test_datasets(most, labels, demo_dataset, tmp_path, annotations, monkeypatch) -> None:
    """A category is a number with a name; or the name itself where there are too many for every file, here of 14."""
    monkeypatch.setattr("pipeline.export.hf.MOST_LABELS", most)
    folder, _ = exported("hf", demo_dataset, tmp_path / "hf", {"rows_per_file": 5})
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 12
    category = loaded.features["objects"]["category"].feature
    assert isinstance(category, datasets.ClassLabel) == labels
    names = (
        pq.read_schema(folder / "data" / "train-00000-of-00003.parquet").metadata[b"huggingface"].decode()
    )
    assert ("red car" in names) == labels, "names of categories stand in no file, or in all"
    assert ("more than 13" in (folder / "README.md").read_text()) == (not labels)
    count = 0
    for row in loaded:
        assert row["image"].size == (row["width"], row["height"]) == (WIDTH, HEIGHT)
        keys = ("id", "bbox", "category", "area", "segmentation")
        for number, box, label, area, counts in zip(*(row["objects"][key] for key in keys), strict=True):
            wanted = annotations[number]
            name = category.int2str(label) if labels else label
            assert (box, area, name) == (wanted["bbox"], wanted["area"], wanted["phrase"])
            np.testing.assert_array_equal(mask_of(counts), wanted["mask"])
            count += 1
    assert count == len(annotations)


@pytest.mark.parametrize("shares", ["train=0.6,validation=0.4", "train=0.999999,validation=0.000001"])
def test_datasets_with_splits(shares: str, demo_dataset: Path, tmp_path: Path) -> None:
    """A split that got no sample is not there."""
    out, report = exported("hf", demo_dataset, tmp_path / "hf", split=shares)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == +report.samples


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its tars open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset(demo_dataset: Path, tmp_path: Path, annotations: dict[int, Json]) -> None:
    folder, _ = exported("webdataset", demo_dataset, tmp_path / "tars", {"rows_per_file": 5})
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(tars) == 3
    count = 0
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("pil"):
        content = sample["json"]
        image = next(sample[extension] for extension in ("jpg", "png") if extension in sample)
        assert image.size == (content["width"], content["height"])
        assert sample["txt"] == content["captions"][0]
        for entry in content["annotations"]:
            wanted = annotations[entry["id"]]
            assert (entry["bbox"], entry["area"]) == (wanted["bbox"], wanted["area"])
            np.testing.assert_array_equal(mask_of(entry["segmentation"]["counts"]), wanted["mask"])
            count += 1
    assert count == len(annotations)
    samples = read_all(kind="webdataset", path=str(folder))  # phrasebox reads its own
    sizes = [Image.open(BytesIO(load_image_bytes(sample.image, DecodeLimits()))).size for sample in samples]
    assert sizes == [(WIDTH, HEIGHT)] * 12


def test_a_coco_entry_says_all_that_the_dataset_says_of_a_region(
    coco: Path, annotations: dict[int, Any]
) -> None:
    """Box, mask, area, phrase, head, span, scores; and `eval` takes the file for ground truth."""
    content = read_json(coco / INSTANCES)
    images = {image["id"]: image for image in content["images"]}
    for entry in content["annotations"]:
        stored = {**annotations[entry["id"]], "mask": None, "category_id": None}
        for key in {"score", "similarity", "presence"} & entry.keys():
            entry[key] = float(np.float32(entry[key]))
        unsaid = (None, "none", "mask")  # what `refined` and `bbox_of` say of a plain region
        assert {key: value for key, value in stored.items() if value not in unsaid}.items() <= entry.items()
        [[start, end]] = entry["tokens_positive"]
        image = images[entry["image_id"]]
        assert (
            image["caption"][start:end] == image["captions"][entry["caption_index"]][slice(*entry["span"])]
        )
    truth = read_truth(coco / INSTANCES)
    assert len(truth.images) == 12
    assert (
        sum(len(target.boxes_xywh_px) for image in truth.images.values() for target in image.targets) == 17
    )
