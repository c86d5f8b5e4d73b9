"""Cutting an input into shards: ids that are given twice, rows that are one sample, images that are not there.

Captions of one image often stand in rows of their own, one after the other. They are one sample, since all regions of
an image belong together: its captions are those of the rows in order, its id and place those of the first row. Bad
rows, and rows that give ids of their own, are samples of their own.
"""

from __future__ import annotations

import json
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import Field

from stages.contract.errors import InputError, RowFault
from stages.contract.records import ImageRef, Sample, is_among, stable_id
from stages.read.base import Reader, Renamed, Shard, SourceConfig
from stages.read.find import FoundFile
from stages.read.rows import FieldsConfig, RowParser, bad_row, first_field, safe_place, settle
from stages.read.streams import is_compressed
from stages.shared.storage import place_of

_FIRST_IMAGES: Final = 20
"""Images of which at least one must exist."""

_FIRST_ROWS: Final = 1000
"""Rows among which they are looked for."""

MOST_ROWS: Final = 1000
"""Rows of one sample; more rows of the same image are a further sample. Visual Genome has some 50 an image."""


class LinesConfig(SourceConfig, FieldsConfig):
    """Keys of `input` that tables of lines have in common."""

    shard_size: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Samples that one worker reads at once; compressed files are not cut.",
    )
    group_rows: bool = Field(
        default=True,
        description="Whether rows of one image that follow each other are one sample with all their captions, unless "
        "they give different ids. False makes each row a sample.",
    )


class Row(NamedTuple):
    """A row of a table of lines.

    Attributes:
        number: Number of its first line, as messages count.
        position: Its first byte.
        gives_id: Whether it gives an id of its own.
        sample: The sample that it makes by itself, which has an `error` if the row is bad.
    """

    number: int
    position: int
    gives_id: bool
    sample: Sample

    @staticmethod
    def of(number: int, position: int, fields: Mapping[str, Any] | RowFault, shard: Shard, parser: RowParser) -> Row:
        """The row with these fields by name, or the reason why they could not be read."""
        place = safe_place(shard.name, number)
        if isinstance(fields, RowFault):
            return Row(number, position, False, bad_row(place, fields))
        gives_id = first_field(fields, parser.fields.id_fields)[1] is not None
        return Row(number, position, gives_id, parser.sample(fields, place=place, shard=shard, renamed=None))

    def follows(self, before: Row) -> bool:
        """Return whether both rows are good, name the same image, and give the same id or none."""
        own, former = self.sample, before.sample
        if own.error is not None or former.error is not None or own.image.file_name != former.image.file_name:
            return False
        return self.gives_id == before.gives_id and (not self.gives_id or own.sample_id == former.sample_id)


def samples(rows: Iterable[Row], config: LinesConfig, shard: Shard) -> Iterator[Sample]:
    """The samples of a shard of lines, with the ids that they get."""
    renamed = shard.renamed_at
    for index, (first, *others) in enumerate(_grouped(rows, config)):
        sample = first.sample
        if others:
            sample = replace(sample, captions=tuple(text for row in (first, *others) for text in row.sample.captions))
        if index in renamed:
            sample = settle(sample, [] if sample.error is None else [sample.error], renamed[index])
        yield sample


def _grouped(rows: Iterable[Row], config: LinesConfig) -> Iterator[list[Row]]:
    """The rows of each sample, at least one."""
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
    """Shards of `shard_size` samples; a compressed file is one shard, since it cannot be entered in the middle.

    Args:
        files: The input.
        scan: Gives the rows of a file, in order. It may be called twice for each file.
        config: Says how rows are grouped, and the size of shards.
    """
    log = IdLog()
    shards: list[Shard] = []
    for file in files:
        starts: list[Row] = []
        rows: list[int] = []
        count = 0
        for group in _grouped(scan(file), config):
            if count % config.shard_size == 0 and not (starts and is_compressed(file.url)):
                starts.append(group[0])
                rows.append(0)
            log.add(group[0].sample.sample_id)
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
    again = (group[0] for file in files for group in _grouped(scan(file), config))
    return with_renamed(shards, log.renamed((row.sample.sample_id, row.sample.source) for row in again))


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
    """Shards of a file that cannot be read in parts; they carry their rows, plain values, as compressed JSON."""
    for start in range(0, len(rows), shard_size):
        part = rows[start : start + shard_size]
        stop = start + len(part)
        yield Shard(
            url=url, name=name, start=start, stop=stop, first_row=start, samples=len(part), payload=packed(part)
        )


