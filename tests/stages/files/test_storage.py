import os
import pickle
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.stages.contract.errors import ConfigError, InputError, ResumeError
from phrasebox.stages.files.storage import (
    AnyPath,
    ObjectPath,
    absolute,
    found_in,
    is_about_writing,
    is_local,
    join,
    location_of,
    move,
    network_errors,
    open_file,
    parent,
    parquet_file,
    place_of,
    remove_tree,
    replacing,
    resolve,
    writable_place,
    write_text,
)
from tests.messages import expect_error


@pytest.mark.parametrize(
    ("location", "local", "folder"),
    [
        ("/a/b.x", True, "/a"),
        ("/b.x", True, "/"),
        ("file:///a/b.x", True, "file:///a"),
        ("memory://a/b.x", False, "memory://a"),
        ("s3://bucket/a/b.x", False, "s3://bucket/a"),
        ("/a::b/c", True, "/a::b"),
    ],
)
def test_locations(location: str, local: bool, folder: str) -> None:
    assert is_local(location) is local
    assert parent(location) == folder
    assert join(folder, "c").startswith(folder.rstrip("/") + "/c")


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("~/b") == "/home/someone/b"
    assert absolute("file:///a/b/") == "/a/b"
    assert absolute("s3://bucket/a/") == "s3://bucket/a"


def test_paths_of_filesystems_and_back(tmp_path: Path) -> None:
    with fsspec.open("memory://files/a.x", "wb") as file:
        file.write(b"abc")
    (tmp_path / "a.x").write_bytes(b"abc")
    for location in ("memory://files/a.x", str(tmp_path / "a.x")):
        assert location_of(resolve(location)[1], location) == location
        with open_file(location) as file:
            assert file.read() == b"abc"


def test_chained_urls_choose_no_filesystem_and_protocols_must_be_known(tmp_path: Path) -> None:
    for look in (lambda: open_file("nonsense://a/b"), lambda: place_of("nonsense://a/b").exists()):
        with expect_error(InputError):
            look()
    with pytest.raises(OSError, match="No such file"):
        open_file(f"{tmp_path}/zip::a")
    with expect_error(InputError):
        open_file("simplecache::memory://a")


