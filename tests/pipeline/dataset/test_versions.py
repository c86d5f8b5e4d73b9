"""Datasets of older schema versions, read like those of today.

In version 1 one column `error` held "reason: detail"; version 2 knew neither presence nor groups, version 3 no
importance, and up to version 4 areas were float32.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.folder import NumberedRows, open_dataset
from pipeline.dataset.index import statistics
from pipeline.dataset.selection import Search
from pipeline.dataset.validate import validate
from pipeline.export import EXPORTERS, ExportRequest, export_dataset
from pipeline.load import Contents, RegionStream
from pipeline.viewer.app import make_viewer
from stages.contract.schema import DATASET_SCHEMA
from stages.contract.versions import read_batches, schema_of

DETAIL = "a.jsonl:3: two: colons,\nand a line end"


@pytest.fixture(scope="module")
def today(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of today in which one detail has colons and a line end, and one is empty."""
    folder = Path(shutil.copytree(synthetic_dataset, tmp_path_factory.mktemp("today") / "dataset"))
    path = folder / "data" / "00000.parquet"
    rows = pq.read_table(path).to_pylist()
    failed = [row for row in rows if row["error"] is not None]
    failed[0]["error_detail"], failed[1]["error_detail"] = DETAIL, ""
    pq.write_table(pa.Table.from_pylist(rows, schema=DATASET_SCHEMA), path)
    return folder


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def former(request: pytest.FixtureRequest, today: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset in the form of an older version."""
    version = request.param
    folder = Path(shutil.copytree(today, tmp_path_factory.mktemp("former") / "dataset"))
    for path in (folder / "data").glob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        for row in rows if version == 1 else ():
            detail = row.pop("error_detail")
            row["error"] = row["error"] and f"{row['error']}: {detail}"
        fields = schema_of(version)
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)
    manifest = folder / "dataset.json"
    stored = json.loads(manifest.read_text())
    if version < 3:
        del stored["counts"]["absent"]
    manifest.write_text(json.dumps({**stored, "schema_version": version}))
    return folder


def test_rows(today: Path, former: Path) -> None:
    rows = list(open_dataset(today).rows())
    assert list(open_dataset(former).rows()) == rows
    assert any(row["error_detail"] == DETAIL for row in rows)
    for columns in (["error"], ["error_detail", "id"], ["id"], ["absent"], ["absent", "id"], ["annotations"]):
        wanted = [{name: row[name] for name in columns} for row in rows]
        found = NumberedRows(open_dataset(former)).rows_at(range(len(rows)), columns)
        assert [{name: row[name] for name in columns} for row in found] == wanted


@pytest.mark.parametrize(
    "columns",
    [
        ["annotations.list.element.presence"],
        ["annotations.list.element.area"],
        ["annotations.list.element.group", "absent.list.element.phrase", "annotations.list.element.bbox"],
        ["annotations.list.element.score", "annotations.list.element.segmentation.counts", "file_name"],
        ["absent.list.element.span"],
    ],
)
def test_parts_of_rows(columns: list[str], today: Path, former: Path) -> None:
    wanted = list(open_dataset(today).tables(columns))
    for table, expected in zip(open_dataset(former).tables(columns), wanted, strict=True):
        assert set(table.column_names) == set(expected.column_names)
        for name in expected.column_names:
            assert table[name].type == expected[name].type
        assert table.to_pylist() == expected.select(table.column_names).to_pylist()


def test_lists_that_are_null_stay_so(today: Path, former: Path, tmp_path: Path) -> None:
    path = former / "data" / "00000.parquet"
    table = pq.read_table(path)
    lists = pa.array([None, *table["annotations"].to_pylist()[1:]], table.schema.field("annotations").type)
    pq.write_table(table.set_column(table.column_names.index("annotations"), "annotations", lists), tmp_path / "a")
    found = [
        row for batch in read_batches(pq.ParquetFile(tmp_path / "a"), ["annotations"]) for row in batch.to_pylist()
    ]
    wanted = pq.read_table(today / "data" / "00000.parquet", columns=["annotations"]).to_pylist()
    assert found == [{"annotations": None}, *wanted[1:]]


def test_figures_and_pages(today: Path, former: Path) -> None:
    search = Search(status="failed", reason="missing_image")
    seen: list[tuple[Any, ...]] = []
    for folder in (today, former):
        pages = make_viewer(folder, None).pages
        with closing(pages.index) as index:
            index.build()
            seen.append(
                (statistics(index), index.page(search, 0, 100), pages.grid(search, 1).replace(str(folder), "DATASET"))
            )
    assert seen[0] == seen[1]
    figures, found, page = seen[1]
    assert len(found) == {entry["reason"]: entry["count"] for entry in figures["errors"]}["missing_image"] > 0
    assert "synthetic fault of" in page


def test_samples_for_training(today: Path, former: Path) -> None:
    def faults(folder: Path) -> list[tuple[str, str | None, str | None]]:
        stream = RegionStream(folder, Contents(images=False), keep_failed=True)
        return sorted((sample["sample_id"], sample["error"], sample["error_detail"]) for sample in stream)

    assert faults(former) == faults(today)
    assert any(detail == DETAIL for _, _, detail in faults(former))


def test_exports(today: Path, former: Path, tmp_path: Path) -> None:
    counts = []
    for name, folder in (("today", today), ("former", former)):
        request = ExportRequest(exporter=EXPORTERS["coco"], out=tmp_path / name)
        counts.append(export_dataset(open_dataset(folder), request).counts())
    assert counts[0] == counts[1]
    for path in (tmp_path / "today").rglob("*.json"):
        assert (tmp_path / "former" / path.relative_to(tmp_path / "today")).read_bytes() == path.read_bytes()


def test_validation(former: Path, tmp_path: Path) -> None:
    assert list(validate(former)) == []
    folder = Path(shutil.copytree(former, tmp_path / "dataset"))
    path = folder / "data" / "00000.parquet"
    table = pq.read_table(path)
    odd = pa.array(["odd", *table["error"].to_pylist()[1:]], pa.string())
    pq.write_table(table.set_column(table.column_names.index("error"), "error", odd), path)
    assert any("expected a reason from" in problem and "got 'odd'" in problem for problem in validate(folder))
