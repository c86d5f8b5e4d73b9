"""Exports as the libraries read them that they are for: same counts, boxes and masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.dataset.folder import open_dataset
from pipeline.export import EXPORTERS, ExportRequest, export_dataset
from stages.contract.masks import decode_mask
from stages.contract.records import Rle
from stages.shared.images.decode import load_image_bytes
from stages.shared.images.faults import DecodeLimits
from tests.pipeline.export.datasets import HEIGHT, WIDTH, rows_of, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("readers") / "dataset")


@pytest.fixture
def annotations(dataset: Path) -> dict[int, dict[str, Any]]:
    """Of the dataset, by id, with the image's row and the decoded mask."""
    return {
        annotation["id"]: {**annotation, "row": row, "mask": mask_of(annotation["segmentation"]["counts"])}
        for row in rows_of(dataset)
        for annotation in row["annotations"]
    }


def mask_of(counts: str) -> np.ndarray:
    return decode_mask(Rle(size_hw=(HEIGHT, WIDTH), counts=counts))


def export_to(dataset: Path, out: Path, name: str, **settings: Any) -> Path:
    exporter = EXPORTERS[name]
    request = ExportRequest(exporter=exporter, out=out, config=exporter.config_type(**settings))
    export_dataset(open_dataset(dataset), request)
    return out


@pytest.fixture
def coco(dataset: Path, tmp_path: Path) -> Path:
    """With RLE and images."""
    return export_to(dataset, tmp_path / "coco", "coco", images=True)


INSTANCES = "annotations/instances_train.json"


