"""Count all rows of a dataset, in a temporary DuckDB database.

It takes some 45 bytes a region on disk and at most `MEMORY` of memory, however many different
phrases there are, and 30 bytes for each different score.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from phrasebox.pipeline.dataset.score_choice import SCORE_COUNTS, ranking_of
from phrasebox.pipeline.dataset.selection import connect_sandboxed
from phrasebox.stages.contract.errors import ResourceError, SchemaError, one_line
from phrasebox.stages.contract.records import NO_PARSER, OTHER_LANGUAGE, UNREAD_LANGUAGE
from phrasebox.stages.files.lifted_shards import shard_file
from phrasebox.stages.files.parquet import PARQUET_SETTINGS
from phrasebox.stages.files.storage import AnyPath, replacing, sizes_in
from phrasebox.stages.write import Tally

MEMORY: Final = "1GB"

_THREADS: Final = 16  # Shards read at once: in object storage the answers take the time
_SHARDS_AT_ONCE: Final = 64  # Shards inserted together: each insert has a fixed cost of some milliseconds
_BYTES_AT_ONCE: Final = (
    1 << 30
)  # Of shards inserted together: a tenth is counted, and takes three times that in memory

CATEGORIES_SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("supercategory", pa.string()),
        ("count", pa.int64()),
    ]
)

_OF_REGION: Final = ("id", "category_id", "phrase", "head", "score")
COLUMNS: Final = (
    "id", "error", "phrase_count", "warnings", "absent.list.element.caption_index",
    *(f"annotations.list.element.{name}" for name in _OF_REGION),
)  # fmt: skip

_TABLES: Final = """
CREATE TABLE samples (
    shard INTEGER, id BIGINT, error VARCHAR, phrases BIGINT, regions BIGINT, absent BIGINT, other_language BOOLEAN,
    unread_language BOOLEAN
);
CREATE TABLE unparsed_captions (parser VARCHAR);
CREATE TABLE regions (shard INTEGER, id BIGINT, category_id BIGINT, phrase VARCHAR, head VARCHAR, score FLOAT);
"""

_CATEGORIES: Final = """
SELECT id, name, first(supercategory ORDER BY count DESC, supercategory) AS supercategory, sum(count)::BIGINT AS count
FROM (SELECT category_id AS id, phrase AS name, head AS supercategory, count(*) AS count FROM regions GROUP BY ALL)
GROUP BY id, name ORDER BY id, name
"""

_INSERTS: Final = f"""
INSERT INTO samples
    SELECT shard, id, error, coalesce(phrase_count, 0), coalesce(len(annotations), 0), coalesce(len(absent), 0),
        coalesce(len([w for w in warnings if starts_with(w, '{OTHER_LANGUAGE}')]), 0) > 0,
        coalesce(len([w for w in warnings if starts_with(w, '{UNREAD_LANGUAGE}')]), 0) > 0
    FROM part;
INSERT INTO unparsed_captions
    SELECT unnest(regexp_extract_all(note, '\\(([a-z]+: [^()]*)\\)', 1))
    FROM (SELECT unnest(warnings) AS note FROM part) WHERE starts_with(note, '{NO_PARSER}');
INSERT INTO regions
    SELECT shard, a.id, a.category_id, coalesce(a.phrase, ''), coalesce(a.head, ''), a.score
    FROM (SELECT shard, unnest(annotations) AS a FROM part);
"""
"""From `part`: `COLUMNS` of shards, and `shard`, the number of the shard.

Values of a damaged row may be null.
"""

_COUNTS: Final = """
SELECT count(*) AS rows, count(*) FILTER (error IS NULL AND phrases > 0) AS annotated,
    count(*) FILTER (error IS NULL AND phrases > 0 AND regions = 0) AS without_regions,
    count(*) FILTER (error IS NULL AND phrases = 0) AS without_phrases,
    coalesce(sum(phrases), 0)::BIGINT AS phrases, coalesce(sum(regions), 0)::BIGINT AS regions,
    coalesce(sum(absent), 0)::BIGINT AS absent,
    count(*) FILTER (other_language) AS other_language,
    count(*) FILTER (unread_language) AS unread_language,
    (SELECT count(DISTINCT phrase) FROM regions) AS categories
