"""What people marked, kept beside the shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.folder import MARKS, MARKS_FILE, read_marks, write_marks
from stages.contract.errors import InputError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == {}
    marks = {"b": "bad", "a": "good", "ąé 乌龟 🐢": "good", 'quote " and \\ and\nline': "bad", "": "bad"}
    write_marks(tmp_path, marks)
    assert read_marks(tmp_path) == marks
    write_marks(tmp_path, {"a": "bad"})
    assert read_marks(tmp_path) == {"a": "bad"}
    write_marks(tmp_path, {})
    assert read_marks(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == [MARKS_FILE], "nothing temporary stays"


def test_a_sample_a_line_in_order(tmp_path: Path) -> None:
    """So that two versions of the file can be compared."""
    write_marks(tmp_path, {"b": "bad", "ä": "good", "a": "good"})
    assert (tmp_path / MARKS_FILE).read_text(encoding="utf-8") == '{\n"a": "good",\n"b": "bad",\n"ä": "good"\n}\n'


@pytest.mark.parametrize("mark", ["", "great", "Good"])
def test_other_marks_are_not_written(mark: str, tmp_path: Path) -> None:
    write_marks(tmp_path, {"a": "good"})
    with pytest.raises(ValueError, match="expected marks from"):
        write_marks(tmp_path, {"a": "bad", "b": mark})
    assert read_marks(tmp_path) == {"a": "good"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_marks(tmp_path / "file", {"a": MARKS[0]})


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", '{"a": "great"}', '{"a": ["good"]}', '{"a": null}', '["good"]', "\udcff"],
)
def test_damaged_files(content: str, tmp_path: Path) -> None:
    (tmp_path / MARKS_FILE).write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=MARKS_FILE) as refused:
        read_marks(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / MARKS_FILE).mkdir()
    with pytest.raises(InputError, match=MARKS_FILE):
        read_marks(tmp_path)
