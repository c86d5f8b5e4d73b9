"""Every filter and order of the index, against plain Python over the rows of a dataset."""

import json
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.dataset import index as index_module
from phrasebox.pipeline.dataset.folder import NumberedRows, open_any_dataset, open_dataset
from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.selection import Search
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.schema import DATASET_SCHEMA
from tests.build.datasets import Json, copy_of, list_shards
from tests.messages import expect_error
from tests.pipeline.dataset.plain import find, marks_of

ENDLESS = "(SELECT sum(a.range + b.range) FROM range(1000000) a, range(1000000) b) > score"


def page(index: Index, search: Search) -> list[int]:
    return index.page(search, 0, 10_000)


SEARCHES = [
    Search(),
    Search(mark="bad", score_min=0.6),
    *(Search(status=status) for status in ("regions", "no_regions", "no_phrases", "failed")),
    Search(reason="missing_image", status="failed"),
    Search(
        phrase="a", head="man", score_min=0.2, area_min=0.001, where="w > h", regions_min=2, mark="none"
    ),
]


@pytest.mark.parametrize(
    "search", SEARCHES, ids=lambda search: json.dumps(search.model_dump(exclude_defaults=True))
)
def test_filters_and_orders(search: Search, index: Index, rows: list[Json]) -> None:
    expected = find(rows, marks_of(rows), search)
    assert index.count(search) == len(expected)
    assert index.count_by_score(search)[0] == sum(len(one.regions) for one in expected)
    assert page(index, search) == [one.number for one in expected]
    best = {one.number: one.best or -1.0 for one in expected}
    counts = {one.number: len(one.row["annotations"]) for one in expected}
    for sort, values in (("score_high", best), ("regions", counts)):
        ordered = sorted(values, key=values.__getitem__, reverse=True)
        assert page(index, search.model_copy(update={"sort": sort})) == ordered
    with_scores = [number for number in sorted(best, key=best.__getitem__) if best[number] >= 0]
    assert page(index, search.model_copy(update={"sort": "score_low"}))[: len(with_scores)] == with_scores


def test_random_orders(index: Index) -> None:
    """The same for a seed, page by page and of a smaller choice; another for each seed."""
    orders = [page(index, Search(sort="random", seed=seed)) for seed in range(3)]
    assert all(sorted(order) == list(range(500)) for order in orders)
    assert len({tuple(order[:9]) for order in [list(range(500)), *orders]}) == 4
    few = Search(sort="random", seed=2, head="man")
    chosen = set(page(index, few))
    in_pages = [number for offset in range(0, 500, 41) for number in index.page(few, offset, 41)]
    assert in_pages == [number for number in orders[2] if number in chosen]


def test_rows_by_image_id(index: Index, rows: list[Json]) -> None:
    assert [index.row_of(row["id"]) for row in rows[170:190]] == list(range(170, 190))
    assert index.row_of(1) is None


def test_what_is_no_condition(index: Index) -> None:
    """Whether something stands before it or not; nothing is found meanwhile."""
    for where, phrase in (("true) OR (true", ""), ("true) OR (true", "man"), ("row < 3", "")):
        with expect_error(ConfigError, key="where"):
            index.count(Search(where=where, phrase=phrase))


@pytest.mark.parametrize(
    "where",
    [
        "phrase::INTEGER > 3",
        ENDLESS,
    ],
)
def test_a_condition_that_fails_while_it_runs(where: str, index: Index, monkeypatch) -> None:
    """Is given up, and the next search is answered."""
    monkeypatch.setattr(index_module, "QUERY_SECONDS", 0.2)
    index.check(Search(where=where))
    with expect_error(ConfigError, key=("", "where")):
        index.count(Search(where=where))
    monkeypatch.undo()
    assert index.count(Search()) == 500


def test_building_tells_how_far_it_is(synthetic_dataset: Path) -> None:
    told: list[tuple[int, int]] = []
    with closing(Index(open_dataset(synthetic_dataset), {})) as index:
        assert not index.wait(0)
        assert index.count(Search()) == 0
        index.build(lambda done, total: told.append((done, total)))
        assert index.wait(0)
        assert index.count(Search()) == 500, "what was counted meanwhile is forgotten"
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_full_disk_is_said_to_those_who_wait(
    synthetic_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_INSERTS", "SELECT error('No space left on device')")
    with closing(Index(open_dataset(synthetic_dataset), {})) as index:
        for ask in (index.build, lambda: index.wait(0)):
            with expect_error(InputError):
                ask()


@pytest.fixture
def damaged(synthetic_dataset: Path, tmp_path: Path) -> Path:
    """With half of the second shard of three."""
    folder = copy_of(synthetic_dataset, tmp_path)
    shard = folder / "data" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:5000])
    return folder


def test_a_damaged_shard_is_left_out_while_the_run_has_not_finished(
    damaged: Path, rows: list[Json]
) -> None:
    """A run may still be writing it; numbers are those of the row reader."""
    with closing(Index(open_dataset(damaged), {})) as index, expect_error(InputError):
        index.build()
    (damaged / "dataset.json").unlink()
    dataset = open_any_dataset(damaged)
    with closing(Index(dataset, {})) as index:
        index.build()
        numbers = page(index, Search())
    names = [row["sample_id"] for row in NumberedRows(dataset).rows_at(numbers, ["sample_id"])]
    assert names == [row["sample_id"] for row in rows[:180] + rows[360:]]


def test_a_dataset_without_rows(synthetic_dataset: Path, tmp_path: Path) -> None:
    folder = copy_of(synthetic_dataset, tmp_path)
    for shard in (folder / "data").iterdir():
        shard.unlink()
    pq.write_table(DATASET_SCHEMA.empty_table(), folder / "data" / "00000.parquet")
    list_shards(folder)
    with closing(Index(open_dataset(folder), {})) as index:
        index.build()
        assert page(index, Search(phrase="man", sort="random")) == []
        assert index.row_of(1) is None
