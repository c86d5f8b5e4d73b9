"""The light columns of all rows in a temporary DuckDB database, for search and statistics.

Masks, boxes' ids and images stay in the shards: a million rows with three regions each are some 150 MB here, on
disk. Answers are numbers of rows, with which `NumberedRows` reads the rows themselves.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contract.errors import ConfigError, InputError
from stages.contract.schema import DATASET_SCHEMA
from stages.dataset.folder import Dataset, open_shard, tables_in
from stages.dataset.search import Search, literal
from stages.dataset.selection import CONDITION_COLUMNS, Selection, Selector, first_line, sandboxed

QUERY_SECONDS: Final = 30.0
"""A query that takes longer is given up: a condition can be written that never ends."""

_SHARDS_AT_ONCE: Final = 40
"""Shards that are put into the database together; each insert has a fixed cost of some milliseconds."""

_BATCH_ROWS: Final = 1 << 16
"""Rows that are read at once; reading more would not be faster."""

_LIGHT_COLUMNS: Final = ("id", "error", *CONDITION_COLUMNS)

_TABLES: Final = """
CREATE TABLE samples (
    row BIGINT, id BIGINT, sample_id VARCHAR, file_name VARCHAR, width INTEGER, height INTEGER,
    phrase_count INTEGER, region_count BIGINT, best FLOAT, status VARCHAR, reason VARCHAR
);
CREATE TABLE captions (row BIGINT, caption_index INTEGER, caption VARCHAR);
CREATE TABLE regions (
    row BIGINT, phrase VARCHAR, head VARCHAR, score FLOAT, similarity FLOAT, area FLOAT, area_share DOUBLE,
    x FLOAT, y FLOAT, w FLOAT, h FLOAT, caption_index INTEGER
);
CREATE TABLE marks (sample_id VARCHAR, mark VARCHAR);
CREATE VIEW found AS
    SELECT r.*, c.caption, s.sample_id, s.file_name, s.width, s.height, s.phrase_count, s.region_count, m.mark
    FROM regions r JOIN samples s USING (row)
    LEFT JOIN captions c ON c.row = r.row AND c.caption_index = r.caption_index
    LEFT JOIN marks m ON m.sample_id = s.sample_id;
CREATE VIEW marked AS SELECT s.*, m.mark FROM samples s LEFT JOIN marks m ON m.sample_id = s.sample_id;
"""

_ORDERS: Final = {
    "dataset": "row",
    "score_high": "best DESC NULLS LAST, row",
    "score_low": "best NULLS LAST, row",
    "regions": "region_count DESC, row",
    # ids are hashes already: a multiplication by an odd number orders them anew
    "random": "(id::HUGEINT * {factor}) % 9007199254740992, row",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How much a search finds: samples, and regions that fulfil its conditions on regions."""

    samples: int
    regions: int


