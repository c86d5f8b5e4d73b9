"""Exports as the libraries read them that they are for: same counts, boxes and masks."""

from contextlib import nullcontext
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.images.decode import load_image_bytes
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.truth import read_truth
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


def test_images_may_have_the_ids_of_their_samples(tmp_path: Path) -> None:
    """Which are those of COCO's images in COCO captions; other names are no ids."""
    for name in ("139", "a", "007", "1.5"):
        record = Maker().record(name, "a car", ("car", (3, 4, 10, 12)))
        dataset = finished(tmp_path / name / "dataset", [record])
        is_id = name == "139"
        with nullcontext() if is_id else expect_error(ConfigError, key="ids"):
            out, _ = exported("coco", dataset, tmp_path / name / "out", {"ids": "source"})
            assert read_json(out / INSTANCES)["images"][0]["id"] == 139


@pytest.mark.parametrize(("most", "labels"), [(14, True), (13, False)])
def test_datasets(most, labels, demo_dataset, tmp_path, monkeypatch) -> None:
    """A category is a number with a name; or the name itself where there are too many for every file, here of 14."""
    monkeypatch.setattr("phrasebox.pipeline.export.hf.MOST_LABELS", most)
    shares = "train=0.999999,validation=0.000001"  # a split that got no sample is not there
    folder, _ = exported("hf", demo_dataset, tmp_path / "hf", {"rows_per_file": 5}, split=shares)
    (loaded,) = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache")).values()
    assert len(loaded) == 12
    category = loaded.features["objects"]["category"].feature
    assert isinstance(category, datasets.ClassLabel) == labels
    assert ("more than 13" in (folder / "README.md").read_text()) == (not labels)
    row = loaded[0]
    assert row["image"].size == (row["width"], row["height"]) == (WIDTH, HEIGHT)
    label = row["objects"]["category"][0]
    assert (category.int2str(label) if labels else label) == row["objects"]["phrase"][0]


def test_webdataset(demo_dataset: Path, tmp_path: Path) -> None:
    """phrasebox reads its own: five samples a tar, with images and their first captions."""
    folder, _ = exported("webdataset", demo_dataset, tmp_path / "tars", {"rows_per_file": 5})
    assert len(list(folder.glob("*.tar"))) == 3
    samples = read_all(kind="webdataset", path=str(folder))
    sizes = [Image.open(BytesIO(load_image_bytes(sample.image, DecodeLimits()))).size for sample in samples]
    assert sizes == [(WIDTH, HEIGHT)] * 12
    first_captions = {row["captions"][0] for row in rows_of(demo_dataset) if row["annotations"]}
    assert {sample.captions[0] for sample in samples} == first_captions


def test_a_coco_entry_says_all_that_the_dataset_says_of_a_region(
    coco: Path, annotations: dict[int, Any]
) -> None:
    """And `eval` takes the file for ground truth."""
    content = read_json(coco / INSTANCES)
    for entry in content["annotations"]:
        stored = {**annotations[entry["id"]], "mask": None, "category_id": None}
        for key in {"score", "similarity", "presence"} & entry.keys():
            entry[key] = float(np.float32(entry[key]))
        unsaid = (None, "none", "mask")  # what `refined` and `bbox_of` say of a plain region
        assert {key: value for key, value in stored.items() if value not in unsaid}.items() <= entry.items()
    truth = read_truth(coco / INSTANCES)
    assert len(truth.images) == 12
    targets = [target for image in truth.images.values() for target in image.targets]
    assert sum(len(target.boxes_xywh_px) for target in targets) == 17
