from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages import places
from stages.atomic import replacing, write_text
from stages.contract.errors import ConfigError
from stages.places import AnyPath, ObjectPath, found_in, move, place_of, remove_tree
from tests.object_storage import object_storage


@pytest.fixture(scope="module")
def storage() -> Iterator[None]:
    """The environment of a storage server."""
    with object_storage() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        places._filesystem.cache_clear()
        yield
    places._filesystem.cache_clear()


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """An empty folder of either kind."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("storage")
    return place_of(f"s3://bucket/{tmp_path.name}")


def names(folder: AnyPath, pattern: str = "*") -> list[str]:
    return [path.name for path in found_in(folder, pattern)]


def test_what_is_written_is_read(folder: AnyPath) -> None:
    (folder / "a").mkdir(parents=True, exist_ok=True)
    write_text(folder / "a" / "1.txt", "Zwölf")
    (folder / "a" / "2.bin").write_bytes(b"\0\1")
    assert (folder / "a" / "1.txt").read_text(encoding="utf-8") == "Zwölf"
    with (folder / "a" / "2.bin").open("rb") as file:
        assert file.read() == b"\0\1"
    assert names(folder / "a") == ["1.txt", "2.bin"]
    assert names(folder / "a", "*.txt") == ["1.txt"]
    assert names(folder) == ["a"]
    assert ((folder / "a").is_file(), (folder / "a").exists()) == (False, True)
    assert (folder / "a" / "1.txt").is_file()
    assert str((folder / "a" / "1.txt").parent) == str(folder / "a")
    assert (folder / "a" / "1.txt").stem == "1"


def test_what_is_not_there(folder: AnyPath) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "x").read_bytes()
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


def test_an_error_leaves_the_old_file(folder: AnyPath) -> None:
    write_text(folder / "a.txt", "old")

    def fail() -> None:
        with replacing(folder / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert (folder / "a.txt").read_text(encoding="utf-8") == "old"
    assert names(folder) == ["a.txt"]


@pytest.mark.parametrize(
    "written_as", ["s3://bucket/a/b", "s3:/bucket/a/b", "s3://bucket/a/b/", Path("s3://bucket/a/b")]
)
def test_a_url_may_have_passed_through_pathlib(written_as: str | Path) -> None:
    place = place_of(written_as)
    assert isinstance(place, ObjectPath)
    assert str(place) == "s3://bucket/a/b"


def test_protocols_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hf://datasets/mine: expected a folder or a URL of s3, gs"):
        place_of("hf://datasets/mine")