class Index:
    """Search over a dataset. Empty until `build`; may be asked from several threads after it.

    Raises InputError for damaged shards of a finished dataset; those of an unfinished one are left out.
    """

    def __init__(self, dataset: Dataset, marks: Mapping[str, str]) -> None:
        self.dataset = dataset
        self.done = 0
        self._ready = threading.Event()
        self._failure: InputError | None = None
        self._counts: dict[Search, Count] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="phrasebox-index-")
        self._connection: Any = sandboxed(str(Path(self._folder.name) / "index.duckdb"), memory_limit="2GB")
        self._connection.execute(_TABLES)
        self.mark_all(marks)

    def close(self) -> None:
        """Delete the database."""
        self._connection.close()
        self._folder.cleanup()

    @property
    def ready(self) -> bool:
        """Whether all shards are in."""
        return self._ready.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for `ready`. Raises the InputError that ended `build`."""
        self._ready.wait(seconds)
        if self._failure is not None:
            raise self._failure
        return self.ready

    def build(self, told: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read all shards. told: called with the shards done and their number."""
        try:
            self._build(told)
        except InputError as error:
            self._failure = error
            raise
        finally:
            self._counts = {}
            self._ready.set()

    def _build(self, told: Callable[[int, int], None]) -> None:
        first, waiting = 0, []
        for path in self.dataset.shards:
            try:
                with open_shard(path) as file:
                    parts = [table for _, table in tables_in(file, _LIGHT_COLUMNS, _BATCH_ROWS, threads=False)]
                table = pa.concat_tables(parts) if parts else DATASET_SCHEMA.empty_table()
            except InputError:
                if self.dataset.finished:
                    raise
                table = DATASET_SCHEMA.empty_table()  # a run may be writing it
            waiting.append(_light(table, first))
            first += table.num_rows
            self.done += 1
            if len(waiting) == _SHARDS_AT_ONCE or self.done == len(self.dataset.shards):
                self._insert(waiting)
                waiting = []
            told(self.done, len(self.dataset.shards))

    def _insert(self, parts: Sequence[Mapping[str, Any]]) -> None:
        with closing(self._connection.cursor()) as cursor:
            for name in ("samples", "captions", "regions"):
                cursor.register("part", pa.concat_tables([part[name] for part in parts]))
                cursor.execute(f"INSERT INTO {name} SELECT * FROM part")
                cursor.unregister("part")

    def mark_all(self, marks: Mapping[str, str]) -> None:
        """Replace all marks."""
        table = pa.table({"sample_id": pa.array(marks, pa.string()), "mark": pa.array(marks.values(), pa.string())})
        with closing(self._connection.cursor()) as cursor:
            cursor.begin()
            cursor.execute("DELETE FROM marks")
            cursor.register("part", table)
            cursor.execute("INSERT INTO marks SELECT * FROM part")
            cursor.commit()
            cursor.unregister("part")
        self._counts = {}

    def check(self, search: Search) -> None:
        """Raise ConfigError if the search's condition is no SQL condition; the index may be empty."""
        _hits(search)

    def count(self, search: Search) -> Count:
        """How much a search finds. Raises ConfigError if its condition is no SQL condition."""
        counts = self._counts  # of now: marks may be replaced while this is counted
        if search not in counts:
            rows = self._ask(f"SELECT count(*), coalesce(sum(regions), 0) FROM ({_hits(search)})")
            counts[search] = Count(samples=int(rows[0][0]), regions=int(rows[0][1]))
        return counts[search]

    def page(self, search: Search, offset: int, limit: int) -> list[int]:
        """Numbers of the rows found, in the search's order, from `offset` on. Raises as `count`."""
        order = _ORDERS[search.sort].format(factor=_factor(search.seed))
        rows = self._ask(f"SELECT row FROM ({_hits(search)}) ORDER BY {order} LIMIT {limit:d} OFFSET {offset:d}")
        return [row for (row,) in rows]

    def row_of(self, image_id: int) -> int | None:
        """Number of the row with an image id."""
        rows = self._ask(f"SELECT row FROM samples WHERE id = {image_id:d}")
        return rows[0][0] if rows else None

    def suggest(self, column: Literal["phrase", "head"], typed: str, most: int) -> list[str]:
        """The most frequent phrases or heads that contain what was typed."""
        text = literal(" ".join(typed.casefold().split()))
        rows = self._ask(
            f"SELECT {column} FROM regions WHERE contains({column}, {text}) "
            f"GROUP BY 1 ORDER BY starts_with({column}, {text}) DESC, count(*) DESC, 1 LIMIT {most:d}"
        )
        return [word for (word,) in rows]

    def ask(self, search: Search, query: str) -> list[tuple[Any, ...]]:
        """A query over what a search finds, for statistics. Raises as `count`.

        query  names `hit_samples` (columns of `samples`, `mark`) and `hit_regions` (columns of `regions`)
        """
        hits, condition = _hits(search), search.region_condition()
        regions = f"SELECT * FROM found WHERE (\n{condition}\n)" if condition else "SELECT * FROM regions WHERE true"
        if search.sample_condition() or search.status or search.reason:
            regions += " AND row IN (SELECT row FROM hit_samples)"
        return self._ask(f"WITH hit_samples AS ({hits}), hit_regions AS ({regions}) {query}")

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor, _limited(cursor):
            try:
                rows: list[tuple[Any, ...]] = cursor.execute(query).fetchall()
            except duckdb.InterruptException as error:
                raise ConfigError(f"the search took longer than {QUERY_SECONDS:g} s and was given up") from error
            except duckdb.Error as error:
                raise ConfigError(f"where: not an SQL condition: {first_line(error)}") from error
        return rows


