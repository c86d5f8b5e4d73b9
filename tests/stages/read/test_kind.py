"""The kind of an input, told from its path."""

from pathlib import Path
from typing import Any

import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.read import guess_kind
from tests.messages import expect_error


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/CAPTIONS.JSONL.GZ", "jsonl"),
        ("captions.tsv.zst", "csv"),
        ("part.parquet", "parquet"),
        ("{00000..00099}.tar", "webdataset"),
        ("captions_val2017.json", "coco_captions"),
    ],
)
def test_by_the_end_of_the_path(path: str, kind: str) -> None:
    """Files need not be there: the reader says so."""
    assert guess_kind(path) == {"kind": kind, "path": path}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["00000.tar", "00000.parquet", "00000_stats.json", "00001.tar"], "webdataset"),
        (["train-00000.parquet", "00000_stats.json"], "parquet"),
        (["00000.parquet", "00000/000000000.jpg", "00000/000000000.txt"], "folder"),
        (["captions.jsonl", "images/1.jpg", "images/2.png"], "jsonl"),
        (["a/1.jpg", "a/1.txt", "b/2.webp", "README.md"], "folder"),
    ],
)
def test_by_what_a_folder_holds(files: list[str], kind: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert guess_kind(str(tmp_path)) == {"kind": kind, "path": str(tmp_path)}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{\n"images": [], "annotations": []}', "coco_captions"),
        ('\ufeff \n[{"image": "1.jpg", "caption": "a"}]', "jsonl"),
        ('{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg", "caption": "b"}\n', "jsonl"),
    ],
)
def test_by_the_beginning_of_a_json(content: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    assert guess_kind(str(tmp_path / "a.json"))["kind"] == kind


def test_a_text_by_itself_is_a_table_and_paths_may_be_several_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").touch()
    assert guess_kind(str(tmp_path / "captions.txt"))["kind"] == "csv"
    assert guess_kind(["a.csv", "b.tsv"]) == {"kind": "csv", "path": ("a.csv", "b.tsv")}


@pytest.mark.parametrize(
    "path",
    [
        "none",
        "captions.xml",
        "1.jpg",
        "empty",
        "odd",
        "mixed",
        ["a.csv", "b.parquet"],
        [],
    ],
)
def test_what_is_of_no_kind_is_rejected(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("captions.xml", "1.jpg", "odd/a.xml", "mixed/a.csv", "mixed/b.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with expect_error(InputError, key=("", "input.path")):
        guess_kind(path)
