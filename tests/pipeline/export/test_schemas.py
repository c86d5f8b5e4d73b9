"""Formats whose readers cannot be installed here, against what those readers do with the fields.

Written from the readers' own sources: mmdetection's `ODVGDataset`, Open-GroundingDino's `ODVGDataset`, MDETR's
`ConvertCocoPolysToMask`, YOLO-World's `YOLOv5MixedGroundingDataset`, the GRIT card,
Ultralytics' label check.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pycocotools import mask as coco_mask

from phrasebox.pipeline.dataset.corrected import CORRECTED_BOXES, REPLACED_MASKS, replace_box
from phrasebox.pipeline.export.base import BEYOND_TOKENS, HOLES
from phrasebox.pipeline.export.yolo import PARTS
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.masks import encode_box
from tests.build.datasets import change_rows
from tests.build.files import read_json, read_lines
from tests.build.records import HEIGHT, WIDTH
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished, write_dataset


def test_odvg_counts_from_the_first_letter_as_mmdetection_does(tmp_path: Path) -> None:
    row = Maker().record("a", "  \n a red car ", ("a red car", (3, 4, 10, 12)))
    out, _ = exported("odvg", finished(tmp_path / "dataset", [row]), tmp_path / "out")
    (line,) = read_lines(out / "train.jsonl")
    assert line["grounding"]["caption"] == "a red car"
    assert line["grounding"]["regions"][0]["tokens_positive"] == [[0, 9]]


def test_a_corrected_box_that_the_mask_does_not_fill_is_the_mask() -> None:
    segmentation = {"size": [10, 10], "counts": encode_box((2, 2, 5, 5), (10, 10)).counts}
    region = {"id": 1, "bbox": [2, 2, 3, 3], "area": 9, "segmentation": segmentation, "score": 0.5}
    for box, area, note in (
        ((1, 1, 4, 4), 9, CORRECTED_BOXES),
        ((3, 3, 4, 4), 16, REPLACED_MASKS),
        ((7, 7, 2, 2), 4, REPLACED_MASKS),
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
    assert list(label_map) == [str(number) for number in range(len(label_map))]
    lines = read_lines(out / "train.jsonl")
    assert len(lines) == 12
    for instance in (entry for line in lines for entry in line["detection"]["instances"]):
        assert label_map[str(instance["label"])] == instance["category"]
    plain, report = exported("odvg", demo_dataset, tmp_path / "grounding")
    assert not (plain / "label_map.json").exists(), "with a label map, readers look for `detection`"
    assert report.categories == 0


def test_mdetr_draws_the_masks(demo_dataset: Path, tmp_path: Path) -> None:
    """Decoded as MDETR does it; only the hole of the ring is lost."""
    out, report = exported("mdetr", demo_dataset, tmp_path / "out")
    filled = 0
    for entry in read_json(out / "train.json")["annotations"]:
        drawn = coco_mask.decode(coco_mask.frPyObjects(entry["segmentation"], HEIGHT, WIDTH)).any(axis=2)
        true = coco_mask.decode({**entry["rle"], "counts": entry["rle"]["counts"].encode()}).astype(bool)
        assert (drawn >= true).all()
        filled += (drawn != true).any()
    assert filled == report.notes[HOLES] == 1


def test_a_damaged_mask_is_reported(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "dataset")
    shard = folder / "data" / "00000.parquet"
    change_rows(shard, lambda rows: rows[1]["annotations"][0]["segmentation"].update(counts="~~"))
    with expect_error(InputError):
        exported("mdetr", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_expressions_of_grit_lie_in_no_other(demo_dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("grit", demo_dataset, tmp_path / "out")
    caption = "the dog of the man"
    rows = pq.read_table(out / "data" / "train-00000-of-00001.parquet").to_pylist()
    (nested,) = (row for row in rows if row["caption"] == caption)
    assert [caption[int(c[0]) : int(c[1])] for c in nested["noun_chunks"]] == [caption, "the man"]
    assert nested["ref_exps"] == nested["noun_chunks"][:1]


def test_coco_as_open_groundingdino_validates(demo_dataset: Path, tmp_path: Path) -> None:
    """It compares category ids with places in the list of its configuration, which is a Python file."""
    out, _ = exported("coco", demo_dataset, tmp_path / "out", {"first_id": 0, "classes": "head"})
    categories = read_json(out / "annotations" / "instances_train.json")["categories"]
    names: dict[str, list[str]] = {}
    exec((out / "label_list.py").read_text(encoding="utf-8"), names)
    assert [(entry["id"], entry["name"]) for entry in categories] == [*enumerate(names["label_list"])]


def test_yolo_outlines(demo_dataset: Path, tmp_path: Path) -> None:
    out, report = exported("yolo", demo_dataset, tmp_path / "out")
    settings = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert (settings["train"], settings["val"]) == ("images/train", "images/train")
    assert (report.notes[PARTS], report.notes[HOLES]) == (1, 1)


def test_yolo_boxes(demo_dataset: Path, tmp_path: Path) -> None:
    out, report = exported("yolo", demo_dataset, tmp_path / "out", {"labels": "boxes", "classes": "phrase"})
    lines = [
        line.split() for path in (out / "labels").rglob("*.txt") for line in path.read_text().splitlines()
    ]
    assert {len(line) for line in lines} == {5}
    assert len(lines) == report.notes["masks dropped: labels=boxes"] == 17
