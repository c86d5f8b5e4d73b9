"""Search and statistics over the light columns of all rows, in a temporary DuckDB database.

Masks and images stay in the shards: a million rows with three regions each take about 170 MB
here, on disk. Answers are numbers of rows, with which `NumberedRows` reads the rows themselves.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from pipeline.dataset.folder import Dataset, open_shard, tables_in
from pipeline.dataset.rows import Values
from pipeline.dataset.selection import (
    CONDITION_COLUMNS,
    REGION,
    Search,
    Selection,
    Selector,
    connect_sandboxed,
    first_line,
    literal,
)
from stages.contract.errors import ConfigError, InputError
from stages.regions.config import RegionsConfig

QUERY_SECONDS: Final = 30.0  # Limit of a query, since a condition may never end
_SHARDS_AT_ONCE: Final = 40  # Shards that are inserted together: each insert has a fixed cost of some milliseconds

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
    area BIGINT, area_share DOUBLE, x FLOAT, y FLOAT, w FLOAT, h FLOAT, caption_index INTEGER
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
    SELECT row, a.id, a.phrase, a.head, a.score, a.similarity, a.presence, a.area,
        a.area::DOUBLE / (width::DOUBLE * height), a.bbox[1], a.bbox[2], a.bbox[3], a.bbox[4], a.caption_index
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
        self._connection: Any = connect_sandboxed(str(Path(self._folder.name) / "index.duckdb"), memory_limit="2GB")
        self._connection.execute(_TABLES)
        self.mark_all(marks)

    def close(self) -> None:
        """Delete the database."""
        self._connection.close()
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
            self._failure = InputError(f"the index in {self._folder.name} cannot be written: {first_line(error)}")
            raise self._failure from error
        finally:
            self._ready.set()

    def _build(self, on_progress: Callable[[int, int], None]) -> None:
        first = 0
        pending = []
        for path in self.dataset.shards:
            try:
                with open_shard(path) as file:
                    tables = [table for _, table in tables_in(file, _LIGHT_COLUMNS, threads=False)]
            except InputError:
                if self.dataset.is_finished:
                    raise
                tables = []  # a run may be writing it
            for table in tables:
                pending.append(table.append_column("row", pa.array(np.arange(first, first + table.num_rows))))
                first += table.num_rows
            self.shards_read += 1
            if pending and (self.shards_read % _SHARDS_AT_ONCE == 0 or self.shards_read == len(self.dataset.shards)):
                with closing(self._connection.cursor()) as cursor:
                    cursor.register("part", pa.concat_tables(pending))
                    cursor.execute(_INSERTS)
                    cursor.unregister("part")
                pending = []
            on_progress(self.shards_read, len(self.dataset.shards))

    def mark_all(self, marks: Mapping[str, str]) -> None:
        """Replace all marks."""
        table = pa.table(
            {
                "sample_id": pa.array(marks, pa.string()),
                "mark": pa.array(marks.values(), pa.string()),
            }
        )
        with closing(self._connection.cursor()) as cursor:
            cursor.begin()
            cursor.execute("DELETE FROM marks")
            cursor.register("part", table)
            cursor.execute("INSERT INTO marks SELECT * FROM part")
            cursor.commit()
            cursor.unregister("part")

    @staticmethod
    def check(search: Search) -> None:
        """Raise ConfigError unless the search's SQL is one condition over `REGION_COLUMNS`."""
        Selector(Selection(where=search.where))  # separately: among others, it could close their brackets

    def count(self, search: Search) -> int:
        """Count the samples of a search.

        Raise ConfigError if its condition is not an SQL condition.
        """
        return int(self._column(f"SELECT count(*) FROM ({_hits(search)})")[0])

    def count_by_score(self, search: Search) -> tuple[int, ...]:
        """Count the regions of a search with at least each score of `SCORE_EDGES`.

        Raise as `count`.
        """
        counts = ", ".join(f"count(*) FILTER (score >= {edge}::FLOAT)" for edge in SCORE_EDGES)
        return self.ask(search, f"SELECT {counts} FROM hit_regions")[0]

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
        return self._column(f"SELECT row FROM ({_hits(search)}) ORDER BY {order} LIMIT {limit:d} OFFSET {offset:d}")

    def row_of(self, image_id: int) -> int | None:
        """Return the number of the row with an image id."""
        return next(iter(self._column(f"SELECT row FROM samples WHERE id = {image_id:d}")), None)

    def ask(self, search: Search, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statistics query over the hits of a search. Raise as `count`.

        The query may name `hit_samples` (columns of `samples`, and `mark`) and `hit_regions`
        (columns of `regions`).
        """
        hits = _hits(search)
        condition = search.region_condition()
        regions = (
            f"SELECT * FROM captioned WHERE (\n{condition}\n)" if condition else "SELECT * FROM regions WHERE true"
        )
        if search.sample_condition() or search.status or search.reason:
            regions += " AND row IN (SELECT row FROM hit_samples)"
        return self._ask(f"WITH hit_samples AS ({hits}), hit_regions AS ({regions}) {query}")

    def _column(self, query: str) -> list[Any]:
        return [value for (value,) in self._ask(query)]

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor:
            timer = threading.Timer(QUERY_SECONDS, cursor.interrupt)
            timer.daemon = True
            timer.start()
            try:
                rows: list[tuple[Any, ...]] = cursor.execute(query).fetchall()
            except duckdb.InterruptException as error:
                raise ConfigError(f"the search took longer than {QUERY_SECONDS:g} s and was stopped") from error
            except duckdb.Error as error:
                raise ConfigError(f"not an SQL condition: {first_line(error)}", key="where") from error
            finally:
                timer.cancel()
        return rows


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


AREA_EDGES: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # Shares of the image
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST_SCORES: Final = (0.5, 0.7, 0.8, 0.9)
BINS_PER_IMAGE: Final = 13  # Most bins of a count per image
BIN_WIDTHS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Widths of the bins; the smallest that fits 99 % of the images is chosen."""


def statistics(index: Index, search: Search | None = None, *, most: int = 30) -> Values:
    """Return counts, histograms and the most frequent words.

    samples            by `Status`, and `all`
    regions, phrases, heads   number of regions, of different phrases, of different head nouns
    score, area_share  of the regions: {edges, counts, quantiles}; the last bin holds its upper edge
    score_kept         score -> share of the regions with at least this score
    phrases_per_image, regions_per_image   samples without an error by count: {labels, counts}
    things_per_image   the same for objects; None if no phrases are linked
    absent_share       share of absent phrases that the presences imply, see `estimate_absent_share`
    top_phrases, top_heads   [{text, count, score}], at most `most`, with the mean score
    errors             [{reason, count}]
    marks              mark -> samples

    Raise ConfigError if the search's condition is not an SQL condition.
    """
    search = search or Search()
    ask = partial(index.ask, search)
    by_status = dict(ask("SELECT status, count(*) FROM hit_samples GROUP BY status ORDER BY status"))
    ((phrases, heads),) = ask("SELECT count(DISTINCT phrase), count(DISTINCT head) FROM hit_regions")
    counts = dict(zip(SCORE_EDGES, index.count_by_score(search), strict=True))
    regions = counts[0.0]
    ((most_things,),) = ask("SELECT max(thing_count) FROM hit_samples")
    presences = ask(
        "SELECT round(presence, 3) AS near, count(*) FROM presences "
        "WHERE row IN (SELECT row FROM hit_samples) GROUP BY near ORDER BY near"
    )
    expected_share = _absent_share_of(index.dataset.run)
    reasons = "SELECT reason, count(*) FROM hit_samples WHERE reason IS NOT NULL GROUP BY reason ORDER BY 2 DESC, 1"
    return {
        "samples": {"all": sum(by_status.values()), **by_status},
        "regions": regions,
        "phrases": phrases,
        "heads": heads,
        "score": _histogram(ask, "score", SCORE_EDGES),
        "score_kept": {f"{score:g}": counts[score] / regions if regions else None for score in LEAST_SCORES},
        "area_share": _histogram(ask, "area_share", AREA_EDGES),
        "phrases_per_image": _per_image(ask, "phrase_count"),
        "regions_per_image": _per_image(ask, "region_count"),
        "things_per_image": _per_image(ask, "thing_count") if most_things else None,
        "absent_share": estimate_absent_share(presences, expected_share),
        "top_phrases": _most_frequent(ask, "phrase", most),
        "top_heads": _most_frequent(ask, "head", most),
        "errors": [{"reason": reason, "count": count} for reason, count in ask(reasons)],
        "marks": dict(ask("SELECT mark, count(*) FROM hit_samples WHERE mark IS NOT NULL GROUP BY mark ORDER BY mark")),
    }


def _absent_share_of(run: Mapping[str, Any]) -> float:
    """The share of absent phrases that the run expected; the setting's default where none is stored."""
    try:
        return RegionsConfig(absent_share=run["config"]["regions"]["absent_share"]).absent_share
    except (KeyError, TypeError, ValidationError):
        return RegionsConfig().absent_share


def estimate_absent_share(presences: Sequence[tuple[float, int]], expected: float) -> float | None:
    """Return the share of absent phrases, 0 .. 1, that makes presences most likely; None without presences.

    Presences depend on the share that they were computed with (`stages.regions.score.at_share`). Expectation
    maximisation finds the share that agrees with their mean (Saerens, Latinne and Decaestecker, Neural Computation 14,
    2002); it is as good as the calibration fits the images. `presences` are (presence, number of phrases with it).
    """
    if not presences:
        return None
    values, counts = np.array(presences, np.float64).T
    share = min(max(expected, 0.001), 0.999)
    for _ in range(200):  # each changes the share less than the one before
        present = values * (1.0 - share) / (1.0 - expected)
        absent = (1.0 - values) * share / expected
        share = float(np.average(absent / (present + absent), weights=counts))
        if not 0.0 < share < 1.0:
            break
    return round(share, 3)


def _histogram(ask: Any, column: str, edges: Sequence[float]) -> Values:
    """Count values between edges; the last bin counts values beyond the last edge, too."""
    columns = ", ".join(f"count(*) FILTER ({column} < {edge!r}::FLOAT)" for edge in edges[1:-1])
    quantiles = f"quantile_cont({column}, {list(QUANTILES)})"
    ((*counts, total, values),) = ask(f"SELECT {columns}, count(*), {quantiles} FROM hit_regions")
    return {
        "edges": list(edges),
        "counts": [high - low for low, high in pairwise((0, *counts, total))],
        "quantiles": dict(zip((f"{share * 100:g}" for share in QUANTILES), values or [None] * 5, strict=True)),
    }


def _per_image(ask: Any, column: str) -> dict[str, list[Any]]:
    sound = f"FROM hit_samples WHERE status <> 'failed' AND {column} IS NOT NULL"
    ((usual, most),) = ask(f"SELECT quantile_disc({column}, 0.99), max({column}) {sound}")
    width = next((step for step in BIN_WIDTHS if (usual or 0) < BINS_PER_IMAGE * step), BIN_WIDTHS[-1])
    counts = dict(ask(f"SELECT least({column} // {width}, {BINS_PER_IMAGE - 1}), count(*) {sound} GROUP BY 1"))
    bins = range(max(counts, default=0) + 1)
    labels = [str(number) if width == 1 else f"{number * width} to {(number + 1) * width - 1}" for number in bins]
    if (most or 0) >= BINS_PER_IMAGE * width:
        labels[-1] = f"{bins[-1] * width} or more"
    return {"labels": labels, "counts": [counts.get(number, 0) for number in bins]}


def _most_frequent(ask: Any, column: str, most: int) -> list[Values]:
    rows = ask(f"SELECT {column}, count(*), avg(score) FROM hit_regions GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {most:d}")
    return [{"text": text, "count": count, "score": score} for text, count, score in rows]
