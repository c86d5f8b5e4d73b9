from pathlib import Path

import fsspec
import pytest

from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.read.find import find_files
from tests.messages import expect_error


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.x", "a.x", "sub/c.x", "sub/d.X", "sub/e.y", ".hidden/f.x", ".g.x", "[h].x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "void").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["[h].x", "a.x", "b.x", "sub/c.x", "sub/d.X"]),
        ("sub/e.y", ["e.y"]),
        ("[h].x", ["[h].x"]),
        ("[ab].x", ["a.x", "b.x"]),
        ("*.x", ["[h].x", "a.x", "b.x"]),
        ("sub/*", ["c.x", "d.X"]),
        ("**/*.x", ["[h].x", "a.x", "b.x", "sub/c.x"]),
    ],
)
def test_entries(tree: Path, path: str, names: list[str]) -> None:
    files = find_files(f"{tree}/{path}", (".x",))
    assert [file.name for file in files] == names
    assert all(Path(file.url).is_file() for file in files)


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("{00..02}", ["00", "01", "02"]),
        ("{02..00}", ["02", "01", "00"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{11..9}", ["11", "10", "9"]),
        ("{11..09}", ["11", "10", "09"]),
        ("{7..7}", ["7"]),
    ],
)
def test_a_range_counts_upwards_and_downwards_as_in_the_shell(
    pattern: str, numbers: list[str], tmp_path: Path
) -> None:
    for number in numbers:
        (tmp_path / f"{number}.x").touch()
    assert [file.name for file in find_files(f"{tmp_path}/{pattern}.x", (".x",))] == [
        f"{number}.x" for number in numbers
    ]


def test_lists_keep_their_order_and_name_no_file_twice(tree: Path) -> None:
    files = find_files((f"{tree}/sub", f"{tree}/b.x", f"{tree}/*.x"), (".x",))
    assert [file.name for file in files] == ["sub/c.x", "sub/d.X", "b.x", "[h].x", "a.x"]


@pytest.mark.parametrize(
    "path",
    [
        "none.x",
        "none/",
        "*.none",
        "void",
        "sub/*.x",
        "sub",
        "{0..99999999}.x",
        "",
    ],
)
def test_nothing_found_says_what_was_looked_for(tree: Path, path: str) -> None:
    (tree / "sub" / "c.x").unlink()
    (tree / "sub" / "d.X").unlink()
    with expect_error(InputError, ConfigError, key=("", "input.path")):
        find_files(f"{tree}/{path}" if path else "", (".x", ".xx"))


def test_home_folder_and_file_urls(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    home, url, plain = (
        find_files(path, (".x",)) for path in ("~/a.x", f"file://{tree}/a.x", f"{tree}/a.x")
    )
    assert home == url == plain
    with fsspec.open("memory://one/a.x", "wb") as file:
        file.write(b"")
    files = find_files(("memory://one/a.x", f"{tree}/a.x"), (".x",))
    assert [file.name for file in files] == ["memory://one/a.x", f"{tree}/a.x"]


@pytest.mark.parametrize("path", ["nonsense://a/b.x", "unknown+x://a"])
def test_unknown_protocols(path: str) -> None:
    with expect_error(InputError):
        find_files(path, (".x",))


def test_links(tree: Path) -> None:
    """Folders behind links are read, too, each once."""
    (tree / "void" / "link.x").symlink_to(tree / "a.x")
    (tree / "void" / "loop").symlink_to(tree / "void")
    (tree / "void" / "other").symlink_to(tree / "sub")
    (tree / "void" / "dangling.x").symlink_to(tree / "none")
    wanted = ["dangling.x", "link.x", "other/c.x", "other/d.X"]
    assert [file.name for file in find_files(str(tree / "void"), (".x",))] == wanted
    assert [file.name for file in find_files(f"{tree}/vo*/oth*/*", (".x",))] == [
        "void/other/c.x",
        "void/other/d.X",
    ]


@pytest.mark.parametrize("name", ["", "/*.x"])
def test_storage_that_says_why_not(name: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec says of a file that may not be read that it does not exist."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", denied)
    with expect_error(InputError):
        find_files(f"{tree}/none{name}", (".x",))


def test_names_can_be_stored(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.x").touch()
    (file,) = find_files(str(tmp_path), (".x",))
    assert file.name == "caf\\udce9.x"
    assert Path(file.url).is_file()
