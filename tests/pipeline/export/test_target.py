"""A target is whole or not there, and takes the place of nothing but an export."""

import fcntl
import json
from pathlib import Path

import pytest

from phrasebox.pipeline.export import files
from phrasebox.pipeline.export.files import MARK, _digest_of_names, export_folder
from phrasebox.stages.contract.errors import ConfigError
from tests.messages import expect_error


def write(out: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with export_folder(out, overwrite=overwrite) as folder:
        folder.file("a/b.txt").write_text(text)
        folder.file("images/ö 7.jpg").write_bytes(b"7")
        folder.finish({"format": "test"})


def test_it_appears_when_it_is_finished_and_else_the_old_one_stays(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    write(out, "old")
    assert (out / "images" / "ö 7.jpg").read_bytes() == b"7"
    with expect_error(ConfigError, key="out"):
        write(out, "new")
    for is_finished, text in ((False, "old"), (True, "new")):
        with export_folder(out, overwrite=True) as folder:
            folder.file("a/b.txt").write_text("new")
            if is_finished:
                folder.finish({})
            assert (out / "a" / "b.txt").read_text() == "old"
        assert (out / "a" / "b.txt").read_text() == text
    assert sorted(path.name for path in out.iterdir()) == [MARK, "a"]
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("stranger", ["mine.txt", "a/ö 7.jpg", "images/link"])
def test_what_no_export_wrote_is_not_deleted(stranger: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    write(out)
    elsewhere.mkdir()
    (out / stranger).parent.mkdir(parents=True, exist_ok=True)
    (out / stranger).symlink_to(elsewhere) if "link" in stranger else (out / stranger).write_text("mine")
    with expect_error(ConfigError, key="out"):
        write(out, overwrite=True)
    assert (out / stranger).exists()


@pytest.mark.parametrize("name", ["a/b.txt", "images/ö 7.jpg"])
def test_what_was_edited_by_hand_is_not_deleted(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    (out / name).write_text("OLD" if name == "a/b.txt" else "another image")
    before = (out / name).read_bytes()
    with expect_error(ConfigError, key="out"):
        write(out, overwrite=True)
    assert (out / name).read_bytes() == before


def test_an_export_of_a_version_before_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    names = _digest_of_names(out)
    (out / MARK).write_text(json.dumps({"format": "test", "names": names}))
    write(out, "new", overwrite=True)
    assert (out / "a/b.txt").read_text() == "new"
    (out / MARK).write_text(json.dumps({"format": "test", "names": names + 1}))
    with expect_error(ConfigError, key="out"):
        write(out, "new", overwrite=True)


def test_the_root_is_no_export() -> None:
    with expect_error(ConfigError, key="out"):
        write(Path("/"))


def test_files_are_on_the_disk_before_the_mark_and_the_name_after_it(tmp_path: Path, monkeypatch) -> None:
    steps = []

    def sync() -> None:
        (unfinished,) = tmp_path.glob(".out.unfinished/export")
        steps.append(("files", (unfinished / "a/b.txt").read_text(), (unfinished / MARK).exists()))

    def sync_folder(folder: Path) -> None:
        steps.append(("names", folder, (tmp_path / "out" / MARK).exists()))

    monkeypatch.setattr(files, "sync_all", sync)
    monkeypatch.setattr(files, "sync_folder", sync_folder)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", overwrite=True)
    assert steps == [
        ("files", "old", False),
        ("names", tmp_path, True),
        ("files", "new", False),
        ("names", tmp_path, True),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("precious.txt", "mine"), *((MARK, text) for text in ("", "[]", "{}"))],
)
def test_a_folder_without_a_mark_or_with_one_that_says_nothing_stays(
    name: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    for overwrite in (False, True):
        with expect_error(ConfigError, key="out"):
            write(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / name).read_text() == content


@pytest.mark.parametrize(
    "out",
    [
        "s3://bucket/out",
        "file",
        "link",
        "file/out",
    ],
)
def test_other_places_are_rejected(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    with expect_error(ConfigError, key="out"):
        write(Path(out), overwrite=True)
    assert Path("file").read_text() == "mine"


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    (left / "images").mkdir(parents=True)
    (left / "images" / "half.jpg").write_bytes(b"half")
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["ö 7.jpg"]


def test_two_exports_at_once_are_rejected(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    with (left / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with expect_error(ConfigError, key="out"):
            write(tmp_path / "out")
    assert left.is_dir()
