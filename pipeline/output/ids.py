"""Ids that two images, two regions or two phrases share: all but one of them get another.

Ids are hashes of names in 53 bits, so that every worker knows them by itself; of 10^8 names two share one with a
probability of 0.4. At the end of a run the first of such names, by the alphabet, keeps the hash. Each of the others
gets the hash of its first attempt that is free, see `stable_id`. So ids do not depend on the order in which rows were
written, and a run that is killed here ends with the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.tally import Rows
from stages.contract.records import stable_id
from stages.shared.storage import AnyPath, parquet_file, replacing
from stages.write import PARQUET_SETTINGS

_SHARED: Final = "SELECT id FROM {} GROUP BY id HAVING count(*) > 1"

_PHRASES: Final = """
WITH shared AS (SELECT category_id FROM regions GROUP BY ALL HAVING min(hash(phrase)) <> max(hash(phrase))),
    several AS (SELECT hash(phrase) AS one FROM regions GROUP BY ALL HAVING min(category_id) <> max(category_id))
SELECT DISTINCT phrase FROM regions WHERE category_id IN (FROM shared) OR hash(phrase) IN (FROM several)
"""
"""Phrases that share an id, or have two: in rows that were added to a finished dataset they have their hash."""


@dataclass(slots=True)
class _Ids:
    """The ids of what shared one, by name."""

    images: dict[str, int] = field(default_factory=dict)  # by sample id
    regions: dict[tuple[str, int], int] = field(default_factory=dict)  # by sample id, and number in the row
    phrases: dict[str, int] = field(default_factory=dict)


def set_apart(rows: Rows, shards: Sequence[AnyPath]) -> None:
    """Give each image, region and phrase of a dataset an id of its own, in its shards and in the table of its regions.

    Raise RuntimeError, and change nothing, if a sample has two rows.
    """
    images, regions = ({number for (number,) in rows.ask(_SHARED.format(table))} for table in ("samples", "regions"))
    phrases = {phrase for (phrase,) in rows.ask(_PHRASES)}
    if not (images or regions or phrases):
        return
    places = {shard for (shard,) in rows.ask("SELECT shard FROM samples WHERE id IN (SELECT unnest(?))", [*images])}
    places |= {shard for (shard,) in rows.ask("SELECT shard FROM regions WHERE id IN (SELECT unnest(?))", [*regions])}
    seen = [row for shard in sorted(places) for row in _names_in(shards[shard])]
    named = [row["sample_id"] for row in seen if row["id"] in images]
    if twice := len(named) - len(set(named)):
        raise RuntimeError(f"{twice} rows were written twice")
    numbered = [
        (row["sample_id"], number)
        for row in seen
        for number, region in enumerate(row["annotations"])
        if region["id"] in regions
    ]

    def used(table: str, shared: set[int]) -> Callable[[int], bool]:
        return lambda number: number not in shared and bool(rows.ask(f"FROM {table} WHERE id = ? LIMIT 1", number))

    def names_another(number: int) -> bool:
        return any(
            one not in phrases for (one,) in rows.ask("SELECT phrase FROM regions WHERE category_id = ?", number)
        )

    found = _Ids(
        images=_apart({name: name for name in named}, used("samples", images)),
        regions=_apart({(name, number): f"{name}\n{number}" for name, number in numbered}, used("regions", regions)),
        phrases=_apart({phrase: phrase for phrase in phrases}, names_another),
    )
    places |= {
        shard for (shard,) in rows.ask("SELECT shard FROM regions WHERE phrase IN (SELECT unnest(?))", [*phrases])
    }
    for shard in sorted(places):
        _rewrite(shards[shard], found)
    for phrase, number in found.phrases.items():
        rows.ask("UPDATE regions SET category_id = ? WHERE phrase = ?", number, phrase)


def _apart(texts: Mapping[Any, str], is_used: Callable[[int], bool]) -> dict[Any, int]:
    """The id of each name; `texts` are what ids are hashes of, and `is_used` says whether something else has an id."""
    given: dict[int, Any] = {}
    for name in sorted(texts):
        attempts = (stable_id(texts[name], attempt) for attempt in count())
        given[next(number for number in attempts if number not in given and not is_used(number))] = name
    return {name: number for number, name in given.items()}


def _names_in(path: AnyPath) -> list[dict[str, Any]]:
    with parquet_file(path) as file:
        rows: list[dict[str, Any]] = file.read(columns=["id", "sample_id", "annotations.list.element.id"]).to_pylist()
        return rows


def _rewrite(path: AnyPath, ids: _Ids) -> None:
    """Write a shard again if ids in it are others now, with the row groups of before, of which one is in memory."""
    with (
        parquet_file(path) as file,
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, file.schema_arrow, **PARQUET_SETTINGS) as writer,
    ):
        for group in range(file.num_row_groups):
            writer.write_table(_with(file.read_row_group(group), ids))


def _with(table: Any, ids: _Ids) -> Any:
    rows = [_renumbered(row, ids) for row in table.select(["id", "sample_id", "annotations"]).to_pylist()]
    for name in ("id", "annotations"):
        place = table.schema.get_field_index(name)
        values = pa.array([row[name] for row in rows], table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), values)
    return table


def _renumbered(row: Mapping[str, Any], ids: _Ids) -> dict[str, Any]:
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
