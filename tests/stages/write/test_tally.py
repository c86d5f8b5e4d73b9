from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.summary import Report, print_summary
from stages.contract.errors import SchemaError
from stages.contract.records import OTHER_LANGUAGE, stable_id
from stages.write import Tally, tally, write_categories
from stages.write import tally as tally_module
from tests.stages.write.rows import mixed, write_shards


def test_counts_of_a_mixed_dataset(tmp_path: Path) -> None:
    write_shards(mixed(), tmp_path, rows_per_file=4)
    total = tally(tmp_path)
    assert (total.files, total.rows) == (3, 9)
    assert (total.annotated, total.without_regions, total.without_phrases, total.failed) == (6, 1, 1, 2)
    assert total.failed_by_reason == {"missing_image": 1, "bad_image": 1}
    assert (total.phrases, total.regions) == (12, 9)
    assert total.categories == {("red car", "car"): 5, ("two dogs", "dog"): 4}
    assert total.rows == total.annotated + total.without_phrases + total.failed


def test_rows_with_a_caption_in_another_language_are_counted_and_told(tmp_path: Path) -> None:
    notes = [f"{OTHER_LANGUAGE} than en: 0 (de)", f"{OTHER_LANGUAGE} than en, left out: 1 (zh)"]
    first, second, *others = mixed()
    write_shards([replace(first, notes=tuple(notes)), replace(second, notes=("another",)), *others], tmp_path)
    total = tally(tmp_path)
    assert total.other_language == 1
    text = StringIO()
    print_summary(Console(file=text, width=100), total, Report(), "out", model="demo", scores="", calibrated=True)
    assert re.search(r"with a caption in another language\W+1 \(11\.1%\)", text.getvalue())


def test_an_empty_dataset(tmp_path: Path) -> None:
    assert tally(tmp_path) == Tally()
    write_categories(tally(tmp_path), tmp_path / "categories.parquet")
    table = pq.read_table(tmp_path / "categories.parquet")
    assert table.num_rows == 0
    assert table.column_names == ["id", "name", "supercategory", "count"]


def test_hidden_and_foreign_files_are_not_counted(tmp_path: Path) -> None:
    write_shards(mixed(), tmp_path)
    (tmp_path / ".00009.parquet.5.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    assert tally(tmp_path).rows == 9


def test_a_foreign_shard_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"error": [None], "text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(SchemaError, match=r"other\.parquet lacks the columns \['absent', 'annotations', 'id'"):
        tally(tmp_path)


def test_categories(tmp_path: Path) -> None:
    """The supercategory is the most frequent head; of equally frequent ones the first of the alphabet."""
    heads = {("glasses", "glass"): 2, ("glasses", "glasses"): 3, ("top", "top"): 1, ("top", "cloth"): 1}
    write_categories(Tally(categories=Counter(heads)), tmp_path / "categories.parquet")
    rows = pq.read_table(tmp_path / "categories.parquet").to_pylist()
    assert {row["name"]: (row["supercategory"], row["count"]) for row in rows} == {
        "glasses": ("glasses", 5),
        "top": ("cloth", 2),
    }
    assert [row["id"] for row in rows] == sorted(stable_id(row["name"]) for row in rows)


def test_colliding_ids_are_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "stable_id", lambda text: 7)
    total = Tally(categories=Counter({("dog", "dog"): 1, ("cat", "cat"): 1}))
    with pytest.raises(SchemaError, match="'cat' and 'dog' have the same category id 7"):
        write_categories(total, tmp_path / "categories.parquet")
    assert list(tmp_path.iterdir()) == []
