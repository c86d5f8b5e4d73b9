"""Datasets changed for a test, and what a loader should give, found the slow way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.dataset.folder import open_dataset
from pipeline.load import Contents

NO_IMAGES = Contents(images=False)

CONTEXT = 5


def letters(texts: Sequence[str]) -> torch.Tensor:
    """A tokenizer: the code points of the first letters."""
    return torch.tensor([[ord(letter) for letter in text[:CONTEXT].ljust(CONTEXT)] for text in texts])


Row = dict[str, Any]


def regrouped(folder: Path, rows: int) -> Path:
    """The dataset with row groups of that many rows."""
    for path in (folder / "data").glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=rows)
    return folder


def changed(folder: Path, change: Callable[[int, Row], None], rows: int = 30) -> Path:
    """The dataset after `change(number, row)` of every row, with row groups of that many rows."""
    number = 0
    for path in sorted((folder / "data").glob("*.parquet")):
        table = pq.read_table(path)
        found = table.to_pylist()
        for row in found:
            change(number, row)
            number += 1
        pq.write_table(pa.Table.from_pylist(found, schema=table.schema), path, row_group_size=rows)
    return folder


def rows_of(folder: Path) -> list[Row]:
    """All rows as dicts."""
    return list(open_dataset(folder).rows())


def expected(folder: Path, keep: Callable[[Row], bool] = lambda region: True) -> dict[str, list[int]]:
    """sample_id -> ids of its regions that are kept, of rows without an error and with such a region."""
    found = {}
    for row in rows_of(folder):
        regions = [region["id"] for region in row["annotations"] if keep(region)]
        if row["error"] is None and regions:
            found[row["sample_id"]] = regions
    return found


def given(samples: Any) -> dict[str, list[int]]:
    """The same of samples; no sample may come twice."""
    found: dict[str, list[int]] = {}
    for sample in samples:
        assert sample["sample_id"] not in found
        found[sample["sample_id"]] = sample["region_ids"].tolist()
    return found


def names(samples: Any) -> list[str]:
    """Sample ids in order."""
    return [sample["sample_id"] for sample in samples]
