"""Collisions of ids: the alphabetically first name keeps its hash, other names get the hash of a further attempt.

Ids of images, regions and phrases are hashes of names in 53 bits, so that every worker computes
them by itself. Among 10^8 names two share an id with a probability of 0.4. Collisions are
resolved at the end of a run, see `stable_id`. So ids do not depend on the order of rows, and a
run that is killed here ends with the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.dataset.tally import Rows
from phrasebox.stages.contract.records import stable_id
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.parquet import PARQUET_SETTINGS
from phrasebox.stages.files.shards import ShardFile, writing_shard
from phrasebox.stages.files.storage import AnyPath, parquet_file

_SHARED: Final = "SELECT id FROM {} GROUP BY id HAVING count(*) > 1"

_PLACES: Final = """
SELECT shard FROM samples WHERE id IN (SELECT unnest(?)) UNION SELECT shard FROM regions WHERE id IN (SELECT unnest(?))
"""

_PHRASES: Final = """
WITH shared AS (SELECT category_id FROM regions GROUP BY ALL HAVING min(hash(phrase)) <> max(hash(phrase))),
    several AS (SELECT hash(phrase) AS one FROM regions GROUP BY ALL HAVING min(category_id) <> max(category_id))
SELECT DISTINCT phrase FROM regions WHERE category_id IN (FROM shared) OR hash(phrase) IN (FROM several)
"""
"""Phrases that share an id, or have two: in rows that were added to a finished dataset they have
their hash."""


@dataclass(slots=True)
class _Ids:
    """The new ids of images, regions and phrases that shared one, by name."""

    images: dict[str, int] = field(default_factory=dict)  # by sample id
    regions: dict[tuple[str, int], int] = field(default_factory=dict)  # by sample id, and number in the row
    phrases: dict[str, int] = field(default_factory=dict)


def resolve_id_collisions(rows: Rows, shards: Sequence[AnyPath]) -> list[ShardFile]:
    """Give each image, region and phrase of a dataset a unique id, in the shards and in the table of regions.

    Return the shards that were written again. Raise RuntimeError, and change nothing, if a sample
    has two rows.
    """
    images = _values(rows, _SHARED.format("samples"))
    regions = _values(rows, _SHARED.format("regions"))
    phrases = _values(rows, _PHRASES)
    if not (images or regions or phrases):
        return []
    places = _values(rows, _PLACES, [*images], [*regions])
    colliding = [row for shard in sorted(places) for row in _names_in(shards[shard])]
    names = [row["sample_id"] for row in colliding if row["id"] in images]
    if repeats := len(names) - len(set(names)):
        raise RuntimeError(f"{repeats} rows were written twice")
    numbers = [
        (row["sample_id"], number)
        for row in colliding
        for number, region in enumerate(row["annotations"])
        if region["id"] in regions
    ]

    def is_used_in(table: str, shared: set[int]) -> Callable[[int], bool]:
        return lambda number: (
            number not in shared and bool(rows.ask(f"FROM {table} WHERE id = ? LIMIT 1", number))
        )

    def names_another(number: int) -> bool:
        return not _values(rows, "SELECT phrase FROM regions WHERE category_id = ?", number) <= phrases

    ids = _Ids(
        images=_unique_ids({name: name for name in names}, is_used_in("samples", images)),
        regions=_unique_ids(
            {(name, number): f"{name}\n{number}" for name, number in numbers},
            is_used_in("regions", regions),
        ),
        phrases=_unique_ids({phrase: phrase for phrase in phrases}, names_another),
    )
    places |= _values(rows, "SELECT shard FROM regions WHERE phrase IN (SELECT unnest(?))", [*phrases])
    rewritten: list[ShardFile] = []
    for shard in sorted(places):
        _rewrite(shards[shard], ids, rewritten.append)
    for phrase, number in ids.phrases.items():
        rows.ask("UPDATE regions SET category_id = ? WHERE phrase = ?", number, phrase)
    return rewritten


def _values(rows: Rows, query: str, *arguments: Any) -> set[Any]:
    """The different values of a query for one column."""
    return {value for (value,) in rows.ask(query, *arguments)}


def _unique_ids(texts: Mapping[Any, str], is_used: Callable[[int], bool]) -> dict[Any, int]:
    """The id of each name; `texts` holds the text to hash, and `is_used` answers whether something else has an id."""
    names: dict[int, Any] = {}
    for name in sorted(texts):
        attempts = (stable_id(texts[name], attempt) for attempt in count())
        names[next(number for number in attempts if number not in names and not is_used(number))] = name
    return {name: number for number, name in names.items()}


def _names_in(path: AnyPath) -> list[Json]:
    with parquet_file(path) as file:
        rows: list[Json] = file.read(columns=["id", "sample_id", "annotations.list.element.id"]).to_pylist()
        return rows


def _rewrite(path: AnyPath, ids: _Ids, on_written: Callable[[ShardFile], None]) -> None:
    """Write a shard again with the new ids. Its row groups stay; one of them is in memory at a time."""
    with (
        parquet_file(path) as file,
        writing_shard(path, on_written) as target,
        pq.ParquetWriter(target, file.schema_arrow, **PARQUET_SETTINGS) as writer,
    ):
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rows = [_renumber_row(row, ids) for row in table.to_pylist()]
            writer.write_table(pa.Table.from_pylist(rows, table.schema))


def _renumber_row(row: Row, ids: _Ids) -> Json:
    name = row["sample_id"]
    image_id = ids.images.get(name, row["id"])
    annotations = [
        {
            **region,
            "id": ids.regions.get((name, number), region["id"]),
            "image_id": image_id,
            "category_id": ids.phrases.get(region["phrase"], region["category_id"]),
        }
        for number, region in enumerate(row["annotations"])
    ]
    return {**row, "id": image_id, "annotations": annotations}