@pytest.fixture(params=["disk", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """An empty folder of each kind."""
    if request.param == "disk":
        return tmp_path
    if request.param == "s3":
        request.getfixturevalue("storage")
    return place_of(f"{request.param}://bucket/{tmp_path.name}")


def names(folder: AnyPath, pattern: str = "*") -> list[str]:
    return [path.name for path in found_in(folder, pattern)]


def test_what_is_written_is_read(folder: AnyPath) -> None:
    (folder / "a").mkdir(parents=True, exist_ok=True)
    write_text(folder / "a" / "1.txt", "Zwölf\n")
    (folder / "a" / "2.bin").write_bytes(b"\0\1")
    assert (folder / "a" / "1.txt").read_bytes() == "Zwölf\n".encode()
    assert (folder / "a" / "1.txt").read_text(encoding="utf-8") == "Zwölf\n"
    binary = folder / "a" / "2.bin"
    for opened in (lambda: binary.open("rb"), lambda: open_file(str(binary))):
        with opened() as file:
            assert file.read() == b"\0\1"
    assert names(folder / "a") == ["1.txt", "2.bin"]
    assert names(folder / "a", "*.txt") == ["1.txt"]
    assert names(folder / "a" / "1.txt") == []
    assert names(folder) == ["a"]
    for path, is_file in ((folder / "a", False), (folder / "a" / "1.txt", True)):
        assert (path.is_file(), path.is_dir(), path.exists()) == (is_file, not is_file, True)
    assert str((folder / "a" / "1.txt").parent) == str(folder / "a")
    assert (folder / "a" / "1.txt").stem == "1"


def test_parquet_is_read(folder: AnyPath) -> None:
    table = pa.table({"a": [1, 2, 3]})
    with replacing(folder / "a.parquet") as temporary:
        pq.write_table(table, temporary)
    with parquet_file(folder / "a.parquet", buffer_bytes=1024) as file:
        assert file.read() == table


def test_a_renamed_file_reaches_the_disk_before_its_folder(tmp_path: Path, monkeypatch) -> None:
    """Else a power cut may leave the folder without it."""
    synced = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "a.txt").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_text(tmp_path / "a.txt", "new")
    assert synced == [((tmp_path / "a.txt").stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    synced.clear()
    (tmp_path / "b").mkdir()
    move(tmp_path / "a.txt", tmp_path / "b/a.txt")
    assert synced == [((tmp_path / "b").stat().st_ino, False)]


def test_what_is_not_there(folder: AnyPath) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "x").read_bytes()
    with pytest.raises(FileNotFoundError), parquet_file(folder / "x"):
        pass
    with pytest.raises(FileNotFoundError):
        (folder / "x").unlink()
    (folder / "x").unlink(missing_ok=True)
    remove_tree(folder / "x")
    assert not (folder / "x").exists()
    assert names(folder / "x") == []


def test_files_and_folders_are_renamed_and_deleted(folder: AnyPath) -> None:
    (folder / "a" / "deep").mkdir(parents=True)
    (folder / "a" / "1").write_bytes(b"1")
    (folder / "a" / "deep" / "2").write_bytes(b"2")
    move(folder / "a", folder / "b")
    assert not (folder / "a").exists()
    assert (folder / "b" / "deep" / "2").read_bytes() == b"2"
    move(folder / "b" / "1", folder / "b" / "3")
    assert names(folder / "b") == ["3", "deep"]
    (folder / "b" / "3").unlink()
    remove_tree(folder / "b")
    assert not (folder / "b" / "deep" / "2").exists()


def test_an_error_leaves_the_old_file_and_nothing_else(folder: AnyPath) -> None:
    write_text(folder / "a.txt", "old")

    def fail() -> None:
        with replacing(folder / "a.txt") as temporary:
            temporary.write_text("half of the n")
            assert names(folder, "*.txt") == ["a.txt"], "readers do not meet it"
            assert (folder / "a.txt").read_text(encoding="utf-8") == "old"
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert (folder / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(folder) == ["a.txt"]


@pytest.mark.parametrize("folder", ["s3", "memory"], indirect=True)
@pytest.mark.parametrize("bytes_before", [0, 1 << 20, 30 << 20])
def test_an_upload_that_ends_early_leaves_the_old_object(folder: AnyPath, bytes_before: int) -> None:
    """As at Ctrl-C: before the first byte, within the first part, and after some of them."""
    place = folder / "a.bin"
    assert isinstance(place, ObjectPath)
    place.write_bytes(b"old")

    class Interrupted(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= bytes_before:
                raise KeyboardInterrupt
            return super().read(size)

    with pytest.raises(KeyboardInterrupt):
        place.write_from(Interrupted(bytes(bytes_before + 1)))
    assert place.read_bytes() == b"old"
    assert [*names(folder, ".*"), *names(folder)] == ["a.bin"]


def test_a_file_that_is_not_confirmed_does_not_appear(folder: AnyPath) -> None:
    write_text(folder / "a.txt", "old")

    def refuse() -> None:
        raise ResumeError("another run has the folder")

    with pytest.raises(ResumeError):
        write_text(folder / "a.txt", "new", refuse)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(folder) == ["a.txt"]


def test_two_writers_of_a_file_do_not_meet(folder: AnyPath) -> None:
    """Also in processes with one number, as those of two containers; what a kill leaves has the end `.tmp`."""
    with replacing(folder / "a.txt") as first:
        first.write_text("first")
        with replacing(folder / "a.txt") as second:
            second.write_text("second")
            beside = 2 if isinstance(folder, Path) else 0  # else on this machine
            assert len(names(folder, ".a.txt.*.tmp")) == beside
        assert (folder / "a.txt").read_text(encoding="utf-8") == "second"
    assert (folder / "a.txt").read_text(encoding="utf-8") == "first"
    assert names(folder) == ["a.txt"]


@pytest.mark.parametrize(
    ("file", "is_below"),
    [("out", True), ("out/data/0.parquet", True), ("out-images/a.jpg", False), ("out images/a.jpg", False)],
)
def test_an_error_is_about_a_folder_if_it_names_a_file_in_it(
    file: str, is_below: bool, tmp_path: Path
) -> None:
    """Not if the name of the other begins with that of the folder."""
    for error in (
        OSError(2, "bad", str(tmp_path / file)),
        OSError(f"Failed to open '{tmp_path / file}'. Detail: bad"),
    ):
        assert is_about_writing(tmp_path / "out", error) == is_below


@pytest.mark.parametrize(
    "written_as", ["s3://bucket/a/b", "s3:/bucket/a/b", "s3://bucket/a/b/", Path("s3://bucket/a/b")]
)
def test_a_url_may_have_passed_through_pathlib(written_as: str | Path) -> None:
    place = place_of(written_as)
    assert isinstance(place, ObjectPath)
    assert str(place) == "s3://bucket/a/b"
    assert (place.protocol, str(place.parent / "c")) == ("s3", "s3://bucket/a/c")
    assert repr(pickle.loads(pickle.dumps(place))) == repr(place)
    assert place_of("file:///a/b") == place_of(Path("file:///a/b")) == Path("/a/b")


def test_protocols_that_cannot_be_written_are_rejected() -> None:
    with pytest.raises(OSError, match=r"can only be read: 'data://a/b'"):
        write_text(place_of("data://a/b"), "a")
    with expect_error(ConfigError):
        writable_place("hf://datasets/mine")


def test_a_network_library_that_another_thread_is_importing_has_no_errors_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", ModuleType("httpx"))
    monkeypatch.delitem(sys.modules, "aiohttp", raising=False)
    assert network_errors() == (OSError,)
