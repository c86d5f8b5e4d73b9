"""Images that an export writes: under which names, and what says whose they are."""

import csv
import json
import os
from pathlib import Path

import pytest

from pipeline.dataset.folder import open_dataset
from pipeline.export.base import RENAMED_IMAGES
from pipeline.export.files import ImageNames
from tests.pipeline.export.datasets import Maker, encoded, exported, finished

LONG = "ö" * 150
CAT = ("a cat", (1, 1, 5, 5))


def written(folder: Path, names: list[str], *, flat: bool, extension: str = "jpg") -> list[str]:
    """What images of these names are called; "ID" for the row's id."""
    make = Maker()
    records = [make.record(f"s{number}", "a cat", CAT, file_name=name) for number, name in enumerate(names)]
    dataset = open_dataset(finished(folder, records))
    chosen = ImageNames(dataset, flat=flat)
    names_of_rows = [(row, chosen.name_of(row, extension)) for row in dataset.rows()]
    return [name.replace(f"{row['id']:016d}", "ID") for row, name in names_of_rows]


@pytest.mark.parametrize(
    ("names", "deep", "flat"),
    [
        pytest.param(["1.jpg", "2.JPG", "3.jpeg"], ["1.jpg", "2.JPG", "3.jpeg"], None, id="their own"),
        pytest.param(["a b.jpg", "日本 😀.jpg"], ["a b.jpg", "日本 😀.jpg"], None, id="of any script"),
        pytest.param(["v1.2", "v1.3"], ["v1.2.jpg", "v1.3.jpg"], None, id="without an extension"),
        pytest.param(["1.png", "2.gif"], ["1.jpg", "2.jpg"], None, id="encoded in another way"),
        pytest.param(["a/1.jpg", "b/2.jpg"], ["a/1.jpg", "b/2.jpg"], ["1.jpg", "2.jpg"], id="in folders"),
        pytest.param(["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"], ["ID.jpg"] * 2, id="in folders, the same"),
        pytest.param(["./a//1.jpg", "a/2.jpg"], ["a/1.jpg", "a/2.jpg"], ["1.jpg", "2.jpg"], id="normalised"),
        pytest.param(["1.jpg", "1.jpg", "2.jpg"], ["ID.jpg", "ID.jpg", "2.jpg"], None, id="twice"),
        pytest.param(["a.jpg", "A.JPG", "a.png"], ["ID.jpg"] * 3, None, id="one label, one file in any case"),
        pytest.param(["é.jpg", "e\u0301.jpg"], ["ID.jpg"] * 2, None, id="one name where accents are composed"),
        pytest.param(["../x.jpg", "/etc/y.jpg"], ["ID.jpg"] * 2, ["x.jpg", "y.jpg"], id="outside"),
        pytest.param(["..", "", ".jpg", "."], ["ID.jpg"] * 4, None, id="no names"),
        pytest.param(["a:b.jpg", "a\\b.jpg", "a\nb.jpg", "a?.jpg"], ["ID.jpg"] * 4, None, id="signs of systems"),
        pytest.param(["con.jpg", "LPT1.x.jpg", "a..jpg", "b .jpg", ".c.jpg"], ["ID.jpg"] * 5, None, id="of Windows"),
        pytest.param(["0000000000000001.jpg", f"{LONG}.jpg"], ["ID.jpg"] * 2, None, id="an id, a long one"),
        pytest.param(["a.jpg/1.jpg"], ["ID.jpg"], ["1.jpg"], id="a folder that a file may be called"),
    ],
)
def test_names(names: list[str], deep: list[str], flat: list[str] | None, tmp_path: Path) -> None:
    assert written(tmp_path / "deep", names, flat=False) == deep
    assert written(tmp_path / "flat", names, flat=True) == (deep if flat is None else flat)


@pytest.mark.parametrize(
    ("name", "settings", "entries"),
    [
        ("coco", {"images": True}, "annotations/instances_train.json"),
        ("mdetr", {"images": True}, "train.json"),
        ("saco", {"images": True, "exhaustive": "all"}, "train.json"),
        ("odvg", {"images": True}, "train.jsonl"),
        ("fiftyone", {}, "train/labels.json"),
        ("yolo", {}, None),
    ],
)
def test_entries_and_table_lead_to_the_images(name, settings, entries, tmp_path) -> None:
    """Every image is found by the entry's name, and by its own, or by that in the table."""
    make = Maker()
    colours = {}
    records = []
    for number, file_name in enumerate(["a/cat.jpg", "b/dog.jpg", "b/cat.jpg", "bad?.jpg", '2, "two".jpg']):
        colours[f"s{number}"] = encoded(colour=(40 * number, 0, 0))
        image = {"file_name": file_name, "image_bytes": colours[f"s{number}"]}
        records.append(make.record(f"s{number}", "a cat", CAT, **image))
    dataset = finished(tmp_path / "dataset", records)
    out = tmp_path / "out"
    _, report = exported(name, dataset, out, settings)
    folder = "train/data" if name == "fiftyone" else "images/train"
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / folder).rglob("*.jpg")}
    with (out / "names.csv").open(encoding="utf-8", newline="") as file:
        table = {line["written"]: (line["file_name"], line["sample_id"]) for line in csv.DictReader(file)}
    flat = name in ("fiftyone", "yolo")
    renamed = ["s0", "s1", "s2", "s3", "s4"] if flat else ["s3", "s4"]
    assert sorted(sample for _, sample in table.values()) == renamed
    sample_ids = {row["file_name"]: row["sample_id"] for row in open_dataset(dataset).rows()}
    told = {path: table[path][1] if path in table else sample_ids[path.removeprefix(f"{folder}/")] for path in files}
    assert {path: colours[sample] for path, sample in told.items()} == files
    assert len(files) == 5
    assert report.notes[RENAMED_IMAGES] == len(table)
    if entries is not None:
        text = (out / entries).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()] if name == "odvg" else json.loads(text)["images"]
        assert {f"{folder}/{line.get('file_name', line.get('filename'))}" for line in lines} == set(files)
    else:
        labels = {os.path.splitext(path)[0] for path in files}
        stems = {path.relative_to(out).with_suffix("").as_posix() for path in (out / "labels").rglob("*.txt")}
        assert stems == {label.replace("images/", "labels/") for label in labels}
    exported(name, dataset, out, settings, overwrite=True)
    assert (out / "names.csv").exists()


def test_where_all_images_keep_their_names_there_is_no_table(tmp_path: Path) -> None:
    record = Maker().record("s", "a cat", CAT, file_name="cat.jpg")
    out, _ = exported("yolo", finished(tmp_path / "dataset", [record]), tmp_path / "out")
    assert sorted(path.name for path in out.rglob("cat.*")) == ["cat.jpg", "cat.txt"]
    assert not (out / "names.csv").exists()
