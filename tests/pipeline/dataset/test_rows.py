"""Rows by number, from shards with several row groups."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phrasebox.pipeline.dataset import folder as folder_module
from phrasebox.pipeline.dataset.folder import Dataset, NumberedRows, open_dataset
from phrasebox.stages.contract.errors import InputError
from tests.build.datasets import Json, copy_of, list_shards
from tests.messages import expect_error
from tests.synthetic import write_synthetic

ROWS = 130


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """With images, in shards of 50, 50 and 30 rows with row groups of 20; another between them is empty."""
    folder = write_synthetic(
        tmp_path_factory.mktemp("rows") / "dataset", ROWS, rows_per_file=50, embed_images=True
    )
    for path in sorted((folder / "data").iterdir()):
        table = pq.read_table(path)
        pq.write_table(table, path, row_group_size=20)
    pq.write_table(table.slice(0, 0), folder / "data" / "00000b.parquet")
    list_shards(folder)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> list[Json]:
    groups = [pq.read_metadata(path).num_row_groups for path in dataset.shards]
    assert [groups[0], *groups[2:]] == [3, 3, 2]
    return list(dataset.rows(dataset.columns))


@settings(max_examples=30)
@given(
    numbers=st.lists(st.integers(-2, ROWS + 20) | st.just(10**12), max_size=40),
    batch=st.sampled_from([3, 20, 512]),
)
def test_any_numbers(numbers: list[int], batch: int, dataset: Dataset, rows: list[Json]) -> None:
    """In any order, twice, beyond the end; the batches end inside and at the end of row groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "BATCH_ROWS", batch)
        numbered_rows = NumberedRows(dataset).rows_at(numbers, ["id", "annotations"])
    expected = [rows[number] for number in numbers if 0 <= number < ROWS]
    assert numbered_rows == [{"id": row["id"], "annotations": row["annotations"]} for row in expected]


def test_a_damaged_shard_is_an_error_of_its_rows_alone(dataset: Dataset, tmp_path: Path) -> None:
    folder = copy_of(dataset.path, tmp_path)
    shard = folder / "data" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    rows = NumberedRows(open_dataset(folder))
    assert len(rows.rows_at([0, 49], ["id"])) == 2
    with expect_error(InputError):
        rows.rows_at([50], ["id"])