FROM samples
"""


class Rows:
    """The light columns of a dataset's rows: `samples` and `regions` of a DuckDB connection."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        connection.execute(_TABLES)

    def add(self, shard: int, *tables: Any) -> None:
        """Add Arrow tables with `COLUMNS`, one for each shard from number `shard` on."""
        numbered_tables = [
            table.append_column("shard", pa.array([number] * table.num_rows, pa.int32()))
            for number, table in enumerate(tables, shard)
        ]
        self.connection.register("part", pa.concat_tables(numbered_tables))
        self.connection.execute(_INSERTS)
        self.connection.unregister("part")

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return all rows of an SQL query."""
        rows: list[tuple[Any, ...]] = self.connection.execute(query, values).fetchall()
        return rows

    def tally(self, files: int, margin: float = 0.0) -> Tally:
        """Return the counts of all rows; `files` is the number of shards, `margin` that of estimated scores."""
        answer = self.connection.execute(_COUNTS)
        counts = dict(zip((name for name, *_ in answer.description), answer.fetchone(), strict=True))
        unparsed = self.ask("SELECT parser, count(*) FROM unparsed_captions GROUP BY parser")
        failures = self.ask("SELECT error, count(*) FROM samples WHERE error IS NOT NULL GROUP BY error")
        scores = ranking_of(self.connection.execute(SCORE_COUNTS.format("regions"))).less(margin)
        return Tally(
            **counts,
            files=files,
            failed_by_reason=Counter(dict(failures)),
            unparsed=Counter(dict(unparsed)),
            thresholds=scores.table(),
            highest_precision=scores.highest_precision,
        )

    def categories(self) -> Iterator[Any]:
        """Yield Arrow tables with `CATEGORIES_SCHEMA`, sorted by id and name.

        The supercategory is a phrase's most frequent head; ties go to the alphabetically first.
        """
        yield CATEGORIES_SCHEMA.empty_table()
        for batch in pa.RecordBatchReader.from_stream(self.connection.sql(_CATEGORIES)):
            yield pa.table(batch).cast(CATEGORIES_SCHEMA)


@contextmanager
def rows_of(shards: Sequence[AnyPath]) -> Iterator[Rows]:
    """Yield the light columns of a folder's shards.

    Raise SchemaError for one that is damaged or lacks a column.
    """
    with empty_rows() as rows, ThreadPoolExecutor(_THREADS) as pool:
        sizes = sizes_in(shards[0].parent, "*.parquet") if shards else {}
        first = 0
        for group in _group_shards(shards, sizes):
            rows.add(first, *pool.map(_columns_of, group))
            first += len(group)
        yield rows


def _group_shards(
    shards: Sequence[AnyPath],
    sizes: Mapping[AnyPath, int],
) -> list[list[AnyPath]]:
    """Return the shards in order, in groups of `_SHARDS_AT_ONCE` and `_BYTES_AT_ONCE` at most.

    A larger shard is its own group.
    """
    groups = list[list[AnyPath]]()
    room = 0
    for shard in shards:
        if not groups or sizes[shard] > room or len(groups[-1]) == _SHARDS_AT_ONCE:
            groups.append([])
            room = _BYTES_AT_ONCE
        groups[-1].append(shard)
        room -= sizes[shard]
    return groups


@contextmanager
def empty_rows() -> Iterator[Rows]:
    """Yield an empty database, which is deleted at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="phrasebox-tally-") as folder:
        connection = connect_sandboxed(str(Path(folder) / "tally.duckdb"), memory_limit=MEMORY)
        try:
            yield Rows(connection)
        except duckdb.Error as error:
            raise ResourceError(
                f"cannot count in {folder} (TMPDIR names another place): {one_line(error)}"
            ) from error
        finally:
            connection.close()


def _columns_of(path: AnyPath) -> Any:
    try:
        with shard_file(path, pre_buffer=True) as file:
            absent_columns = {name.partition(".")[0] for name in COLUMNS} - set(file.schema_arrow.names)
            if absent_columns:
                raise SchemaError(
                    f"{path} lacks the columns {sorted(absent_columns)}: not a phrasebox shard"
                )
            return file.read(columns=list(COLUMNS)).replace_schema_metadata()
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(
            f"{path} is damaged ({one_line(error)}): run the same command again, and only its rows are done again"
        ) from error


def write_categories(rows: Rows, path: AnyPath) -> None:
    """Write `categories.parquet`: id, name (phrase), supercategory (most frequent head), count."""
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, CATEGORIES_SCHEMA, **PARQUET_SETTINGS) as file,
    ):
        for table in rows.categories():
            file.write_table(table)
