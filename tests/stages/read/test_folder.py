"""Folders of images with a text beside each."""

import os
from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import InputError
from tests.messages import expect_error
from tests.stages.read.inputs import JPEG, reader_of, reason, samples_of


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def test_images_with_their_captions(tmp_path: Path) -> None:
    """Sorted by name; one caption a line, untouched but for line ends."""
    path = write(
        tmp_path,
        {
            "b/2.PNG": JPEG,
            "b/2.TXT": "\ufeff a cat \r\n\r\n  \nein Löwe".encode(),
            "a.b.webp": JPEG,
            "a.b.txt": b"one",
            "notes.pdf": b"",
            ".hidden.jpg": b"",
        },
    )
    first, second = samples_of(kind="folder", path=path)
    assert (first.sample_id, first.source, first.captions) == ("a.b.webp", "a.b.webp", ("one",))
    assert (second.sample_id, second.captions, second.error) == ("b/2.PNG", (" a cat ", "ein Löwe"), None)
    assert (second.image.file_name, second.image.url) == ("b/2.PNG", f"{tmp_path}/b/2.PNG")


def test_every_file_is_in_a_row(tmp_path: Path) -> None:
    """An image without a text has no captions, a text without an image is an error; two images may share a text."""
    files = {"1.jpg": JPEG, "1.png": JPEG, "1.txt": b"a dog", "2.jpg": JPEG, "3.txt": b"a cat"}
    files |= {"4.jpg": JPEG, "4.txt": b"\xff"}
    samples = samples_of(kind="folder", path=write(tmp_path, files))
    assert [(sample.sample_id, sample.captions, reason(sample)) for sample in samples] == [
        ("1.jpg", ("a dog",), None),
        ("1.png", ("a dog",), None),
        ("2.jpg", (), None),
        ("3.txt", ("a cat",), "missing_image"),
        ("4.jpg", (), "bad_caption"),
    ]
    assert "no .jpg or .jpeg" in str(samples[3].error)
    assert "'4.txt' is not UTF-8 at byte 0" in str(samples[4].error)


@pytest.mark.parametrize(
    "files", [{"1.jpg": JPEG, "2.jpg": JPEG}, {"1.txt": b"a"}, {"1.jpg": JPEG, "2.txt": b"a"}]
)
def test_folders_without_a_pair_are_rejected(files: dict[str, bytes], tmp_path: Path) -> None:
    path = write(tmp_path, files)
    with expect_error(InputError, key="input.path"):
        reader_of(kind="folder", path=path).pieces()


def test_a_text_that_goes_after_planning_ends_the_run(tmp_path: Path) -> None:
    reader = reader_of(kind="folder", path=write(tmp_path, {"1.jpg": JPEG, "1.txt": b"a dog"}))
    (piece,) = reader.pieces()
    (tmp_path / "1.txt").unlink()
    with expect_error(InputError):
        list(reader.read(piece))


def write_links(folder: Path, links: dict[str, Path]) -> None:
    for name, target in links.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)


def test_a_link_to_a_text_elsewhere_gives_no_caption(tmp_path: Path) -> None:
    """Neither a link, nor a text in a folder that is one."""
    write(tmp_path / "elsewhere", {"secret.txt": b"a password", "5.txt": b"a password"})
    path = write(tmp_path / "in", {"1.jpg": JPEG, "1.txt": b"a dog", "2.jpg": JPEG, "3.jpg": JPEG})
    write_links(
        tmp_path / "in",
        {
            "2.txt": tmp_path / "elsewhere/secret.txt",
            "3.txt": Path("/etc/passwd"),
            "4": tmp_path / "elsewhere",
        },
    )
    samples = {sample.sample_id: sample for sample in samples_of(kind="folder", path=path)}
    assert samples.pop("1.jpg").captions == ("a dog",)
    assert sorted(samples) == ["2.jpg", "3.jpg", "4/5.txt", "4/secret.txt"]
    for name, sample in samples.items():
        assert sample.captions == ()
        assert reason(sample) == ("missing_image" if name.startswith("4/") else "bad_location")


def test_folders_of_links_are_read(tmp_path: Path) -> None:
    """As caches of downloads are made, of a folder or of single files, and links within the input."""
    pair = {"a.jpg": JPEG, "a.txt": b"a cat"}
    write(tmp_path / "store", pair)
    path = write(tmp_path / "in", {"b.jpg": JPEG, "texts/b": b"a dog", **pair})
    store = tmp_path / "store"
    links = {"1.jpg": store / "a.jpg", "1.txt": store / "a.txt", "linked": store, "b.txt": Path("texts/b")}
    write_links(tmp_path / "in", links)
    for place in (path, f"{path}/*", [path, str(store)]):
        samples = samples_of(kind="folder", path=place)
        captions = {sample.sample_id.removeprefix("in/"): sample.captions for sample in samples}
        wanted = {"1.jpg": ("a cat",), "a.jpg": ("a cat",), "b.jpg": ("a dog",)}
        assert {**captions, **wanted} == captions
        assert not any(map(reason, samples))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path / "in", {"1.jpg": JPEG, "1.txt": b"a dog", "2.jpg": JPEG, "3.jpg": JPEG})
    os.mkfifo(tmp_path / "in" / "2.txt")
    (tmp_path / "in" / "3.txt").symlink_to("/dev/zero")
    samples = samples_of(kind="folder", path=path)
    assert [reason(sample) for sample in samples] == [None, "bad_caption", "bad_caption"]
    os.mkfifo(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        with expect_error(InputError):
            reader_of(kind=kind, path=str(tmp_path)).pieces()
