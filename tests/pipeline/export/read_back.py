"""What stands in an export, read without the code that wrote it: a function for each format.

A new format enters with a function in READ_BACK.
"""

import itertools
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from tests.build.datasets import Json
from tests.build.files import read_json, read_lines
from tests.build.records import HEIGHT, WIDTH

RegionTuple = tuple[tuple[float, float, float, float], str, int | None]
"""Box x0, y0, x1, y1 px; label; area of the mask in px, or None where the format has no exact mask."""

Samples = list[tuple[RegionTuple, ...]]
"""The regions of each sample."""


@dataclass(frozen=True)
class ReadBack:
    """How a format is read.

    label  what stands for a region's name: the dataset's "phrase" or "head", or the "words" of the caption
    """

    samples: Callable[[Path, str], Samples]
    label: str = "phrase"
    has_area: bool = True


def region_tuple(box_xywh: Any, label: str, area: int | None) -> RegionTuple:
    x, y, w, h = box_xywh
    return (round(x, 3), round(y, 3), round(x + w, 3), round(y + h, 3)), label, area


def area_of(segmentation: Any) -> int:
    """Of a compressed run-length code, by pycocotools."""
    return int(coco_mask.area({**segmentation, "counts": segmentation["counts"].encode()}))


def category_name(content: Json, image: Json, entry: Json) -> str:
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert sorted(names) == list(range(1, len(names) + 1))
    return names[entry["category_id"]]


def words(content: Json, image: Json, entry: Json) -> str:
    return " ".join(image["caption"][start:end] for start, end in entry["tokens_positive"])


def coco(path: str, label: Callable[[Json, Json, Json], str]) -> Callable[[Path, str], Samples]:
    """Of COCO's layout; label: function of content, image and annotation. The boxes of SA-Co are shares."""

    def read(folder: Path, split: str) -> Samples:
        content = read_json(folder / path.format(split=split))
        images = {image["id"]: image for image in content["images"]}
        assert len(images) == len(content["images"])
        samples: dict[int, list[RegionTuple]] = {
            image.get("original_img_id", image["id"]): [] for image in content["images"]
        }
        for entry in content["annotations"]:
            image = images[entry["image_id"]]
            area = area_of(entry.get("rle", entry["segmentation"]))
            scale_x, scale_y = (image["width"], image["height"]) if "text_input" in image else (1, 1)
            assert entry["area"] * scale_x * scale_y == pytest.approx(area)
            box = [edge * scale for edge, scale in zip(entry["bbox"], (scale_x, scale_y) * 2, strict=True)]
            regions = samples[image.get("original_img_id", image["id"])]
            regions.append(region_tuple(box, label(content, image, entry), area))
        return [tuple(regions) for regions in samples.values()]

    return read


def odvg(folder: Path, split: str) -> Samples:
    lines = read_lines(folder / f"{split}.jsonl")
    return [
        tuple(
            (tuple(region["bbox"]), region["phrase"], area_of(region["segmentation"]))
            for line in group
            for region in line["grounding"]["regions"]
        )
        for _, group in itertools.groupby(
            lines, lambda line: line["filename"]
        )  # two rows may name one file
    ]


def parquet_rows(folder: Path, split: str) -> Iterator[Json]:
    for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
        yield from pq.read_table(path).to_pylist()


def hf(folder: Path, split: str) -> Samples:
    samples: Samples = []
    for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
        features = json.loads(pq.read_schema(path).metadata[b"huggingface"])["info"]["features"]
        names = features["objects"]["category"]["feature"]["names"]
        for row in pq.read_table(path).to_pylist():
            objects = row["objects"]
            areas = [
                area_of({"size": [row["height"], row["width"]], "counts": one})
                for one in objects["segmentation"]
            ]
            labels = [names[number] for number in objects["category"]]
            samples.append(tuple(map(region_tuple, objects["bbox"], labels, areas)))
    return samples


def webdataset(folder: Path, split: str) -> Samples:
    samples: Samples = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            contents = [
                json.loads(tar.extractfile(one).read()) for one in tar if one.name.endswith(".json")
            ]
        entries = [content["annotations"] for content in contents]
        samples += [
            tuple(region_tuple(e["bbox"], e["phrase"], area_of(e["segmentation"])) for e in each)
            for each in entries
        ]
    return samples


