from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from stages.contract.errors import InputError
from stages.storage import absolute, filesystem_of, is_local, join, location_of, open_file, parent, path_in


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
    for location in ("memory://files/a.x", str(tmp_path / "a.x")):
        Path(tmp_path / "a.x").write_bytes(b"abc")
        filesystem = filesystem_of(location)
        assert location_of(path_in(filesystem, location), location) == location
        with open_file(location) as file:
            assert file.read() == b"abc"


def test_chained_urls_choose_no_filesystem(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        open_file(f"{tmp_path}/zip::a")
    with pytest.raises(InputError, match="cannot open simplecache::memory://a"):
        open_file("simplecache::memory://a")


def test_unknown_protocols() -> None:
    with pytest.raises(InputError, match="cannot open nonsense://a: Protocol not known"):
        open_file("nonsense://a")


def test_s3_without_s3fs() -> None:
    """In its own process: pyarrow's S3 client ends threads of its own at exit."""
    program = """
import sys
sys.modules["s3fs"] = None
from stages.storage import filesystem_of, location_of, path_in
files = filesystem_of("s3://bucket/folder/a.x")
print(type(files).__name__, files.fs.type_name, path_in(files, "s3://bucket/folder/a.x"))
print(location_of("bucket/folder/a.x", "s3://bucket"), filesystem_of("s3://bucket/b") is files)
"""
    surroundings = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "us-east-1"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=surroundings
    )
    assert answer.stdout.split() == [
        "ArrowFSWrapper", "s3", "bucket/folder/a.x", "s3://bucket/folder/a.x", "True",
    ]  # fmt: skip
