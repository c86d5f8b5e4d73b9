"""People's marks of samples: what is written is read, also what earlier versions wrote, and damage is said."""

import os
from pathlib import Path

import pytest

from phrasebox.pipeline.dataset.append_log import LONGEST_LINE, LONGEST_TEXT
from phrasebox.pipeline.dataset.marks import EARLIER_FILE, append_marks, read_marks
from phrasebox.stages.contract.errors import InputError
from tests.build.files import read_lines, write_json
from tests.messages import expect_error

LONGEST_ID = "\0" * LONGEST_TEXT  # each letter takes six bytes


def test_marks_that_are_written_are_read(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == {}
    marks = {"ąé 乌龟 🐢": "good", 'quote " and \\ and\nline': "bad", "": "bad", LONGEST_ID: "good"}
    append_marks(tmp_path, marks)
    assert read_marks(tmp_path) == marks
    append_marks(tmp_path, {"": "good", LONGEST_ID: ""})
    del marks[LONGEST_ID]
    assert read_marks(tmp_path) == {**marks, "": "good"}
    assert len(read_lines(tmp_path / "marks.jsonl")) == 6, "nothing is deleted"
    assert max(map(len, (tmp_path / "marks.jsonl").read_bytes().splitlines())) < LONGEST_LINE


def test_marks_of_earlier_versions_count_until_there_are_later_ones(tmp_path: Path) -> None:
    write_json(tmp_path / EARLIER_FILE, {"a": "good", "b": "good", "c": "bad"})
    append_marks(tmp_path, {"b": "", "c": "good", "d": "bad"})
    assert read_marks(tmp_path) == {"a": "good", "c": "good", "d": "bad"}


def test_a_torn_line_costs_only_itself_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    append_marks(tmp_path, {"a": "good"})
    with (tmp_path / "marks.jsonl").open("ab") as file:
        file.write(b'{"sample_id": "b", "ma')  # as a power cut leaves it
    append_marks(tmp_path, {"c": "bad"})
    assert read_marks(tmp_path) == {"a": "good", "c": "bad"}
    assert "that cannot be read: 1" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"a": "great"}', "\udcff"])
def test_damaged_marks(content: str, tmp_path: Path) -> None:
    (tmp_path / EARLIER_FILE).write_text(content, errors="surrogateescape")
    with expect_error(InputError):
        read_marks(tmp_path)
    (tmp_path / "other" / EARLIER_FILE).mkdir(parents=True)
    with expect_error(InputError):
        read_marks(tmp_path / "other")


def test_no_link_is_written_or_read(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    os.symlink(victim, tmp_path / "marks.jsonl")
    with pytest.raises(OSError):  # noqa: PT011  its number differs
        append_marks(tmp_path, {"a": "good"})
    with expect_error(InputError):
        read_marks(tmp_path)
    assert victim.read_text() == "mine\n"