def yolo(folder: Path, split: str) -> Samples:
    names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
    samples: Samples = []
    for path in sorted((folder / "images" / split).iterdir()):
        with Image.open(path) as image:
            width, height = image.size
        assert (width, height) == (WIDTH, HEIGHT)
        regions = []
        for line in (folder / "labels" / split / f"{path.stem}.txt").read_text().splitlines():
            number, *values = line.split()
            points = np.array(values, float).reshape(-1, 2)
            assert ((points >= 0) & (points <= 1)).all()
            low, high = (
                (edge * (width, height)).round(2) for edge in (points.min(axis=0), points.max(axis=0))
            )
            regions.append(region_tuple([*low, *(high - low)], names[int(number)], None))
        samples.append(tuple(regions))
    assert len(list((folder / "labels" / split).iterdir())) == len(samples)
    return samples


def grit(folder: Path, split: str) -> Samples:
    samples: dict[str, list[RegionTuple]] = {}
    for row in parquet_rows(folder, split):
        regions = samples.setdefault(row["key"], [])
        sides = [row["width"], row["height"]] * 2
        for (start, end, *edges, _), counts in zip(row["noun_chunks"], row["segmentations"], strict=True):
            x0, y0, x1, y1 = (round(edge * side, 3) for edge, side in zip(edges, sides, strict=True))
            words = row["caption"][int(start) : int(end)]
            area = area_of({"size": [row["height"], row["width"]], "counts": counts})
            regions.append(((x0, y0, x1, y1), words, area))
    return [tuple(regions) for regions in samples.values()]


def chat(folder: Path, split: str) -> Samples:
    """Of the style ms-swift, the boxes of the question where a phrase is."""
    records = read_lines(folder / f"{split}.jsonl")
    samples: Samples = []
    for _, group in itertools.groupby(
        records, lambda record: record["images"]
    ):  # two rows may name one file
        located = [
            record["objects"] for record in group if set(record["messages"][1]["content"]) == set("<bbox>")
        ]
        samples.append(
            tuple((tuple(box), objects["ref"][0], None) for objects in located for box in objects["bbox"])
        )
    return samples


def label_studio(folder: Path, split: str) -> Samples:
    samples: Samples = []
    for task in read_json(folder / f"{split}.json"):
        (prediction,) = task["predictions"]
        assert prediction["model_version"]
        regions = []
        for result in prediction["result"]:
            sides = [result["original_width"], result["original_height"]] * 2
            percents = [result["value"][key] for key in ("x", "y", "width", "height")]
            box = [percent * side / 100 for percent, side in zip(percents, sides, strict=True)]
            regions.append(region_tuple(box, result["value"]["rectanglelabels"][0], None))
        samples.append(tuple(regions))
    return samples


def bbox(folder: Path, split: str) -> Samples:
    samples: Samples = []
    for path in sorted((folder / split).rglob("*.bbox")):
        assert path.with_suffix(".txt").is_file()
        [image] = (beside for suffix in (".jpg", ".png") if (beside := path.with_suffix(suffix)).is_file())
        with Image.open(image) as opened:
            sides = opened.size * 2
        regions = []
        for entry in map(json.loads, path.read_text("ascii").splitlines()):
            x0, y0, x1, y1 = (
                round(edge * side, 3) for edge, side in zip(entry["bbox"], sides, strict=True)
            )
            regions.append(((x0, y0, x1, y1), entry["label"], None))
        samples.append(tuple(regions))
    return samples


READ_BACK: dict[str, ReadBack] = {
    "coco": ReadBack(coco("annotations/instances_{split}.json", category_name)),
    "odvg": ReadBack(odvg),
    "mdetr": ReadBack(coco("{split}.json", words), "words"),
    "hf": ReadBack(hf),
    "webdataset": ReadBack(webdataset),
    "yolo": ReadBack(yolo, "head", has_area=False),
    "grit": ReadBack(grit, "words"),
    "clipself": ReadBack(coco("{split}.json", category_name)),
    "fiftyone": ReadBack(coco("{split}/labels.json", category_name)),
    "saco": ReadBack(coco("{split}.json", lambda content, image, entry: image["text_input"])),
    "chat": ReadBack(chat, has_area=False),
    "label-studio": ReadBack(label_studio, has_area=False),
    "bbox": ReadBack(bbox, has_area=False),
}
"""Format -> how it is read."""
