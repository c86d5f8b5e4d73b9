"""The synthetic datasets are datasets."""

from __future__ import annotations

from pathlib import Path

from pipeline.dataset.folder import open_dataset
from pipeline.dataset.validate import validate
from tests.synthetic import write_synthetic


def test_they_are_valid(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "dataset", 700, rows_per_file=300, embed_images=True)
    assert list(validate(folder)) == []
    dataset = open_dataset(folder)
    assert len(dataset.shards) == 3
    assert dataset.has_images
    rows = list(dataset.rows())
    assert len(rows) == 700
    counts = dataset.manifest["counts"]
    assert counts["failed"] > 0
    assert counts["without_phrases"] > 0
    assert 2.7 < counts["regions"] / 700 < 3.1
    assert {len(row["captions"]) for row in rows} == {1, 2}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    shards = [write_synthetic(tmp_path / str(n), 200, 2, seed=n // 2) / "data" / "00000.parquet" for n in range(3)]
    first, again, other = (shard.read_bytes() for shard in shards)
    assert first == again != other
