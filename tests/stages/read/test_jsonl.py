import gzip
import json
from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import ImageRef
from tests.messages import expect_error
from tests.stages.read.inputs import read_all, reader_of, reason, samples_of, write_lines

GOOD = {"image": "a.jpg", "caption": "a cat"}


@pytest.mark.parametrize(
    ("row", "file_name", "captions", "sample_id"),
    [
        (
            {"image": "x/../sub/a.jpg", "caption": " A cat. ", "id": "k 1"},
            "sub/a.jpg",
            (" A cat. ",),
            "k 1",
        ),
        ({"image": "a.jpg", "captions": ["x", "y"]}, "a.jpg", ("x", "y"), "in.jsonl:1"),
        ({"image": "a.jpg", "caption": "x", "captions": ["y"]}, "a.jpg", ("x",), "in.jsonl:1"),
        (
            {"image_path": "b/a.jpg", "caption": "x", "image_id": 5, "width": 3},
            "b/a.jpg",
            ("x",),
            "in.jsonl:1",
        ),
        (
            {"image": "a.jpg", "caption": "e\u0301\U0001f600", "id": 17},
            "a.jpg",
            ("e\u0301\U0001f600",),
            "17",
        ),
        ({"image": "a\\b: c?#.jpg", "caption": "x"}, "a\\b: c?#.jpg", ("x",), "in.jsonl:1"),
    ],
)
def test_accepted_rows(tmp_path, row, file_name, captions, sample_id) -> None:
    path = write_lines(tmp_path / "in.jsonl", [row])
    (sample,) = samples_of(kind="jsonl", path=str(path))
    assert (sample.image.file_name, sample.captions, sample.sample_id) == (file_name, captions, sample_id)
    assert (sample.source, sample.error) == ("in.jsonl:1", None)
    assert sample.image.url == f"{tmp_path}/{file_name}"
    assert (sample.image.offset, sample.image.size, sample.image.content) == (0, -1, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["a", 7, "a", None, "7", b"{"],
            ["a", "7", "a#in.jsonl:3!", "in.jsonl:4", "7#in.jsonl:5!", "in.jsonl:6!"],
        ),
        (["in.jsonl:2", None, "a"], ["in.jsonl:2", "in.jsonl:2#in.jsonl:2!", "a"]),
    ],
)
def test_ids_that_come_twice(given: list[object], expected: list[str], tmp_path: Path) -> None:
    """Faults are marked. An id may look like a place, and its key may be escaped."""
    rows = [
        one if isinstance(one, bytes) else GOOD if one is None else {**GOOD, "id": one} for one in given
    ]
    path = write_lines(tmp_path / "in.jsonl", rows)
    for piece_size in (1, 2, 100):
        samples = samples_of(kind="jsonl", path=str(path), piece_size=piece_size)
        assert [sample.sample_id + "!" * (sample.error is not None) for sample in samples] == expected


def test_several_files_are_named_below_their_common_folder(tmp_path: Path) -> None:
    """Without image_root, images lie beside their own file."""
    for name in ("a/x.jsonl", "b/x.jsonl", "b/notes.txt"):
        write_lines(tmp_path / name, [GOOD])
    samples = samples_of(kind="jsonl", path=str(tmp_path))
    assert [sample.sample_id for sample in samples] == ["a/x.jsonl:1", "b/x.jsonl:1"]
    assert [sample.image.url for sample in samples] == [f"{tmp_path}/a/a.jpg", f"{tmp_path}/b/a.jpg"]
    assert [sample.image.file_name for sample in samples] == ["a/a.jpg", "b/a.jpg"]


def test_paths_are_relative_to_the_image_root_or_absolute_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": f"{tmp_path}/{folder}/a.jpg", "caption": "x"} for folder in ("images", "images2")]
    write_lines(tmp_path / "meta" / "in.jsonl", [GOOD, *rows])
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    reader = reader_of(kind="jsonl", path="meta/in.jsonl", image_root="images/", group_rows=False)
    (piece,) = reader.pieces()
    monkeypatch.chdir("/")  # workers run elsewhere
    relative, inside, outside = reader.samples([piece])
    assert relative.image == inside.image == ImageRef(file_name="a.jpg", url=f"{tmp_path}/images/a.jpg")
    assert reason(outside) == "bad_location"


def test_configured_fields(tmp_path: Path) -> None:
    row = {"image": "no.jpg", "picture": "a.jpg", "short": "x", "long": ["y", "z"], "caption": "no", "n": 3}
    path = write_lines(tmp_path / "in.jsonl", [row])
    keys = {"kind": "jsonl", "path": str(path), "image": "picture", "id": "n"}
    (single,) = samples_of(**keys, caption="long")
    assert (single.image.file_name, single.captions, single.sample_id) == ("a.jpg", ("y", "z"), "3")
    (several,) = samples_of(**keys, caption=["short", "long"])
    assert several.captions == ("x", "y", "z")


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"img": "a", "caption": "x"}, {}),
    ],
)
def test_a_field_that_none_of_ten_rows_has_is_rejected(row, keys, tmp_path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [row] * 10)
    with expect_error(InputError):
        reader_of(kind="jsonl", path=str(path), **keys).pieces()
    write_lines(path, [row] * 9)
    assert len(read_all(kind="jsonl", path=str(path), **keys, group_rows=False)) == 9


def test_a_compressed_file_is_one_piece(tmp_path: Path) -> None:
    """Blank lines are no rows but count as lines."""
    lines = [b"", *({**GOOD, "id": number} for number in range(20)), b" \t\r", GOOD]
    plain = write_lines(tmp_path / "in.jsonl", lines)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (piece,) = reader_of(kind="jsonl", path=str(packed), piece_size=10).pieces()
    assert piece.samples == 21
    ids = [sample.sample_id for sample in samples_of(kind="jsonl", path=str(packed))]
    assert ids == [*map(str, range(20)), "in.jsonl.gz:23"]


@pytest.mark.parametrize("name", ["list.json", "list.json.gz"])
def test_the_elements_of_a_json_list_are_rows(tmp_path: Path, name: str) -> None:
    texts = ['a [cat}, "b" \\', "\u732b", "", "]"]
    rows = [{"image": f"{number}.jpg", "caption": text} for number, text in enumerate(texts)]
    content = [*rows, 7, {"image": "\udcff", "caption": "x"}]
    text = b"\xef\xbb\xbf " + json.dumps(content, indent=2).encode() + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    for piece_size in (1, 3, 100):
        samples = samples_of(kind="jsonl", path=str(tmp_path / name), piece_size=piece_size)
        assert [sample.sample_id for sample in samples] == [f"{name}:{number}" for number in range(1, 7)]
        assert [sample.captions for sample in samples] == [*((text,) for text in texts), (), ("x",)]
        assert [reason(sample) for sample in samples] == [None] * 4 + ["bad_row", "bad_location"]


@pytest.mark.parametrize(
    "text", ['[{"image": "a"},, 7]', '[{"image": "a"}, {"image": "b', '[{"image": "a"}]\n{}']
)
def test_a_broken_json_list_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.json").write_text(text)
    with expect_error(InputError):
        reader_of(kind="jsonl", path=str(tmp_path / "in.json")).pieces()


def test_a_file_that_has_gone_since_planning(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [GOOD])
    reader = reader_of(kind="jsonl", path=str(path))
    (piece,) = reader.pieces()
    path.unlink()
    with expect_error(InputError):
        list(reader.read(piece))
