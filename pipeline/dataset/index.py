"""Search over the light columns of all rows, in a temporary DuckDB database.

Masks and images stay in the shards: a million rows with three regions each take about 170 MB
here, on disk. Answers are numbers of rows, with which `NumberedRows` reads the rows themselves.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa

from phrasebox.pipeline.dataset.condition_check import check_condition
from phrasebox.pipeline.dataset.folder import Dataset, tables_in
from phrasebox.pipeline.dataset.score_choice import SCORE_COUNTS, ranking_of
from phrasebox.pipeline.dataset.selection import (
    CONDITION_COLUMNS,
    REGION,
    Search,
    connect_sandboxed,
    first_line,
    literal,
)
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.score_threshold import ScoreRanking

QUERY_SECONDS: Final = 30.0  # Limit of a query, since a condition may never end
_SHARDS_AT_ONCE: Final = (
    40  # Shards that are inserted together: each insert has a fixed cost of some milliseconds
)

_ABSENT: Final = tuple(f"absent.list.element.{name}" for name in ("phrase", "presence"))
_LIGHT_COLUMNS: Final = ("id", "error", *CONDITION_COLUMNS, f"{REGION}id", f"{REGION}group", *_ABSENT)

_TABLES: Final = """
CREATE TABLE samples (
    row BIGINT, id BIGINT, sample_id VARCHAR, file_name VARCHAR, width INTEGER, height INTEGER,
    phrase_count INTEGER, region_count BIGINT, thing_count BIGINT, best FLOAT, status VARCHAR, reason VARCHAR
);
CREATE TABLE captions (row BIGINT, caption_index INTEGER, caption VARCHAR);
CREATE TABLE regions (
    row BIGINT, annotation BIGINT, phrase VARCHAR, head VARCHAR, score FLOAT, similarity FLOAT, presence FLOAT,
    area BIGINT, bbox_of VARCHAR, area_share DOUBLE, box_share DOUBLE, x FLOAT, y FLOAT, w FLOAT, h FLOAT,
    caption_index INTEGER
);
CREATE TABLE presences (row BIGINT, phrase VARCHAR, presence FLOAT);
CREATE TABLE marks (sample_id VARCHAR, mark VARCHAR);
CREATE VIEW captioned AS
    SELECT r.*, c.caption, s.sample_id, s.file_name, s.width, s.height, s.phrase_count, s.region_count, m.mark
    FROM regions r JOIN samples s USING (row)
    LEFT JOIN captions c ON c.row = r.row AND c.caption_index = r.caption_index
    LEFT JOIN marks m ON m.sample_id = s.sample_id;
CREATE VIEW marked AS SELECT s.*, m.mark FROM samples s LEFT JOIN marks m ON m.sample_id = s.sample_id;
"""

_INSERTS: Final = """
INSERT INTO samples
    SELECT row, id, sample_id, file_name, width, height, phrase_count, len(annotations),
        CASE WHEN len(annotations) = 0 OR list_max([a."group" for a in annotations]) IS NOT NULL
            THEN list_unique([a."group" for a in annotations]) END,
        list_max([a.score for a in annotations]),
        CASE WHEN error IS NOT NULL THEN 'failed' WHEN len(annotations) > 0 THEN 'regions'
            WHEN phrase_count > 0 THEN 'no_regions' ELSE 'no_phrases' END,
        error
    FROM part;
INSERT INTO captions SELECT row, unnest(range(len(captions))), unnest(captions) FROM part;
INSERT INTO regions
    SELECT row, a.id, a.phrase, a.head, a.score, a.similarity, a.presence, a.area, a.bbox_of,
        a.area::DOUBLE / (width::DOUBLE * height), a.bbox[3]::DOUBLE * a.bbox[4] / (width::DOUBLE * height),
        a.bbox[1], a.bbox[2], a.bbox[3], a.bbox[4], a.caption_index
    FROM (SELECT row, width, height, unnest(annotations) AS a FROM part);
INSERT INTO presences
    SELECT row, phrase, any_value(presence)
    FROM (
        SELECT row, unnest(annotations).phrase AS phrase, unnest(annotations).presence AS presence FROM part
        UNION ALL SELECT row, unnest(absent).phrase, unnest(absent).presence FROM part
    )
    WHERE presence IS NOT NULL GROUP BY row, phrase;