def test_pycocotools(coco: Path, annotations: dict[int, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(coco / INSTANCES))
    assert set(truth.anns) == set(annotations)
    for number, entry in truth.anns.items():
        np.testing.assert_array_equal(truth.annToMask(entry).astype(bool), annotations[number]["mask"])
        assert entry["bbox"] == annotations[number]["bbox"]
        assert truth.cats[entry["category_id"]]["name"] == annotations[number]["phrase"]
    results = [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "segmentation": entry["segmentation"],
            "score": entry["score"],
        }
        for entry in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_faster_coco_eval(coco: Path, annotations: dict[int, dict[str, Any]]) -> None:
    from faster_coco_eval import COCO

    truth = COCO(str(coco / INSTANCES))
    assert set(truth.getAnnIds()) == set(annotations)
    for entry in truth.loadAnns(truth.getAnnIds()):
        np.testing.assert_array_equal(truth.annToMask(entry).astype(bool), annotations[entry["id"]]["mask"])


def test_torchvision(coco: Path, annotations: dict[int, dict[str, Any]]) -> None:
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

    plain = CocoDetection(coco / "images" / "train", coco / INSTANCES)
    keys = ("image_id", "boxes", "masks", "labels")
    wrapped = wrap_dataset_for_transforms_v2(plain, target_keys=keys)
    assert len(wrapped) == 12
    seen = 0
    for (image, target), (_, entries) in zip(wrapped, plain, strict=True):
        assert image.size == (WIDTH, HEIGHT)
        for box, mask, entry in zip(target["boxes"], target["masks"], entries, strict=True):
            x, y, w, h = annotations[entry["id"]]["bbox"]
            assert box.tolist() == [x, y, x + w, y + h]
            np.testing.assert_array_equal(mask.numpy().astype(bool), annotations[entry["id"]]["mask"])
            seen += 1
    assert seen == len(annotations)


def boxes_and_areas(annotations: dict[int, dict[str, Any]]) -> list[tuple[Any, ...]]:
    """(x0, y0, x1, y1, area), sorted."""
    boxes = ([*entry["bbox"], entry["area"]] for entry in annotations.values())
    return sorted((x, y, x + w, y + h, area) for x, y, w, h, area in boxes)


def supervised(coco: Path) -> Iterator[Any]:
    import supervision

    loaded = supervision.DetectionDataset.from_coco(
        images_directory_path=str(coco / "images" / "train"),
        annotations_path=str(coco / INSTANCES),
        force_masks=True,
    )
    yield from (detections for _, _, detections in loaded)


def test_supervision(coco: Path, annotations: dict[int, dict[str, Any]]) -> None:
    found = [
        (*box.tolist(), int(mask.sum()))
        for detections in supervised(coco)
        for box, mask in zip(detections.xyxy, detections.mask, strict=True)
    ]
    assert sorted(found) == boxes_and_areas(annotations)


def test_supervision_reads_polygons(dataset: Path, tmp_path: Path, annotations: dict[int, dict[str, Any]]) -> None:
    """Boxes agree; its masks are a pixel wider on the right and below, because it paints the corners of outlines."""
    folder = export_to(dataset, tmp_path / "polygons", "coco", images=True, segmentation="polygons")
    found = [
        (*box.tolist(), int(mask.sum()))
        for detections in supervised(folder)
        for box, mask in zip(detections.xyxy, detections.mask, strict=True)
    ]
    assert len(found) == len(annotations)
    for (*box, drawn), (*wanted, area) in zip(sorted(found), boxes_and_areas(annotations), strict=True):
        assert box == wanted
        assert area <= drawn <= (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


@pytest.mark.parametrize(("most", "labels"), [(None, True), (14, True), (13, False)])
def test_datasets(
    most: int | None,
    labels: bool,
    dataset: Path,
    tmp_path: Path,
    annotations: dict[int, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A category is a number with a name; or the name itself where there are too many for every file, here of 14."""
    import datasets

    if most is not None:
        monkeypatch.setattr("pipeline.export.hf.MOST_LABELS", most)
    folder = export_to(dataset, tmp_path / "hf", "hf", rows_per_file=5)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 12
    category = loaded.features["objects"]["category"].feature
    assert isinstance(category, datasets.ClassLabel) == labels
    names = pq.read_schema(folder / "data" / "train-00000-of-00003.parquet").metadata[b"huggingface"].decode()
    assert ("red car" in names) == labels, "names of categories stand in no file, or in all"
    assert ("more than 13" in (folder / "README.md").read_text()) == (not labels)
    seen = 0
    for row in loaded:
        assert row["image"].size == (row["width"], row["height"]) == (WIDTH, HEIGHT)
        objects = row["objects"]
        for number, box, label, area, counts in zip(
            *(objects[key] for key in ("id", "bbox", "category", "area", "segmentation")), strict=True
        ):
            wanted = annotations[number]
            name = category.int2str(label) if labels else label
            assert (box, area, name) == (wanted["bbox"], wanted["area"], wanted["phrase"])
            np.testing.assert_array_equal(mask_of(counts), wanted["mask"])
            seen += 1
    assert seen == len(annotations)


@pytest.mark.parametrize("shares", ["train=0.6,validation=0.4", "train=0.999999,validation=0.000001"])
def test_datasets_with_splits(shares: str, dataset: Path, tmp_path: Path) -> None:
    """A split that got no sample is not there."""
    import datasets

    request = ExportRequest(exporter=EXPORTERS["hf"], out=tmp_path / "hf", split=shares)
    report = export_dataset(open_dataset(dataset), request)
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == +report.samples


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its tars open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset(dataset: Path, tmp_path: Path, annotations: dict[int, dict[str, Any]]) -> None:
    import webdataset

    folder = export_to(dataset, tmp_path / "tars", "webdataset", rows_per_file=5)
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    assert len(tars) == 3
    seen = 0
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("pil"):
        content = sample["json"]
        image = next(sample[extension] for extension in ("jpg", "png") if extension in sample)
        assert image.size == (content["width"], content["height"])
        assert sample["txt"] == content["captions"][0]
        for entry in content["annotations"]:
            wanted = annotations[entry["id"]]
            assert (entry["bbox"], entry["area"]) == (wanted["bbox"], wanted["area"])
            np.testing.assert_array_equal(mask_of(entry["segmentation"]["counts"]), wanted["mask"])
            seen += 1
    assert seen == len(annotations)


def test_phrasebox_reads_its_own_tars(dataset: Path, tmp_path: Path) -> None:
    from tests.stages.read.inputs import read_all

    folder = export_to(dataset, tmp_path / "tars", "webdataset")
    samples = read_all(kind="webdataset", path=str(folder))
    assert len(samples) == 12
    for sample in samples:
        image = Image.open(BytesIO(load_image_bytes(sample.image, DecodeLimits())))
        assert image.size == (WIDTH, HEIGHT)


def test_import_of_a_coco_export_gives_the_same_annotations(dataset: Path, coco: Path) -> None:
    """Boxes, masks, areas, phrases, heads, spans, scores: all that the dataset says of a region, but its category."""
    content = json.loads((coco / INSTANCES).read_text(encoding="utf-8"))
    rows = {row["id"]: row for row in rows_of(dataset)}
    names = {category["id"]: (category["name"], category["supercategory"]) for category in content["categories"]}
    captions = {image["id"]: image["caption"] for image in content["images"]}
    for image in content["images"]:
        row = rows[image["id"]]
        assert {key: image[key] for key in ("width", "height", "captions", "sample_id")} == {
            key: row[key] for key in ("width", "height", "captions", "sample_id")
        }
    imported: dict[int, list[dict[str, Any]]] = {number: [] for number in rows}
    for entry in content["annotations"]:
        [[start, end]] = entry.pop("tokens_positive")
        caption_start, caption_end = entry["span"]
        words = rows[entry["image_id"]]["captions"][entry["caption_index"]][caption_start:caption_end]
        assert captions[entry["image_id"]][start:end] == words
        name, head = names[entry["category_id"]]
        assert (name, head) == (entry["phrase"], entry["head"])
        for key in {"score", "similarity", "presence"} & entry.keys():
            entry[key] = float(np.float32(entry[key]))
        imported[entry["image_id"]].append(entry)
    for number, row in rows.items():
        wanted = [
            {key: value for key, value in entry.items() if key != "category_id" and value is not None}
            for entry in row["annotations"]
        ]
        assert [{key: value for key, value in e.items() if key != "category_id"} for e in imported[number]] == wanted


def test_eval_takes_a_coco_export_for_truth(dataset: Path, coco: Path) -> None:
    from stages.shared.truth import read_truth

    truth = read_truth(coco / INSTANCES)
    assert len(truth.images) == 12
    assert sum(len(target.boxes_xywh_px) for image in truth.images.values() for target in image.targets) == 17
