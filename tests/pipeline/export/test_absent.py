"""Phrases that were judged not to be in their image, in the formats that can hold them; and what nobody knows."""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.build.files import read_json
from tests.pipeline.export.datasets import Maker, exported, finished

DOG = (20, 2, 5, 5)
BOY = (2, 2, 10, 20)
CHILD = (2, 2, 10, 20)
CAT = (8, 8, 9, 9)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    made = Maker().grouped
    captions = ("a boy with a dog", "a child")
    records = [
        made(
            "family",
            captions,
            ("boy", 0, BOY, 0, 0.5),
            ("dog", 0, DOG, 1, 0.25),
            ("child", 1, CHILD, 0, 0.75),
        ),
        made(
            "park", ("a dog, not a boy", "no boy"), ("dog", 0, DOG, 0, 0.9), absent=[("boy", 0), ("boy", 1)]
        ),
        made(
            "night",
            ("a cat, a ghost, a red boy",),
            ("cat", 0, CAT, 0, 0.9),
            absent=[("ghost", 0), ("red boy", 0)],
        ),
        made("street", ("a boy",), ("boy", 0, BOY, 0, 0.9)),
    ]
    return finished(tmp_path_factory.mktemp("absent") / "dataset", records)


@pytest.mark.parametrize(
    ("request_", "negative", "incomplete"),
    [
        ({}, {"park": {"boy"}}, {"family": {"boy"}}),
        ({"min_score": 0.3}, {"park": {"boy"}}, {"family": {"boy", "dog"}}),
        ({"where": "head <> 'dog'", "per": "phrase"}, {}, {}),
        ({"min_score": 0.3, "per": "phrase"}, {"park": {"boy"}}, {"family": {"dog"}}),
    ],
    ids=["another name", "and a low score", "no category", "mentions"],
)
@pytest.mark.parametrize("first_id", [0, 1])
def test_coco_names_categories_as_lvis_does(
    request_, negative, incomplete, first_id, dataset, tmp_path
) -> None:
    """A red boy is no boy, and a ghost no category. A child with an annotation is a boy without one."""
    out, _ = exported("coco", dataset, tmp_path / "out", {"first_id": first_id}, **request_)
    content = read_json(out / "annotations" / "instances_train.json")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for key, expected in (("neg_category_ids", negative), ("not_exhaustive_category_ids", incomplete)):
        told = {image["sample_id"]: {names[number] for number in image[key]} for image in content["images"]}
        assert {name: categories for name, categories in told.items() if categories} == expected, key


def test_hf_and_webdataset_have_them_as_texts(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("hf", dataset, tmp_path / "hf")
    (path,) = (out / "data").iterdir()
    rows = pq.read_table(path).to_pylist()
    out, _ = exported("webdataset", dataset, tmp_path / "webdataset")
    with tarfile.open(out / "train-000000.tar") as tar:
        samples = [json.loads(tar.extractfile(file).read()) for file in tar if file.name.endswith(".json")]
    for entries in (rows, samples):
        assert [entry["absent"] for entry in entries] == [[], ["boy"], ["ghost", "red boy"], []]


def test_label_studio_has_them_ticked(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("label-studio", dataset, tmp_path / "out")
    ticked = {
        task["data"]["sample_id"]: result["value"]["choices"]
        for task in read_json(out / "train.json")
        for result in task["predictions"][0]["result"]
        if result["from_name"] == "absent"
    }
    assert ticked == {"park": ["boy"], "night": ["ghost", "red boy"]}
