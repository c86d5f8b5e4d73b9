from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract.schema import DATASET_SCHEMA, records_to_rows
from stages.write import IMAGE_ROW_GROUP_ROWS, ROW_GROUP_ROWS, ShardWriter
from tests.stages.write.rows import annotated, mixed, write_shards


def rows_of(folder: Path) -> dict[str, int]:
    return {path.name: pq.read_metadata(path).num_rows for path in sorted(folder.iterdir())}


def table_of(rows: int, start: int = 0) -> Any:
    return pa.table({"id": pa.array(range(start, start + rows), pa.int64())})


@pytest.mark.parametrize("parts", [[11], [1] * 11, [3, 0, 8], [7, 4]], ids=str)
@pytest.mark.parametrize("rows_per_file", [1, 4, 11, 100])
def test_rows_of_every_file(parts: list[int], rows_per_file: int, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, rows_per_file)
    start = 0
    for part in parts:
        writer.write(table_of(part, start))
        start += part
    writer.close()
    counts = list(rows_of(tmp_path).values())
    assert sum(counts) == 11
    assert all(count == rows_per_file for count in counts[:-1])
    assert list(rows_of(tmp_path)) == [f"{n:05d}.parquet" for n in range(len(counts))]
    ids = [n for name in rows_of(tmp_path) for n in pq.read_table(tmp_path / name)["id"].to_pylist()]
    assert ids == list(range(11))


def test_nothing_to_write_is_no_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 3)
    writer.write(table_of(0))
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_numbers_go_on_after_those_that_are_there(tmp_path: Path) -> None:
    for name in ("00003.parquet", "part-0.parquet"):
        pq.write_table(table_of(1), tmp_path / name)
    (tmp_path / ".00009.parquet.123.tmp").touch()
    writer = ShardWriter(tmp_path, 2)
    writer.write(table_of(3))
    writer.close()
    assert {"00003.parquet", "00004.parquet", "00005.parquet"} <= {path.name for path in tmp_path.iterdir()}
    assert pq.read_metadata(tmp_path / "00003.parquet").num_rows == 1


def test_a_crash_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.write_table

    def full_disk(table: Any, path: Path, **options: Any) -> None:
        write(table, path, **options)
        if "00001" in path.name:
            path.write_bytes(path.read_bytes()[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    writer = ShardWriter(tmp_path, 2)
    with pytest.raises(OSError, match="No space left"):
        writer.write(table_of(5))
    assert rows_of(tmp_path) == {"00000.parquet": 2}


def test_a_shard_whose_write_was_interrupted_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def rename_and_stop(path: Path, target: Path) -> None:
        rename(path, target)
        raise KeyboardInterrupt

    writer = ShardWriter(tmp_path, 2)
    monkeypatch.setattr(Path, "replace", rename_and_stop)
    with pytest.raises(KeyboardInterrupt):
        writer.write(table_of(3))
    monkeypatch.undo()
    writer.close()
    assert rows_of(tmp_path) == {"00000.parquet": 2, "00001.parquet": 1}
    assert pq.read_table(tmp_path)["id"].to_pylist() == [0, 1, 2]


def test_schema_compression_and_contents(tmp_path: Path) -> None:
    table = write_shards(mixed(), tmp_path, rows_per_file=100)
    with pq.ParquetFile(tmp_path / "00000.parquet") as file:
        assert file.schema_arrow.equals(DATASET_SCHEMA)
        group = file.metadata.row_group(0)
        assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}
        assert file.read().to_pylist() == table.to_pylist()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards([annotated(n) for n in range(5)], tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_rows_wait_until_a_file_is_full(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 3)
    writer.write(records_to_rows([annotated(0), annotated(1)], embed_images=False))
    assert list(tmp_path.iterdir()) == []
    writer.write(records_to_rows([annotated(2)], embed_images=False))
    assert rows_of(tmp_path) == {"00000.parquet": 3}


@pytest.mark.parametrize("embed_images", [False, True])
def test_row_groups(embed_images: bool, tmp_path: Path) -> None:
    """Small ones with images, as who wants one row reads its group."""
    few = records_to_rows([annotated(number) for number in range(50)], embed_images=embed_images)
    writer = ShardWriter(tmp_path, 1050)
    for _ in range(22):
        writer.write(few)
    writer.close()
    groups = []
    for path in sorted(tmp_path.iterdir()):
        metadata = pq.read_metadata(path)
        groups.append([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
    assert groups == ([[100] * 10 + [50], [50]] if embed_images else [[1000, 50], [50]])
    assert (IMAGE_ROW_GROUP_ROWS, ROW_GROUP_ROWS) == (100, 1000)
