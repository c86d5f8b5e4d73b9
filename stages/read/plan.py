"""Cutting an input into shards: ids that are given twice, rows that are one sample, images that are not there.

Captions of one image often stand in rows of their own, one after the other. They are one sample, since all regions of
an image belong together: its captions are those of the rows in order, its id and place those of the first row. Bad
rows, and rows that give ids of their own, are samples of their own.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import Field

from stages.contract.errors import InputError, RowError, RowFault, one_line
from stages.contract.records import ImageRef, Sample, is_among, stable_key
from stages.read.base import Reader, Shard, SourceConfig
from stages.read.find import FoundFile
from stages.read.rows import FieldsConfig, RowParser, bad_row, first_field, safe_place, settle
from stages.read.streams import is_compressed
from stages.shared.storage import place_of

_FIRST_IMAGES: Final = 20  # Images of which at least one must exist
_FEWEST_FAULTS: Final = 10  # rows that name no usable image, so that the input is rejected and not each of its rows
_FIRST_ROWS: Final = 1000  # Rows among which they are looked for

MOST_ROWS: Final = 1000
"""Rows of one sample; more rows of the same image are a further sample. Visual Genome has some 50 an image."""


class LinesConfig(SourceConfig, FieldsConfig):
    """Keys of `input` that tables of lines have in common."""

    shard_size: int = Field(
        1000, ge=1, le=1_000_000, description="Samples that one worker reads at once; compressed files are not cut."
    )
    group_rows: bool = Field(
        True,
        description="Whether rows of one image that follow each other are one sample with all their captions, unless "
        "they give different ids. False makes each row a sample.",
    )


class Row(NamedTuple):
    """A row of a table of lines."""

    number: int  # number of its first line, as messages count
    position: int  # its first byte
    gives_id: bool  # whether it gives an id of its own
    sample: Sample  # the sample that it makes by itself, which has an `error` if the row is bad

    @staticmethod
    def of(number: int, position: int, fields: Mapping[str, Any] | RowFault, shard: Shard, parser: RowParser) -> Row:
        """Return the row with these fields by name, or with the fault because of which they could not be read."""
        place = safe_place(shard.name, number)
        if isinstance(fields, RowFault):
            return Row(number, position, False, bad_row(place, fields))
        gives_id = first_field(fields, parser.fields.names("id"))[1] is not None
        return Row(number, position, gives_id, parser.sample(fields, place=place, shard=shard))

    def follows(self, before: Row) -> bool:
        """Return whether both rows are good, name the same image, and give the same id or none."""
        own = self.sample
        former = before.sample
        if own.error is not None or former.error is not None or own.image.file_name != former.image.file_name:
            return False
        return self.gives_id == before.gives_id and (not self.gives_id or own.sample_id == former.sample_id)


def samples(rows: Iterable[Row], config: LinesConfig, shard: Shard) -> Iterator[Sample]:
    """Yield the samples of a shard of lines, with the ids that they get."""
    renamed = shard.renamed_at
    for index, group in enumerate(_grouped(rows, config)):
        captions = tuple(text for row in group for text in row.sample.captions)
        yield settle(replace(group[0].sample, captions=captions), renamed.get(index))


def _grouped(rows: Iterable[Row], config: LinesConfig) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        if group and not (config.group_rows and len(group) < MOST_ROWS and row.follows(group[-1])):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def plan_lines(
    files: Sequence[FoundFile], scan: Callable[[FoundFile], Iterable[Row]], config: LinesConfig
) -> list[Shard]:
    """Cut files into shards of `shard_size` samples; a compressed file is one shard, as it is only read from its start.

    `scan` gives the rows of a file, in order. It may be called twice for each file.
    """
    keys = array("q")
    shards: list[Shard] = []
    for file in files:
        starts: list[Row] = []
        rows: list[int] = []
        count = 0
        for group in _grouped(scan(file), config):
            if count % config.shard_size == 0 and not (starts and is_compressed(file.url)):
                starts.append(group[0])
                rows.append(0)
            keys.append(stable_key(group[0].sample.sample_id))
            count += 1
            rows[-1] += len(group)
        for part, (first, after) in enumerate(zip(starts, [*starts[1:], None], strict=False)):
            shards.append(
                Shard(
                    url=file.url,
                    name=file.name,
                    start=first.position,
                    stop=after.position if after else None,
                    first_row=first.number,
                    samples=config.shard_size if after else count - part * config.shard_size,
                    rows=rows[part],
                )
            )
    again = (group[0].sample for file in files for group in _grouped(scan(file), config))
    return with_unique_ids(shards, keys, ((sample.sample_id, sample.source) for sample in again))


def grouped_rows(shards: Iterable[Shard]) -> str | None:
    """Return a sentence about an input in which several rows are one sample; None if each row is one."""
    counted = [(shard.rows, shard.samples) for shard in shards if shard.rows is not None and shard.samples is not None]
    rows, count = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
    if rows == count:
        return None
    return (
        f"{rows:,} rows were grouped into {count:,} samples, since rows of one image follow each other; "
        "--set input.group_rows=false keeps them apart"
    )


def plan_rows(url: str, name: str, rows: Sequence[Any], shard_size: int) -> Iterator[Shard]:
    """Cut a file that is only read whole: the shards carry their rows, plain values, as compressed JSON."""
    for start in range(0, len(rows), shard_size):
        part = rows[start : start + shard_size]
        stop = start + len(part)
        yield Shard(
            url=url, name=name, start=start, stop=stop, first_row=start, samples=len(part), payload=packed(part)
        )


def packed(rows: Sequence[Any]) -> bytes:
    """Return rows, plain values, as the payload of a shard."""
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode())


def carried_rows(shard: Shard) -> list[Any]:
    """Return the rows that a shard carries."""
    rows: list[Any] = json.loads(zlib.decompress(shard.payload))
    return rows


def with_unique_ids(shards: Sequence[Shard], keys: array[int], again: Iterable[tuple[str, str]]) -> list[Shard]:
    """Give another id to every row whose id an earlier row has.

    Rows are compared by `stable_key`, which takes 8 bytes of memory for each row. A second look at the rows separates
    equal ids from ids that share a key.

    All shards say how many `samples` they hold, `keys` are those of every row's id, in order, and `again` has id and
    place of every row.
    """
    every = np.frombuffer(keys, dtype=np.int64)
    ordered = np.sort(every)
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(shared):
        return list(shards)
    ends = np.cumsum([shard.samples or 0 for shard in shards])
    is_shared = np.isin(every, shared)
    owners: dict[int, tuple[int, str]] = {}
    given: set[int] = set()
    renamed: dict[int, list[tuple[int, str]]] = {}
    for ordinal, (sample_id, place) in enumerate(again):
        if not is_shared[ordinal]:
            continue
        first, owner_id = owners.setdefault(int(every[ordinal]), (ordinal, sample_id))
        if first == ordinal or owner_id != sample_id:
            continue
        other = f"{sample_id}#{place}"
        while (key := stable_key(other)) in given or is_among(key, ordered):
            other += "#"
        given.add(key)
        number = int(np.searchsorted(ends, ordinal, side="right"))
        index = ordinal - int(ends[number]) + (shards[number].samples or 0)
        renamed.setdefault(number, []).append((index, other))
    return [replace(shard, renamed=tuple(renamed.get(number, ()))) for number, shard in enumerate(shards)]


def plan_shards(reader: Reader) -> list[Shard]:
    """Plan an input, and look whether at least one of the first images that it names as files exists.

    Raise InputError as `Reader.shards` and `_first_images`, and if none of these images exists.
    """
    shards = reader.shards()
    images = _first_images(reader, shards)
    why = ""
    for image in images:
        try:
            if place_of(image.url or "").is_file():
                return shards
        except OSError as error:
            why = f" ({error.strerror or one_line(error)})"
    if not images:
        return shards
    first = images[0]
    which = f"none of the first {len(images)} images exists" if len(images) > 1 else "the only image does not exist"
    folder = (first.url or "").removesuffix(first.file_name)
    raise InputError(
        f"{which} in the folder {folder}; the first is {first.file_name!r}{why}. Give the folder that the paths of the "
        "images start from",
        key="input.image_root",
    )


def _first_images(reader: Reader, shards: Iterable[Shard]) -> list[ImageRef]:
    """At most `_FIRST_IMAGES` images that are files; none if the input holds its images. May raise InputError."""
    images: list[ImageRef] = []
    faults: list[RowError] = []
    items = (item for shard in shards for item in reader.read(shard))
    with closing(items):
        for item in (each for each in islice(items, _FIRST_ROWS) if isinstance(each, Sample)):
            if item.error is not None:
                faults.append(item.error)
                continue
            if item.image.url is None or item.image.size >= 0:
                return []
            images.append(item.image)
            if len(images) == _FIRST_IMAGES:
                break
    if len(faults) >= _FEWEST_FAULTS and not images and {each.reason for each in faults} == {"bad_location"}:
        raise InputError(f"none of the first {len(faults)} rows names an image that can be read: {faults[0].detail}")
    return images
