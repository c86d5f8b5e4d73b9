"""Formats whose readers cannot be installed here, against what those readers do with the fields.

Written from the readers' own sources: mmdetection's `ODVGDataset`, Open-GroundingDino's `ODVGDataset`, MDETR's
`ConvertCocoPolysToMask`, YOLO-World's `YOLOv5MixedGroundingDataset`, the GRIT card, CLIPSelf's `COCORegionCLIPDataset`,
Ultralytics' label check.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.nn.functional as F
import yaml
from pycocotools import mask as coco_mask

from pipeline.export.base import BEYOND_TOKENS
from pipeline.export.corrected import CORRECTED_BOXES, REPLACED_MASKS, replace_box
from stages.contract.errors import InputError
from stages.contract.masks import decode_mask, encode_box
from stages.contract.records import Rle
from stages.shared.model.config import ModelConfig
from tests.build.datasets import Json, change_rows, rows_of
from tests.build.files import read_json, read_lines
from tests.build.records import HEIGHT, WIDTH
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished, rows_by_stem, write_dataset
from tests.stages.shared.model.saved import load_model


def lines_of(path: Path) -> list[Json]:
    return read_lines(path)


def test_odvg_grounding(demo_dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("odvg", demo_dataset, tmp_path / "out")
    lines = lines_of(out / "train.jsonl")
    assert len(lines) == 13  # one sample has regions in two captions
    for line in lines:
        assert set(line) == {"filename", "height", "width", "grounding"}
        grounding = line["grounding"]
        assert set(grounding) == {"caption", "regions"}
        assert grounding["regions"], "Open-GroundingDino raises on an empty list"
        for region in grounding["regions"]:
            x0, y0, x1, y1 = region["bbox"]  # not a list of boxes: Open-GroundingDino reads one a region
            # mmdetection drops what does not overlap the image, and sides below a pixel
            assert min(x1, WIDTH) - max(x0, 0) >= 1
            assert min(y1, HEIGHT) - max(y0, 0) >= 1
            for start, end in region["tokens_positive"]:
                assert region["phrase"] in grounding["caption"][start:end].lower()


def test_odvg_counts_from_the_first_letter_as_mmdetection_does(tmp_path: Path) -> None:
    row = Maker().record("a", "  \n a red car ", ("a red car", (3, 4, 10, 12)))
    out, _ = exported("odvg", finished(tmp_path / "dataset", [row]), tmp_path / "out")
    (line,) = lines_of(out / "train.jsonl")
    assert line["grounding"]["caption"] == "a red car"
    assert line["grounding"]["regions"][0]["tokens_positive"] == [[0, 9]]


def test_a_corrected_box_that_the_mask_does_not_fill_is_the_mask() -> None:
    segmentation = {"size": [10, 10], "counts": encode_box((2, 2, 5, 5), (10, 10)).counts}
    region = {"id": 1, "bbox": [2, 2, 3, 3], "area": 9, "segmentation": segmentation, "score": 0.5}
    for box, area, note in (
        ((1, 1, 4, 4), 9, CORRECTED_BOXES),
        ((0, 0, 10, 10), 100, REPLACED_MASKS),
        ((3, 3, 4, 4), 16, REPLACED_MASKS),
        ((7, 7, 2, 2), 4, REPLACED_MASKS),
        ((2, 2, 2, 2), 4, CORRECTED_BOXES),
    ):
        changed, told = replace_box(region, box)
        assert (changed["area"], told, changed["bbox_of"]) == (area, note, "person")


def test_an_export_without_a_single_image_leaves_the_former_one(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset", embed_images=False)
    (tmp_path / "out").mkdir()
    with expect_error(InputError):
        exported("yolo", folder, tmp_path / "out", image_root=str(tmp_path))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("per", ["phrase", "group"])
@pytest.mark.parametrize(("name", "file"), [("mdetr", "train.json"), ("odvg", "train.jsonl")])
def test_phrases_behind_the_last_token_are_counted(name: str, file: str, per: Any, tmp_path: Path) -> None:
    """The mark of the start and 255 words are 256 tokens at least, with the car as the last word or behind it."""
    make = Maker()
    rows = [
        make.record(str(words), f"{'so ' * words}car", ("car", (3, 4, 10, 12)), file_name=f"{words}.jpg")
        for words in (254, 255, 300)
    ]
    out, report = exported(name, finished(tmp_path / "dataset", rows), tmp_path / "out", per=per)
    assert (out / file).read_text().count("car") >= 3
    assert report.notes[BEYOND_TOKENS] == 2


def test_odvg_detection(demo_dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("odvg", demo_dataset, tmp_path / "out", {"form": "detection", "classes": "head"})
    label_map = read_json(out / "label_map.json")
    plain, report = exported("odvg", demo_dataset, tmp_path / "grounding")
    assert not (plain / "label_map.json").exists(), "with a label map, readers look for `detection`"
    assert report.categories == 0
    assert list(label_map) == [str(number) for number in range(len(label_map))]
    lines = lines_of(out / "train.jsonl")
    assert len(lines) == 12
    for line in lines:
        assert set(line) == {"filename", "height", "width", "detection"}
        for instance in line["detection"]["instances"]:
            assert label_map[str(instance["label"])] == instance["category"]
            assert len(instance["bbox"]) == 4


def test_mdetr(demo_dataset: Path, tmp_path: Path) -> None:
    out, report = exported("mdetr", demo_dataset, tmp_path / "out")
    content = read_json(out / "train.json")
    images = {image["id"]: image for image in content["images"]}
    assert len(images) == len(content["images"]) == 13
    for image in images.values():
        assert image["tokens_negative"] == [[0, len(image["caption"])]]
        # MDETR's and GLIP's mixed datasets take the first folder of images for "coco", the second for others.
        assert image["data_source"] == "phrasebox"
        assert all(isinstance(image[key], int) for key in ("id", "original_img_id", "sentence_id"))
    masks = {
        entry["id"]: entry["segmentation"] for row in rows_of(demo_dataset) for entry in row["annotations"]
    }
    filled = 0
    for entry in content["annotations"]:
        assert (entry["iscrowd"], entry["category_id"]) == (0, 1)
        x, y, w, h = entry["bbox"]
        # YOLO-World drops others
        assert min(entry["area"], w, h) >= 1
        assert x + w <= WIDTH
        assert y + h <= HEIGHT
        assert [entry["tokens_positive"][0]] in images[entry["image_id"]]["tokens_positive_eval"]
        # MDETR's masks: frPyObjects of polygons, decoded, any of them
        drawn = coco_mask.decode(coco_mask.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)).any(axis=2)
        true = decode_mask(Rle(size_hw=(HEIGHT, WIDTH), counts=masks[entry["id"]]["counts"]))
        assert (drawn >= true).all()
        filled += (drawn != true).any()
        assert entry["rle"] == masks[entry["id"]]
    assert filled == 1 == sum(count for note, count in report.notes.items() if "holes" in note)


def test_a_damaged_mask_is_reported(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    shard = folder / "data" / "00000.parquet"
    change_rows(shard, lambda rows: rows[1]["annotations"][0]["segmentation"].update(counts="~~"))
    with expect_error(InputError):
        exported("mdetr", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grit(demo_dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("grit", demo_dataset, tmp_path / "out")
    [path] = (out / "data").iterdir()
    assert path.name == "train-00000-of-00001.parquet"
    columns = [
        "key",
        "clip_similarity_vitb32",
        "clip_similarity_vitl14",
        "id",
        "url",
        "caption",
        "width",
        "height",
    ]
    columns += ["noun_chunks", "ref_exps"]
    table = pq.read_table(path)
    assert table.schema.names[: len(columns)] == columns
    rows = table.to_pylist()
    assert len(rows) == 13
    for row in rows:
        for chunk in (*row["noun_chunks"], *row["ref_exps"]):
            start, end, x0, y0, x1, y1, score = chunk
            assert row["caption"][int(start) : int(end)].strip()
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert 0 <= score <= 1
        assert all(expression in row["noun_chunks"] for expression in row["ref_exps"])
    caption = "the dog of the man"
    [nested] = [row for row in rows if row["caption"] == caption]
    assert [caption[int(c[0]) : int(c[1])] for c in nested["noun_chunks"]] == [caption, "the man"]
    assert [(c[0], c[1]) for c in nested["ref_exps"]] == [(0, 18)]


def test_clipself(demo_dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("clipself", demo_dataset, tmp_path / "out", {"classes": "head"})
    content = read_json(out / "train.json")
    embeddings = np.load(out / "text_embeddings.npy")
    names = {category["id"]: category["name"] for category in content["categories"]}
    model = load_model(ModelConfig(name="demo"))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (len(names), model.embed_dim)
    # CLIPSelf: row = rank of the sorted category id
    wanted = F.normalize(
        model.encode_text([names[number] for number in sorted(names)]).float(), dim=-1
    ).numpy()
    np.testing.assert_allclose(embeddings, wanted, atol=1e-5)


def test_clipself_rejects_another_model(tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other")  # its manifest has another fingerprint
    with expect_error(InputError):
        exported("clipself", other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_coco_as_open_groundingdino_validates(demo_dataset: Path, tmp_path: Path) -> None:
    """It compares category ids with places in the list of its configuration, which is a Python file."""
    out, report = exported("coco", demo_dataset, tmp_path / "out", {"first_id": 0, "classes": "head"})
    content = read_json(out / "annotations" / "instances_train.json")
    names: dict[str, list[str]] = {}
    exec((out / "label_list.py").read_text(encoding="utf-8"), names)
    assert [(category["id"], category["name"]) for category in content["categories"]] == [
        *enumerate(names["label_list"])
    ]
    for entry in content["annotations"]:
        assert names["label_list"][entry["category_id"]] == entry["head"]
    assert report.categories == len(names["label_list"])
    assert not list(exported("coco", demo_dataset, tmp_path / "usual")[0].rglob("label_list.py"))


def test_yolo_outlines(demo_dataset: Path, tmp_path: Path) -> None:
    out, report = exported("yolo", demo_dataset, tmp_path / "out")
    settings = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert (settings["train"], settings["val"]) == ("images/train", "images/train")
    assert list(settings["names"]) == list(range(report.categories))
    rows = rows_by_stem(demo_dataset, out)
    for path in (out / "labels" / "train").iterdir():
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


def painted_iou(points: np.ndarray, annotation: Json) -> float:
    """Of an outline and the mask with its holes filled, both painted 40 times as large.

    A painted border is a pixel wide, so that even a mask of one pixel has (40 / 41)^2 = 0.95.
    """
    scale = 40
    canvas = np.zeros((HEIGHT * scale, WIDTH * scale), np.uint8)
    cv2.fillPoly(canvas, [np.round(points * (WIDTH * scale, HEIGHT * scale)).astype(np.int32)], 1)
    mask = decode_mask(Rle(size_hw=(HEIGHT, WIDTH), counts=annotation["segmentation"]["counts"])).astype(
        np.uint8
    )
    filled = np.ascontiguousarray(mask)
    outlines, _ = cv2.findContours(filled.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    true = np.kron(filled, np.ones((scale, scale), np.uint8))
    return float((canvas & true).sum() / (canvas | true).sum())


def test_yolo_boxes(demo_dataset: Path, tmp_path: Path) -> None:
    out, report = exported("yolo", demo_dataset, tmp_path / "out", {"labels": "boxes", "classes": "phrase"})
    lines = [
        line.split() for path in (out / "labels").rglob("*.txt") for line in path.read_text().splitlines()
    ]
    assert {len(line) for line in lines} == {5}
    assert len(lines) == report.notes["masks dropped: labels=boxes"] == 17
