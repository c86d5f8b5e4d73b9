"""Phrases that were judged not to be in their image, in the formats that can hold them; and what nobody knows."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.contract.records import Absent, ImageRef, Phrase, Record
from tests.pipeline.export.datasets import encoded, exported, finished, region
from tests.pipeline.export.datasets import record as made

DOG = (20, 2, 5, 5)
BOY = (2, 2, 10, 20)
CHILD = (2, 2, 10, 20)
CAT = (8, 8, 9, 9)

IMAGES: dict[str, tuple[tuple[str, ...], tuple[tuple[Any, ...], ...], tuple[tuple[str, int], ...]]] = {
    "family": (
        ("a boy with a dog", "a child"),
        (("boy", 0, BOY, 0, 0.5), ("dog", 0, DOG, 1, 0.25), ("child", 1, CHILD, 0, 0.75)),
        (),
    ),
    "park": (("a dog, not a boy", "no boy"), (("dog", 0, DOG, 0, 0.9),), (("boy", 0), ("boy", 1))),
    "night": (("a cat, a ghost, a red boy",), (("cat", 0, CAT, 0, 0.9),), (("ghost", 0), ("red boy", 0))),
    "street": (("a boy",), (("boy", 0, BOY, 0, 0.9),), ()),
}
"""Sample -> captions; phrases with caption, box, group and score; absent phrases with caption."""


def record(name: str) -> Record:
    captions, present, missing = IMAGES[name]
    phrases = []
    for words, index, *_ in (*present, *missing):
        start = captions[index].index(words)
        head = words.rpartition(" ")[2]
        phrases.append(Phrase(text=words, caption_index=index, start=start, end=start + len(words), head=head))
    regions = [
        region(number, place, group=group, score=score, similarity=0.25)
        for number, (_, _, place, group, score) in enumerate(present)
    ]
    absent = [Absent(phrase_index=len(present) + n, presence=0.125, similarity=0.2) for n in range(len(missing))]
    image = ImageRef(file_name=f"{name}.jpg", content=encoded())
    return replace(made(name, captions, image, phrases, regions), absent=tuple(absent))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    return finished(tmp_path_factory.mktemp("absent") / "dataset", [record(name) for name in IMAGES])


@pytest.mark.parametrize(
    ("request_", "classes", "negative", "incomplete"),
    [
        ({}, "phrase", {"park": {"boy"}}, {"family": {"boy"}}),
        ({"min_score": 0.3}, "phrase", {"park": {"boy"}}, {"family": {"boy", "dog"}}),
        ({"min_score": 0.3}, "head", {"park": {"boy"}}, {"family": {"boy", "dog"}}),
        ({"where": "head <> 'dog'", "per": "phrase"}, "phrase", {}, {}),
        ({"min_score": 0.3, "per": "phrase"}, "phrase", {"park": {"boy"}}, {"family": {"dog"}}),
    ],
    ids=["another name", "and a low score", "heads", "no category", "mentions"],
)
@pytest.mark.parametrize("first_id", [0, 1])
def test_coco_names_categories_as_lvis_does(
    request_, classes, negative, incomplete, first_id, dataset, tmp_path
) -> None:
    """A red boy is no boy, and a ghost no category. A child with an annotation is a boy without one."""
    settings = {"classes": classes, "first_id": first_id}
    out, _ = exported("coco", dataset, tmp_path / "out", settings, **request_)
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for key, expected in (("neg_category_ids", negative), ("not_exhaustive_category_ids", incomplete)):
        told = {image["sample_id"]: {names[number] for number in image[key]} for image in content["images"]}
        assert {name: categories for name, categories in told.items() if categories} == expected, key


def test_hf_and_webdataset_have_them_as_texts(dataset: Path, tmp_path: Path) -> None:
    expected = {"family": [], "park": ["boy"], "night": ["ghost", "red boy"], "street": []}
    out, _ = exported("hf", dataset, tmp_path / "hf")
    (path,) = (out / "data").iterdir()
    assert {row["sample_id"]: row["absent"] for row in pq.read_table(path).to_pylist()} == expected
    out, _ = exported("webdataset", dataset, tmp_path / "webdataset")
    with tarfile.open(out / "train-000000.tar") as tar:
        samples = [json.loads(tar.extractfile(file).read()) for file in tar if file.name.endswith(".json")]
    assert {sample["sample_id"]: sample["absent"] for sample in samples} == expected
