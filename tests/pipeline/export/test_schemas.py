"""Formats whose readers cannot be installed here, against what those readers do with the fields.

Written from the readers' own sources: mmdetection's `ODVGDataset`, Open-GroundingDino's `ODVGDataset`, MDETR's
`ConvertCocoPolysToMask`, YOLO-World's `YOLOv5MixedGroundingDataset`, the GRIT card, CLIPSelf's `COCORegionCLIPDataset`,
Ultralytics' label check, FiftyOne's `COCODetectionDataset`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pycocotools import mask as coco_mask

from pipeline.dataset.folder import open_dataset
from pipeline.export import EXPORTERS, ExportRequest, export_dataset
from pipeline.export.base import ExportReport
from stages.contract.errors import InputError
from stages.contract.masks import decode_mask
from stages.contract.records import Rle
from tests.pipeline.export.datasets import HEIGHT, WIDTH, rows_by_stem, rows_of, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("schemas") / "dataset", demo=True)


def export_to(dataset: Path, out: Path, name: str, **settings: Any) -> ExportReport:
    exporter = EXPORTERS[name]
    request = ExportRequest(exporter=exporter, out=out, config=exporter.config_type(**settings))
    return export_dataset(open_dataset(dataset), request)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_odvg_grounding(dataset: Path, tmp_path: Path) -> None:
    export_to(dataset, tmp_path / "out", "odvg")
    lines = lines_of(tmp_path / "out" / "train.jsonl")
    assert len(lines) == 13  # one sample has regions in two captions
    for line in lines:
        assert set(line) == {"filename", "height", "width", "grounding"}
        grounding = line["grounding"]
        assert set(grounding) == {"caption", "regions"}
        assert grounding["regions"], "Open-GroundingDino raises on an empty list"
        for region in grounding["regions"]:
            x0, y0, x1, y1 = region["bbox"]  # not a list of boxes: Open-GroundingDino reads one a region
            assert all(is_number(value) for value in region["bbox"])
            # mmdetection drops what does not overlap the image, and sides below a pixel
            assert min(x1, WIDTH) - max(x0, 0) >= 1
            assert min(y1, HEIGHT) - max(y0, 0) >= 1
            assert region["phrase"]
            for start, end in region["tokens_positive"]:
                assert 0 <= start < end <= len(grounding["caption"])
                assert grounding["caption"][start:end].strip()


def test_odvg_detection(dataset: Path, tmp_path: Path) -> None:
    export_to(dataset, tmp_path / "out", "odvg", form="detection", classes="head")
    label_map = json.loads((tmp_path / "out" / "label_map.json").read_text(encoding="utf-8"))
    assert list(label_map) == [str(number) for number in range(len(label_map))]
    lines = lines_of(tmp_path / "out" / "train.jsonl")
    assert len(lines) == 12
    for line in lines:
        assert set(line) == {"filename", "height", "width", "detection"}
        for instance in line["detection"]["instances"]:
            assert label_map[str(instance["label"])] == instance["category"]
            assert len(instance["bbox"]) == 4


def test_mdetr(dataset: Path, tmp_path: Path) -> None:
    report = export_to(dataset, tmp_path / "out", "mdetr")
    content = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))
    assert set(content) == {"info", "licenses", "categories", "images", "annotations"}
    images = {image["id"]: image for image in content["images"]}
    assert len(images) == len(content["images"]) == 13
    for image in images.values():
        assert isinstance(image["caption"], str)
        assert image["tokens_negative"] == [[0, len(image["caption"])]]
        assert all(image[key] for key in ("file_name", "height", "width", "dataset_name"))
        assert all(isinstance(image[key], int) for key in ("id", "original_img_id", "sentence_id"))
    rows = {row["id"]: row for row in rows_of(dataset)}
    masks = {entry["id"]: entry["segmentation"] for row in rows.values() for entry in row["annotations"]}
    assert {entry["id"] for entry in content["annotations"]} == set(masks)
    filled = 0
    for entry in content["annotations"]:
        caption = images[entry["image_id"]]["caption"]
        assert (entry["iscrowd"], entry["category_id"]) == (0, 1)
        x, y, w, h = entry["bbox"]
        # YOLO-World drops these
        assert entry["area"] > 0
        assert w >= 1
        assert h >= 1
        assert x + w <= WIDTH
        assert y + h <= HEIGHT
        # and joins the words of the spans
        assert " ".join(caption[start:end] for start, end in entry["tokens_positive"]).strip()
        assert [entry["tokens_positive"][0]] in images[entry["image_id"]]["tokens_positive_eval"]
        # MDETR's masks: frPyObjects of polygons, decoded, any of them
        drawn = coco_mask.decode(coco_mask.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)).any(axis=2)
        true = decode_mask(Rle(size_hw=(HEIGHT, WIDTH), counts=masks[entry["id"]]["counts"]))
        assert (drawn >= true).all()
        filled += (drawn != true).any()
        assert entry["rle"] == masks[entry["id"]]
    assert filled == 1 == sum(count for note, count in report.notes.items() if "holes" in note)


def test_a_damaged_mask_is_told(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    shard = folder / "data" / "00000.parquet"
    rows = pq.read_table(shard)
    broken = rows.to_pylist()
    broken[1]["annotations"][0]["segmentation"]["counts"] = "~~"
    pq.write_table(rows.from_pylist(broken, schema=rows.schema), shard)
    with pytest.raises(InputError, match=r"mask of annotation .* is damaged.*phrasebox validate"):
        export_to(folder, tmp_path / "out", "mdetr")
    assert not (tmp_path / "out").exists()


def test_grit(dataset: Path, tmp_path: Path) -> None:
    export_to(dataset, tmp_path / "out", "grit")
    [path] = (tmp_path / "out" / "data").iterdir()
    assert path.name == "train-00000-of-00001.parquet"
    columns = [
        "key", "clip_similarity_vitb32", "clip_similarity_vitl14", "id", "url", "caption", "width", "height",
        "noun_chunks", "ref_exps",
    ]  # fmt: skip
    table = pq.read_table(path)
    assert table.schema.names[: len(columns)] == columns
    rows = table.to_pylist()
    assert len(rows) == 13
    for row in rows:
        for chunk in (*row["noun_chunks"], *row["ref_exps"]):
            start, end, x0, y0, x1, y1, score = chunk
            assert row["caption"][int(start) : int(end)].strip()
            assert (start, end) == (int(start), int(end))
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert 0 <= score <= 1
        assert all(expression in row["noun_chunks"] for expression in row["ref_exps"])
    [nested] = [row for row in rows if row["caption"] == "the dog of the man"]
    assert [row["caption"][int(c[0]) : int(c[1])] for row in [nested] for c in nested["noun_chunks"]] == [
        "the dog of the man",
        "the man",
    ]
    assert [(c[0], c[1]) for c in nested["ref_exps"]] == [(0, 18)]


@pytest.mark.parametrize("classes", ["phrase", "head"])
def test_clipself(classes: str, dataset: Path, tmp_path: Path) -> None:
    import torch.nn.functional as F

    from stages.shared.model.config import ModelConfig
    from stages.shared.model.load import load

    export_to(dataset, tmp_path / "out", "clipself", classes=classes)
    content = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))
    embeddings = np.load(tmp_path / "out" / "text_embeddings.npy")
    ids = sorted(category["id"] for category in content["categories"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    model = load(ModelConfig(name="demo"))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (len(ids), model.embed_dim)
    # CLIPSelf: row = rank of the sorted category id
    wanted = F.normalize(model.encode_text([names[number] for number in ids]).float(), dim=-1).numpy()
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5)
    for entry in content["annotations"]:
        assert len(entry["bbox"]) == 4
        assert entry["category_id"] in names
        assert entry["image_id"] in {image["id"] for image in content["images"]}


def test_clipself_refuses_another_model(dataset: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other")  # its manifest tells another fingerprint
    with pytest.raises(InputError, match="not those that the dataset was made with"):
        export_to(other, tmp_path / "out", "clipself")
    assert not (tmp_path / "out").exists()


def test_yolo_outlines(dataset: Path, tmp_path: Path) -> None:
    report = export_to(dataset, tmp_path / "out", "yolo")
    settings = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text(encoding="utf-8"))
    assert (settings["train"], settings["val"]) == ("images/train", "images/train")
    assert list(settings["names"]) == list(range(report.categories))
    rows = rows_by_stem(dataset, tmp_path / "out")
    for path in (tmp_path / "out" / "labels" / "train").iterdir():
        lines = path.read_text().splitlines()
        annotations = rows[path.stem]["annotations"]
        for line, annotation in zip(lines, annotations, strict=True):
            number, *values = line.split()
            assert settings["names"][int(number)] == annotation["head"]
            points = np.array(values, float).reshape(-1, 2)
            assert len(points) >= 3  # else Ultralytics takes the line for a box
            assert ((points >= 0) & (points <= 1)).all()
            assert painted_iou(points, annotation) > 0.94
    assert sum(count for note, count in report.notes.items() if "several parts" in note) == 1
    assert sum(count for note, count in report.notes.items() if "holes" in note) == 1


def painted_iou(points: np.ndarray, annotation: dict[str, Any]) -> float:
    """Of an outline and the mask with its holes filled, both painted 40 times as large.

    A painted border is a pixel wide, so that even a mask of one pixel has (40 / 41)^2 = .95.
    """
    scale = 40
    canvas = np.zeros((HEIGHT * scale, WIDTH * scale), np.uint8)
    cv2.fillPoly(canvas, [np.round(points * (WIDTH * scale, HEIGHT * scale)).astype(np.int32)], 1)
    mask = decode_mask(Rle(size_hw=(HEIGHT, WIDTH), counts=annotation["segmentation"]["counts"])).astype(np.uint8)
    filled = np.ascontiguousarray(mask)
    outlines, _ = cv2.findContours(filled.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    true = np.kron(filled, np.ones((scale, scale), np.uint8))
    return float((canvas & true).sum() / (canvas | true).sum())


def test_yolo_boxes(dataset: Path, tmp_path: Path) -> None:
    report = export_to(dataset, tmp_path / "out", "yolo", labels="boxes", classes="phrase")
    lines = [
        line.split()
        for path in sorted((tmp_path / "out" / "labels").rglob("*.txt"))
        for line in path.read_text().splitlines()
    ]
    assert {len(line) for line in lines} == {5}
    assert len(lines) == report.notes["masks dropped: labels=boxes"] == 17


def test_fiftyone_layout(dataset: Path, tmp_path: Path) -> None:
    export_to(dataset, tmp_path / "out", "fiftyone")
    folder = tmp_path / "out" / "train"
    content = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    assert {"info", "licenses", "categories", "images", "annotations"} == set(content)
    assert {image["file_name"] for image in content["images"]} == {path.name for path in (folder / "data").iterdir()}
    assert all(isinstance(entry["segmentation"]["counts"], str) for entry in content["annotations"])