def packed(rows: Sequence[Any]) -> bytes:
    """Rows, plain values, as the payload of a shard."""
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode())


def carried_rows(shard: Shard) -> list[Any]:
    """The rows that a shard carries."""
    rows: list[Any] = json.loads(zlib.decompress(shard.payload))
    return rows


class IdLog:
    """Finds the rows whose id an earlier row has, with 8 bytes of memory for each row.

    Rows are compared by the 53-bit hash that becomes the image id of the dataset, so that this id is unique too. A
    second look at the rows separates equal ids from ids that only share a hash.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, sample_id: str) -> None:
        """Note the id of the next row."""
        self._hashes.append(stable_id(sample_id))

    def extend(self, hashes: array[int]) -> None:
        """Note the `stable_id`s of the next rows."""
        self._hashes.extend(hashes)

    def renamed(self, again: Iterable[tuple[str, str]]) -> dict[int, Renamed]:
        """New ids for the rows that need one, by the row's ordinal in the input; `Renamed.index` is not set yet.

        Args:
            again: All rows once more, as (id, place). They are read only if two hashes are equal.
        """
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        ordered = np.sort(hashes)
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(shared):
            return {}
        is_shared = np.isin(hashes, shared)
        owners: dict[int, tuple[int, str]] = {}
        given: set[int] = set()
        renamed: dict[int, Renamed] = {}
        for ordinal, (sample_id, place) in enumerate(again):
            if not is_shared[ordinal]:
                continue
            owner = owners.setdefault(int(hashes[ordinal]), (ordinal, sample_id))
            if owner[0] == ordinal:
                continue
            other = f"{sample_id}#{place}"
            while (other_hash := stable_id(other)) in given or is_among(other_hash, ordered):
                other += "#"
            given.add(other_hash)
            renamed[ordinal] = Renamed(index=0, sample_id=other, duplicate=owner[1] == sample_id)
        return renamed


def with_unique_ids(shards: Sequence[Shard], ids: Sequence[tuple[str, str]]) -> list[Shard]:
    """The shards, with new ids for rows whose id an earlier row has.

    Args:
        shards: The input.
        ids: (id, place) of all its rows, in order.
    """
    log = IdLog()
    for sample_id, _ in ids:
        log.add(sample_id)
    return with_renamed(shards, log.renamed(ids))


def with_renamed(shards: Sequence[Shard], renamed: dict[int, Renamed]) -> list[Shard]:
    """Give each shard its own of the renamed rows. Raises ValueError if a shard does not know its `samples`."""
    ordinals = sorted(renamed)
    answers: list[Shard] = []
    first = 0
    for shard in shards:
        if renamed and shard.samples is None:
            raise ValueError(f"expected the number of rows of {shard.url}")
        last = first + (shard.samples or 0)
        own = ordinals[bisect_left(ordinals, first) : bisect_left(ordinals, last)]
        moved = tuple(replace(renamed[ordinal], index=ordinal - first) for ordinal in own)
        answers.append(replace(shard, renamed=moved) if moved else shard)
        first = last
    return answers


def plan_shards(reader: Reader) -> list[Shard]:
    """The shards of an input whose images are there, as far as the first images that it names as files show.

    Raises:
        InputError: None of these images exists; and whatever `Reader.shards` raises.
    """
    shards = reader.shards()
    images = _first_images(reader, shards)
    if not images:
        return shards
    with ThreadPoolExecutor(_FIRST_IMAGES) as pool:
        if any(pool.map(lambda image: place_of(image.url or "").exists(), images)):
            return shards
    first = images[0]
    which = f"none of the first {len(images)} images exists" if len(images) > 1 else "the only image does not exist"
    raise InputError(
        f"{which} in the folder {(first.url or '').removesuffix(first.file_name)}; the first is {first.file_name!r}. "
        "Set input.image_root to the folder that the paths of the images start from"
    )


def _first_images(reader: Reader, shards: Iterable[Shard]) -> list[ImageRef]:
    """At most `_FIRST_IMAGES` images that are files of their own; none if the input holds its images."""
    images: list[ImageRef] = []
    items = (item for shard in shards for item in reader.read(shard))
    with closing(items):
        for item in islice(items, _FIRST_ROWS):
            if not isinstance(item, Sample) or item.error is not None:
                continue
            if item.image.url is None or item.image.size >= 0:
                return []
            images.append(item.image)
            if len(images) == _FIRST_IMAGES:
                break
    return images
