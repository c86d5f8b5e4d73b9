"""Folders of images with a text beside each."""

from pathlib import Path

import pytest

from stages.contract.errors import InputError
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
    with expect_error(InputError):
        reader_of(kind="folder", path=path).pieces()


def test_a_text_that_goes_after_planning_ends_the_run(tmp_path: Path) -> None:
    reader = reader_of(kind="folder", path=write(tmp_path, {"1.jpg": JPEG, "1.txt": b"a dog"}))
    (piece,) = reader.pieces()
    (tmp_path / "1.txt").unlink()
    with expect_error(InputError):
        list(reader.read(piece))