@contextmanager
def _limited(cursor: Any) -> Iterator[None]:
    timer = threading.Timer(QUERY_SECONDS, cursor.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _hits(search: Search) -> str:
    """SQL of the samples found, with the best score and the number of the regions that fulfil the conditions.

    Raises ConfigError unless the search's own SQL is one condition over the columns that exports know, too.
    """
    Selector(Selection(where=search.where))  # by itself: with others around it, it could leave its brackets
    condition = search.region_condition()
    wanted = [f"{name} = {literal(getattr(search, name))}" for name in ("status", "reason") if getattr(search, name)]
    where = " AND ".join(filter(None, [search.sample_condition(), *wanted])) or "true"
    if not condition:
        return f"SELECT *, region_count AS regions FROM marked WHERE {where}"
    regions = f"SELECT row, max(score) AS best, count(*) AS regions FROM found WHERE (\n{condition}\n) GROUP BY row"
    return f"SELECT m.* EXCLUDE (best), f.best, f.regions FROM marked m JOIN ({regions}) f USING (row) WHERE {where}"


def _factor(seed: int) -> int:
    """An odd number below 2^62, another for every seed (the multiplier of splitmix64)."""
    return ((seed + 1) * 0x9E3779B97F4A7C15) % (1 << 62) | 1


def _light(table: Any, first: int) -> dict[str, Any]:
    """The tables of one shard whose first row has the number `first`."""
    annotations, captions = table["annotations"].combine_chunks(), table["captions"].combine_chunks()
    row = pa.array(np.arange(first, first + table.num_rows))
    owners, regions = pc.list_parent_indices(annotations), annotations.flatten()
    counts = pc.list_value_length(annotations).cast(pa.int64())
    scores = regions.field("score").to_numpy()
    best = np.full(table.num_rows, np.nan, np.float32)
    np.fmax.at(best, owners.to_numpy(), scores)
    phrase_counts = table["phrase_count"].to_numpy()
    errors = table["error"].combine_chunks()
    failed = errors.is_valid().to_numpy(zero_copy_only=False)
    status = np.select(
        [failed, counts.to_numpy() > 0, phrase_counts > 0], ["failed", "regions", "no_regions"], "no_phrases"
    )
    pixels = table["width"].to_numpy().astype(np.float64) * table["height"].to_numpy()
    boxes = regions.field("bbox").flatten().to_numpy().reshape(-1, 4)
    caption_owners = pc.list_parent_indices(captions)
    starts = captions.offsets.to_numpy()[:-1] - captions.offsets.to_numpy()[0]
    numbers = np.arange(len(caption_owners)) - starts[caption_owners.to_numpy()]
    return {
        "samples": pa.table(
            {
                "row": row,
                **{name: table[name] for name in ("id", "sample_id", "file_name", "width", "height", "phrase_count")},
                "region_count": counts,
                "best": pa.array(best, mask=np.isnan(best)),
                "status": pa.array(status.astype(str)),
                "reason": errors,
            }
        ),
        "captions": pa.table(
            {"row": row.take(caption_owners), "caption_index": numbers.astype(np.int32), "caption": captions.flatten()}
        ),
        "regions": pa.table(
            {
                "row": row.take(owners),
                **{name: regions.field(name) for name in ("phrase", "head", "score", "similarity", "area")},
                "area_share": regions.field("area").to_numpy().astype(np.float64) / pixels[owners.to_numpy()],
                **{name: boxes[:, place] for place, name in enumerate("xywh")},
                "caption_index": regions.field("caption_index"),
            }
        ),
    }
