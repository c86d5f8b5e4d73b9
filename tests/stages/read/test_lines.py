"""Rows of one image that follow each other are one sample, however the input is written and cut."""

import json
from pathlib import Path
from typing import Any

import pytest

from phrasebox.stages.read import lines
from phrasebox.stages.read.plan import input_notes
from tests.build.files import write_lines
from tests.stages.read.inputs import reader_of, reason, samples_of

Row = tuple[str, str, str]  # Image, caption and id; empty ones are not given

KAGGLE: list[Row] = [(f"{image}.jpg", f"caption {number}", "") for image in "abc" for number in range(5)]


def write(folder: Path, kind: str, rows: list[Row]) -> str:
    path = folder / f"in.{kind}"
    if kind == "csv":
        path.write_text("".join(",".join(row) + "\n" for row in [("image", "caption", "id"), *rows]))
    else:
        named = [dict(zip(("image", "caption", "id"), row, strict=True)) for row in rows]
        write_lines(path, ({key: text for key, text in row.items() if text} for row in named))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", "1", ""), ("a", "2", ""), ("b", "3", "")], [("in:1", "12"), ("in:3", "3")]),
        ([("a", "1", ""), ("b", "2", ""), ("a", "3", "")], [("in:1", "1"), ("in:2", "2"), ("in:3", "3")]),
        ([("a", "1", "k"), ("a", "2", "k"), ("b", "3", "k")], [("k", "12"), ("k#in:3", "duplicate_id")]),
        ([("", "1", ""), ("", "2", "")], [("in:1", "bad_row"), ("in:2", "bad_row")]),
        ([("a", "1", ""), ("./a", "2", "")], [("in:1", "12")]),
    ],
)
def test_which_rows_are_one_sample(
    kind: str, rows: list[Row], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    """As id and captions or fault; the rows of the table count from 1."""
    for piece_size in (1, 2, 10):
        samples = samples_of(kind=kind, path=write(tmp_path, kind, rows), piece_size=piece_size)
        texts = [(sample.sample_id, reason(sample) or "".join(sample.captions)) for sample in samples]
        assert texts == [(place(name, kind), words) for name, words in expected]


def place(name: str, kind: str) -> str:
    """An id of the table as the kind has it: in CSV the header is line 1."""
    before, mark, row = name.partition("in:")
    return f"{before}in.{kind}:{int(row) + (kind == 'csv')}" if mark else name


def test_lists_of_captions_are_joined_and_bad_rows_stand_alone(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"image": "a", "captions": ["1", "2"]}, {"image": "a", "caption": "3"}, {"image": "a", "caption": 4},
        {"image": "a", "caption": "5"}, "{", {"image": "a", "captions": ["6"]},
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text(
        "".join((row if row == "{" else json.dumps(row)) + "\n" for row in rows)
    )
    for piece_size in (1, 100):
        samples = samples_of(kind="jsonl", path=str(tmp_path / "in.jsonl"), piece_size=piece_size)
        assert [reason(sample) or sample.captions for sample in samples] == [
            ("1", "2", "3"), "bad_caption", ("5",), "bad_row", ("6",),
        ]  # fmt: skip


def test_the_input_is_said_to_be_grouped_and_can_be_left_apart(tmp_path: Path) -> None:
    keys = {"kind": "csv", "path": write(tmp_path, "csv", KAGGLE)}
    pieces = reader_of(**keys, piece_size=2).pieces()
    assert [(piece.samples, piece.rows) for piece in pieces] == [(2, 10), (1, 5)]
    assert list(input_notes(pieces, ())) == [
        "15 rows were grouped into 3 samples, since rows of one image follow each other; "
        "--set input.group_rows=false keeps them apart"
    ]
    samples = samples_of(**keys, group_rows=False)
    assert [(sample.image.file_name, *sample.captions) for sample in samples] == [row[:2] for row in KAGGLE]


def test_a_sample_has_no_more_than_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_ROWS", 2)
    samples = samples_of(kind="csv", path=write(tmp_path, "csv", KAGGLE[:5]), piece_size=1)
    assert [(sample.sample_id, len(sample.captions)) for sample in samples] == [
        ("in.csv:2", 2), ("in.csv:4", 2), ("in.csv:6", 1),
    ]  # fmt: skip