"""
"""From `part`: rows of shards with the light columns and `row`, their number in the dataset."""

SCORE_EDGES: Final = tuple(round(step * 0.05, 2) for step in range(21))

_ORDERS: Final = {
    "dataset": "row",
    "score_high": "best DESC NULLS LAST, row",
    "score_low": "best NULLS LAST, row",
    "regions": "region_count DESC, row",
    # ids are hashes, so multiplying them by an odd number gives another order
    "random": "(id::HUGEINT * {factor}) % 9007199254740992, row",
}

_fetch_rows: Final[Callable[[Any], Any]] = duckdb.DuckDBPyConnection.fetchall


class Index:
    """Search over a dataset. It is empty until `build`; after that, several threads may search.

    Damaged shards of a finished dataset raise InputError; those of an unfinished one are left out.
    """

    def __init__(self, dataset: Dataset, marks: Mapping[str, str]) -> None:
        self.dataset = dataset
        self.shards_read = 0
        self._ready = threading.Event()
        self._failure: InputError | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="phrasebox-index-")
        self._connection: Any = connect_sandboxed(
            str(Path(self._folder.name) / "index.duckdb"), memory_limit="2GB"
        )
        self._connection.execute(_TABLES)
        self.mark_all(marks)

    def close(self) -> None:
        """Delete the database."""
        self._connection.close()
        self.delete_files()

    def delete_files(self) -> None:
        """Delete the files of the database, although a thread may still compute."""
        self._folder.cleanup()

    @property
    def ready(self) -> bool:
        """Whether all shards have been read."""
        return self._ready.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for `ready`. Raise the InputError that ended `build`."""
        self._ready.wait(seconds)
        if self._failure is not None:
            raise self._failure
        return self.ready

    def build(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read all shards.

        Call `on_progress` with the number of shards read and the number of all.
        """
        try:
            self._build(on_progress)
        except InputError as error:
            self._failure = error
            raise
        except duckdb.Error as error:  # such as a full disk
            self._failure = InputError(
                f"the index in {self._folder.name} cannot be written: {first_line(error)}"
            )
            raise self._failure from error
        finally:
            self._ready.set()

    def _build(self, on_progress: Callable[[int, int], None]) -> None:
        first = 0
        pending = []
        for path in self.dataset.shards:
            try:
                with self.dataset.open_shard(path) as file:
                    tables = [table for _, table in tables_in(file, _LIGHT_COLUMNS, threads=False)]
            except InputError:
                if self.dataset.is_finished:
                    raise
                tables = []  # a run may be writing it
            for table in tables:
                pending.append(
                    table.append_column("row", pa.array(np.arange(first, first + table.num_rows)))
                )
                first += table.num_rows
            self.shards_read += 1
            if pending and (
                self.shards_read % _SHARDS_AT_ONCE == 0 or self.shards_read == len(self.dataset.shards)
            ):
                self._store(pa.concat_tables(pending), _INSERTS)
                pending = []
            on_progress(self.shards_read, len(self.dataset.shards))

    def mark_all(self, marks: Mapping[str, str]) -> None:
        """Replace all marks."""
        columns = {"sample_id": [*marks], "mark": [*marks.values()]}
        table = pa.table(columns, pa.schema([(name, pa.string()) for name in columns]))
        self._store(table, "DELETE FROM marks; INSERT INTO marks SELECT * FROM part")

    def _store(self, part: Any, statements: str) -> None:
        """Run SQL statements over a table `part`, all of them or none."""
        with closing(self._connection.cursor()) as cursor:
            cursor.begin()
            cursor.register("part", part)
            cursor.execute(statements)
            cursor.commit()
            cursor.unregister("part")

    @staticmethod
    def check(search: Search) -> None:
        """Raise ConfigError unless the search's SQL is one condition over `REGION_COLUMNS`."""
        if search.where.strip():
            check_condition(search.where)  # separately: among others, it could close their brackets

    def count(self, search: Search) -> int:
        """Count the samples of a search.

        Raise ConfigError if its condition is not an SQL condition.
        """
        return int(self._column(f"SELECT count(*) FROM ({_hits(search)})")[0])

    def count_by_score(self, search: Search, max_area: float = math.inf) -> tuple[int, ...]:
        """Count the regions of a search with at least each score of `SCORE_EDGES`.

        `max_area` is the largest share of the image that their box covers. Raise as `count`.
        """
        counts = ", ".join(f"count(*) FILTER (score >= {edge}::FLOAT)" for edge in SCORE_EDGES)
        small = "" if math.isinf(max_area) else f"WHERE box_share <= {max_area!r}"
        return tuple(self.ask(search, f"SELECT {counts} FROM hit_regions {small}")[0])

    def scores(self, search: Search) -> ScoreRanking:
        """Count the scores of the regions of a search. Raise as `count`."""
        ranking: ScoreRanking = self.ask(search, SCORE_COUNTS.format("hit_regions"), ranking_of)
        return ranking.less(self.dataset.score_margin)

    def hit_ids(self, search: Search, rows: Sequence[int]) -> set[int]:
        """Return the ids of annotations that a search finds in rows with these numbers.

        Raise as `count`.
        """
        numbers = ", ".join(map(str, [-1, *rows]))
        hits = self.ask(search, f"SELECT annotation FROM hit_regions WHERE row IN ({numbers})")
        return {annotation for (annotation,) in hits}

    def page(self, search: Search, offset: int, limit: int) -> list[int]:
        """Return the row numbers of a search from place `offset`, in the search's order.

        Raise as `count`.
        """
        # An odd number that differs between seeds: the multiplier of splitmix64.
        factor = ((search.seed + 1) * 0x9E3779B97F4A7C15) % (1 << 62) | 1
        order = _ORDERS[search.sort].format(factor=factor)
        return self._column(
            f"SELECT row FROM ({_hits(search)}) ORDER BY {order} LIMIT {limit:d} OFFSET {offset:d}"
        )

    def row_of(self, image_id: int) -> int | None:
        """Return the number of the row with an image id."""
        return next(iter(self._column(f"SELECT row FROM samples WHERE id = {image_id:d}")), None)

    def ask(self, search: Search, query: str, fetch: Callable[[Any], Any] = _fetch_rows) -> Any:
        """Return the rows of a statistics query over the hits of a search. Raise as `count`.

        The query may name `hit_samples` (columns of `samples`, and `mark`) and `hit_regions`
        (columns of `regions`). `fetch` is a method of DuckDB's connection.
        """
        hits = _hits(search)
        condition = search.region_condition()
        regions = (
            f"SELECT * FROM captioned WHERE (\n{condition}\n)"
            if condition
            else "SELECT * FROM regions WHERE true"
        )
        if search.sample_condition() or search.status or search.reason:
            regions += " AND row IN (SELECT row FROM hit_samples)"
        return self._ask(f"WITH hit_samples AS ({hits}), hit_regions AS ({regions}) {query}", fetch)

    def _column(self, query: str) -> list[Any]:
        return [value for (value,) in self._ask(query)]

    def _ask(self, query: str, fetch: Callable[[Any], Any] = _fetch_rows) -> Any:
        with closing(self._connection.cursor()) as cursor:
            timer = threading.Timer(QUERY_SECONDS, cursor.interrupt)
            timer.daemon = True
            timer.start()
            try:
                answer = fetch(cursor.execute(query))
            except duckdb.InterruptException as error:
                raise ConfigError(
                    f"the search took longer than {QUERY_SECONDS:g} s and was stopped"
                ) from error
            except duckdb.Error as error:
                raise ConfigError(f"not an SQL condition: {first_line(error)}", key="where") from error
            finally:
                timer.cancel()
        return answer


def _hits(search: Search) -> str:
    """SQL of the hits, with the best score of their regions that fulfil the conditions."""
    Index.check(search)
    condition = search.region_condition()
    columns = [name for name in ("status", "reason") if getattr(search, name)]
    equalities = [f"{name} = {literal(getattr(search, name))}" for name in columns]
    where = " AND ".join(filter(None, [search.sample_condition(), *equalities])) or "true"
    if not condition:
        return f"SELECT * FROM marked WHERE {where}"
    regions = f"SELECT row, max(score) AS best FROM captioned WHERE (\n{condition}\n) GROUP BY row"
    return f"SELECT m.* EXCLUDE (best), f.best FROM marked m JOIN ({regions}) f USING (row) WHERE {where}"
