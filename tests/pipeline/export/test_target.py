"""A target is whole or not there, and takes the place of nothing but an export."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from pipeline.export.files import MARK, export_folder
from stages.contract.errors import ConfigError


def write(out: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with export_folder(out, overwrite=overwrite) as folder:
        folder.file("a/b.txt").write_text(text)
        folder.named("images/ö 7.jpg").write_bytes(b"7")
        folder.finish({"format": "test"})


def test_it_appears_when_it_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with export_folder(out, overwrite=False) as folder:
        folder.file("a.txt").write_text("a")
        assert not out.exists()
        folder.finish({})
        assert not out.exists()
    assert sorted(path.name for path in out.iterdir()) == [MARK, "a.txt"]


def test_without_an_end_nothing_appears(tmp_path: Path) -> None:
    with export_folder(tmp_path / "out", overwrite=False) as folder:
        folder.file("a.txt").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^out: s3://bucket/out is a URL; exports are written to local and"):
        write(Path("s3://bucket/out"))


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "images" / "ö 7.jpg").read_bytes() == b"7"


def test_the_old_export_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with export_folder(out, overwrite=True) as folder:
        folder.file("a/b.txt").write_text("half")
    assert (out / "a" / "b.txt").read_text() == "old"
    write(out, "new", overwrite=True)
    assert (out / "a" / "b.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stranger", ["mine.txt", "images/mine.jpg", "a/ö 7.jpg", "x/y/z"])
def test_what_no_export_wrote_is_not_deleted(stranger: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out)
    (out / stranger).parent.mkdir(parents=True, exist_ok=True)
    (out / stranger).write_text("mine")
    with pytest.raises(ConfigError, match="no export wrote"):
        write(out, overwrite=True)
    assert (out / stranger).read_text() == "mine"


def test_a_linked_folder_is_not_deleted(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write(out)
    elsewhere.mkdir()
    (out / "images" / "link").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match=r"no export wrote \(images/link\)"):
        write(out, overwrite=True)


@pytest.mark.parametrize("mark", ["", "[]", "{}", '{"files": 3}'])
def test_a_mark_that_says_nothing_is_no_mark(mark: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARK).write_text(mark)
    with pytest.raises(ConfigError, match="no export wrote it"):
        write(tmp_path / "out", overwrite=True)


def test_a_file_and_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    for name in ("file", "link", "dead"):
        with pytest.raises(ConfigError, match=r"^out: "):
            write(tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    (left / "images").mkdir(parents=True)
    (left / "images" / "half.jpg").write_bytes(b"half")
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["ö 7.jpg"]


def test_two_exports_at_once_are_refused(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    with (left / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another export is writing"):
            write(tmp_path / "out")
    assert left.is_dir()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot write to"):
        write(tmp_path / "file" / "out")
