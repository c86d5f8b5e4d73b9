"""Rows that are the same up to rounding, as they are whatever batches, workers and restarts a run has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest

PIXELS: Final = 1.0
SCORES: Final = 1e-3

_ROUNDED: Final = ("score", "similarity", "presence")


def rows_in(dataset: Path) -> list[dict[str, Any]]:
    """All rows by their samples, without what follows from boxes and the last bits of heat maps: masks and maps."""
    table = pq.read_table(dataset / "data")
    rows: list[dict[str, Any]] = table.drop_columns([*{"heat_maps"} & {*table.column_names}]).to_pylist()
    for region in (region for row in rows for region in row["annotations"]):
        del region["segmentation"], region["area"]
    return sorted(rows, key=lambda row: str(row["sample_id"]))


def near(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What equals the same rows up to rounding: boxes within a pixel, scores within 0.001."""
    for row in rows:
        for entry in (*row["annotations"], *row["absent"]):
            if "bbox" in entry:
                entry["bbox"] = pytest.approx(entry["bbox"], abs=PIXELS)
            entry |= {name: pytest.approx(entry[name], abs=SCORES) for name in _ROUNDED if entry.get(name) is not None}
    return rows
