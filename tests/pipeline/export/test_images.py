"""Images that an export writes: under which names, and what says whose they are."""

import csv
from pathlib import Path

import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.export.base import RENAMED_IMAGES
from phrasebox.pipeline.export.files import ImageNames
from tests.build.cases import cases
from tests.build.files import read_json
from tests.build.records import encoded
from tests.pipeline.export.datasets import Maker, exported, finished

CAT = ("a cat", (1, 1, 5, 5))


def written(folder: Path, names: list[str], *, flat: bool, extension: str = "jpg") -> list[str]:
    """What images of these names are called; "ID" for the row's id."""
    make = Maker()
    records = [make.record(f"s{number}", "a cat", CAT, file_name=name) for number, name in enumerate(names)]
    dataset = open_dataset(finished(folder, records))
    chosen = ImageNames(dataset, flat=flat)
    names_of_rows = [(row, chosen.name_of(row, extension)) for row in dataset.rows()]
    return [name.replace(f"{row['id']:016d}", "ID") for row, name in names_of_rows]


@cases(
    ("names", "deep", "flat"),
    {
        "their own": (["1.jpg", "2.JPG", "3.jpeg"], ["1.jpg", "2.JPG", "3.jpeg"], None),
        "encoded in another way": (["1.png", "2.gif"], ["1.jpg", "2.jpg"], None),
        "twice": (["1.jpg", "1.jpg", "2.jpg"], ["ID.jpg", "ID.jpg", "2.jpg"], None),
        "one label, one file in any case": (["a.jpg", "A.JPG", "a.png"], ["ID.jpg"] * 3, None),
        "one name where accents are composed": (["é.jpg", "e\u0301.jpg"], ["ID.jpg"] * 2, None),
        "outside": (["../x.jpg", "/etc/y.jpg"], ["ID.jpg"] * 2, ["x.jpg", "y.jpg"]),
        "of Windows": (["a:b.jpg", "a\nb.jpg", "LPT1.x.jpg", "b .jpg", ".c.jpg"], ["ID.jpg"] * 5, None),
        "a folder that a file may be called": (["a.jpg/1.jpg"], ["ID.jpg"], ["1.jpg"]),
    },
)
def test_names(names: list[str], deep: list[str], flat: list[str] | None, tmp_path: Path) -> None:
    assert written(tmp_path / "deep", names, flat=False) == deep
    assert written(tmp_path / "flat", names, flat=True) == (deep if flat is None else flat)


@pytest.mark.parametrize(
    ("name", "folder", "entries"),
    [
        ("coco", "images/train", "annotations/instances_train.json"),
        ("fiftyone", "train/data", "train/labels.json"),
    ],
)
def test_entries_and_table_lead_to_the_images(name, folder, entries, tmp_path) -> None:
    """Every image is found by the entry's name, and by its own, or by that in the table."""
    make = Maker()
    file_names = ["a/cat.jpg", "b/dog.jpg", "b/cat.jpg", "bad?.jpg", '2, "two".jpg']
    images = {file_name: encoded(colour=(40 * number, 0, 0)) for number, file_name in enumerate(file_names)}
    records = [
        make.record(file_name, "a cat", CAT, file_name=file_name, image_bytes=content)
        for file_name, content in images.items()
    ]
    settings = {"images": True} if name == "coco" else {}
    out, report = exported(name, finished(tmp_path / "dataset", records), tmp_path / "out", settings)
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / folder).rglob("*.jpg")}
    with (out / "names.csv").open(encoding="utf-8", newline="") as file:
        table = {line["written"]: line["sample_id"] for line in csv.DictReader(file)}
    assert {
        table.get(path, path.removeprefix(f"{folder}/")): content for path, content in files.items()
    } == images
    assert report.notes[RENAMED_IMAGES] == len(table) == (5 if name == "fiftyone" else 2)
    assert {f"{folder}/{image['file_name']}" for image in read_json(out / entries)["images"]} == set(files)


def test_where_all_images_keep_their_names_there_is_no_table(tmp_path: Path) -> None:
    record = Maker().record("s", "a cat", CAT, file_name="cat.jpg")
    out, _ = exported("yolo", finished(tmp_path / "dataset", [record]), tmp_path / "out")
    assert sorted(path.name for path in out.rglob("cat.*")) == ["cat.jpg", "cat.txt"]
    assert not (out / "names.csv").exists()
