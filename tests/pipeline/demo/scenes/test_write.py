"""Written scenes: what pycocotools reads back is what was drawn."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from phrasebox.pipeline.demo.scenes import make_scene, write_scenes
from phrasebox.stages.contract.masks import mask_box_xywh_px
from tests.build.datasets import Json
from tests.build.files import read_json, read_lines

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "new" / "folder"
    write_scenes(out, COUNT, 4, side_px=96)
    return out


def read(folder: Path) -> tuple[list[Json], Json]:
    rows = read_lines(folder / "captions.jsonl")
    return rows, read_json(folder / "truth.json")


def test_one_row_and_one_image_a_scene_with_its_pixels(folder: Path) -> None:
    rows, truth = read(folder)
    assert len(rows) == len(truth["images"]) == len(list((folder / "images").iterdir())) == COUNT
    assert [set(row) for row in rows] == [{"id", "image", "caption"}] * COUNT
    assert len({row["id"] for row in rows}) == COUNT
    assert [row["image"] for row in rows] == [image["file_name"] for image in truth["images"]]
    for k in range(3):
        scene = make_scene(4, k, side_px=96)
        stored = cv2.imread(str(folder / "images" / f"{k:06d}.jpg"))
        assert np.abs(stored[..., ::-1].astype(int) - scene.image).mean() < 8


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools with numpy 2
def test_annotations_are_valid_coco(folder: Path) -> None:
    rows, truth = read(folder)
    captions = {image["id"]: row["caption"] for image, row in zip(truth["images"], rows, strict=True)}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    ids = [annotation["id"] for annotation in truth["annotations"]]
    assert min(ids) == 1
    assert len(set(ids)) == len(ids)
    for annotation in truth["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert mask.shape == (96, 96)
        assert annotation["area"] == mask.sum() > 0
        assert annotation["bbox"] == list(mask_box_xywh_px(mask))
        assert annotation["iscrowd"] == 0
        if annotation["mentioned"]:
            assert annotation["phrase"] in captions[annotation["image_id"]].lower()
        else:
            assert annotation["phrase"] == f"{annotation['colour']} {names[annotation['category_id']]}"


def test_the_same_seed_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, COUNT, 4, side_px=96)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    write_scenes(tmp_path / "few", 3, 4, side_px=96)
    assert read(tmp_path / "few")[0] == read(folder)[0][:3], "more scenes begin with the same ones"
