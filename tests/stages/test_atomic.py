from __future__ import annotations

from pathlib import Path

import pytest

from stages.atomic import replacing, write_text


def test_text_is_written_in_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Zwölf\n")
    assert (tmp_path / "a.txt").read_bytes() == "Zwölf\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half of the n")
            assert (tmp_path / "a.txt").read_text() == "old"
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_is_hidden_beside_the_real_one(tmp_path: Path) -> None:
    with replacing(tmp_path / "00000.parquet") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert not temporary.name.endswith(".parquet"), "readers glob *.parquet"
        temporary.touch()
