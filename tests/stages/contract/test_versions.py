"""Columns of older versions; tests/pipeline/dataset/test_versions.py reads whole datasets of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract.schema import DATASET_SCHEMA, dataset_schema, mapped_record
from stages.contract.versions import SCHEMA_VERSION, field_of, read_batches, schema_of
from tests.stages.write.rows import annotated, failed, write_shards


def test_todays_columns_are_those_of_the_last_version() -> None:
    assert pa.schema(schema_of(SCHEMA_VERSION)) == DATASET_SCHEMA
    assert [field.name for field in schema_of(2)] == [name for name in DATASET_SCHEMA.names if name != "absent"]
    before_importance = pa.schema(schema_of(3))
    for name in ("annotations", "absent"):
        fields = [entry.name for entry in DATASET_SCHEMA.field(name).type.value_type]
        assert [entry.name for entry in before_importance.field(name).type.value_type] == [
            field for field in fields if field != "importance"
        ]
    areas = [pa.schema(schema_of(version)).field("annotations").type.value_type.field("area") for version in (4, 5)]
    assert [area.type for area in areas] == [pa.float32(), pa.int64()]
    former = pa.schema(schema_of(1))
    assert "error_detail" not in former.names
    assert {"presence", "group", "importance"}.isdisjoint(
        entry.name for entry in former.field("annotations").type.value_type
    )


@pytest.mark.parametrize(
    "columns", [["heat_maps"], ["heat_maps.list.element.presence"], ["phrases", "heat_maps", "id"]]
)
def test_heat_maps_from_before_presence_was_known(columns: list[str], tmp_path: Path) -> None:
    table = write_shards([annotated(0), failed(1), annotated(2)], tmp_path / "today", heat_maps=True)
    fields = [field_of(field, 2) for field in dataset_schema(embed_images=False, heat_maps=True)]
    fields = [field for field in fields if field.name != "absent"]
    rows: list[dict[str, Any]] = table.to_pylist()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), tmp_path / "former.parquet")
    [shard] = (tmp_path / "today").glob("*.parquet")
    [found], [wanted] = (
        list(read_batches(pq.ParquetFile(path), columns)) for path in (tmp_path / "former.parquet", shard)
    )
    assert found.schema.types == wanted.schema.types
    assert found.to_pylist() == wanted.to_pylist()


def test_phrases_from_before_importance_was_known(tmp_path: Path) -> None:
    record = annotated(0)
    told = replace(record, phrases=tuple(replace(phrase, importance=0.25) for phrase in record.phrases))
    table = write_shards([told], tmp_path / "today", heat_maps=True)
    assert {phrase["importance"] for phrase in table["phrases"][0].as_py()} == {0.25}
    assert {region["importance"] for region in table["annotations"][0].as_py()} == {0.25}
    assert {phrase.importance for phrase in mapped_record(table.to_pylist()[0]).phrases} == {0.25}
    fields = [field_of(field, 3) for field in dataset_schema(embed_images=False, heat_maps=True)]
    pq.write_table(pa.Table.from_pylist(table.to_pylist(), schema=pa.schema(fields)), tmp_path / "former.parquet")
    [found] = read_batches(pq.ParquetFile(tmp_path / "former.parquet"), ["phrases", "annotations", "absent"])
    assert found.schema.types == table.select(["phrases", "annotations", "absent"]).schema.types
    [row] = found.to_pylist()
    assert {entry["importance"] for entry in (*row["phrases"], *row["annotations"])} == {None}


def test_a_record_of_them_does_not_tell_presence(tmp_path: Path) -> None:
    [row] = write_shards([annotated(0)], tmp_path, heat_maps=True).to_pylist()
    assert {heat_map.presence for heat_map in mapped_record(row).heat_maps} == {None}
