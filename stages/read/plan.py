"""Cut an input into shards: repeated ids, rows that are one sample, images that do not exist.

Captions of one image are often in separate rows, one after the other. They are one sample, since all regions of an
image belong together: it has the captions of the rows in order, and id and place of the first row. Bad rows, and rows
with different ids, are separate samples.
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
from stages.contract.records import ImageRef, Sample, stable_key
from stages.read.base import Reader, Shard, SkippedRow, SourceConfig
from stages.read.find import SourceFile
from stages.read.rows import FieldsConfig, RowParser, bad_row, first_field, reject_repeat, safe_place
from stages.read.streams import is_compressed
from stages.shared.storage import place_of

_FIRST_IMAGES: Final = 20  # Images to check: at least one must exist
_FEWEST_FAULTS: Final = 10  # Rows without a usable image for which the whole input is rejected
_FIRST_ROWS: Final = 1000  # Rows to search for these

MOST_ROWS: Final = 1000
"""Rows of one sample; more rows of the same image are another sample. Visual Genome has some 50 per image."""


class LinesConfig(SourceConfig, FieldsConfig):
    """The common keys of `input` for tables of lines."""

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

    number: int  # number of its first line in messages
    position: int  # its first byte
    gives_id: bool  # whether it has an id
    sample: Sample  # the sample of this row alone; it has an `error` if the row is bad

    @staticmethod
    def of(number: int, position: int, fields: Mapping[str, Any] | RowFault, shard: Shard, parser: RowParser) -> Row:
        """Return the row with these fields by name, or with a fault if they could not be read."""
        place = safe_place(shard.name, number)
        if isinstance(fields, RowFault):
            return Row(number, position, False, bad_row(place, fields))
        gives_id = first_field(fields, parser.fields.names("id"))[1] is not None
        return Row(number, position, gives_id, parser.sample(fields, place=place, shard=shard))

    def follows(self, row: Row) -> bool:
        """Return whether both rows are good, name the same image, and give the same id or none."""
        sample = self.sample
        previous = row.sample
        if sample.error is not None or previous.error is not None or sample.image.file_name != previous.image.file_name:
            return False
        return self.gives_id == row.gives_id and (not self.gives_id or sample.sample_id == previous.sample_id)


def samples(rows: Iterable[Row], config: LinesConfig, shard: Shard) -> Iterator[Sample | SkippedRow]:
    """Yield the samples of a shard of lines, with unique ids."""
    return unique_samples(map(_join_rows, _group_rows(rows, config)), shard)


def _join_rows(rows: Sequence[Row]) -> Sample:
    captions = tuple(text for row in rows for text in row.sample.captions)
    return replace(rows[0].sample, captions=captions)


def _group_rows(rows: Iterable[Row], config: LinesConfig) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        if group and not (config.group_rows and len(group) < MOST_ROWS and row.follows(group[-1])):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def plan_lines(
    files: Sequence[SourceFile], scan: Callable[[SourceFile], Iterable[Row]], config: LinesConfig
) -> list[Shard]:
    """Cut files into shards of `shard_size` samples; a compressed file is one shard, since it has no random access.

    `scan` yields the rows of a file, in order.
    """
    keys = array("q")
    shards: list[Shard] = []
    for file in files:
        starts: list[Row] = []
        rows: list[int] = []
        count = 0
        for group in _group_rows(scan(file), config):
            if count % config.shard_size == 0 and not (starts and is_compressed(file.url)):
                starts.append(group[0])
                rows.append(0)
            keys.append(stable_key(group[0].sample.sample_id))
            count += 1
            rows[-1] += len(group)
        for part, (first, next_row) in enumerate(zip(starts, [*starts[1:], None], strict=False)):
            shards.append(
                Shard(
                    url=file.url,
                    name=file.name,
                    start=first.position,
                    stop=next_row.position if next_row else None,
                    first_row=first.number,
                    samples=config.shard_size if next_row else count - part * config.shard_size,
                    rows=rows[part],
                )
            )
    return mark_repeats(shards, keys)


def grouped_rows(shards: Iterable[Shard]) -> str | None:
    """Return a sentence about an input with several rows in one sample; None if each row is a sample."""
    counts = [(shard.rows, shard.samples) for shard in shards if shard.rows is not None and shard.samples is not None]
    rows, count = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if rows == count:
        return None
    return (
        f"{rows:,} rows were grouped into {count:,} samples, since rows of one image follow each other; "
        "--set input.group_rows=false keeps them apart"
    )


def plan_rows(url: str, name: str, rows: Sequence[Any], shard_size: int) -> Iterator[Shard]:
    """Cut a file that cannot be read in parts: shards carry their rows, plain values, as compressed JSON."""
    for start in range(0, len(rows), shard_size):
        part = rows[start : start + shard_size]
        stop = start + len(part)
        yield Shard(
            url=url, name=name, start=start, stop=stop, first_row=start, samples=len(part), payload=pack_rows(part)
        )


def pack_rows(rows: Sequence[Any]) -> bytes:
    """Return rows, plain values, as the payload of a shard."""
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode())


def carried_rows(shard: Shard) -> list[Any]:
    """Return the rows that a shard carries."""
    rows: list[Any] = json.loads(zlib.decompress(shard.payload))
    return rows


def mark_repeats(shards: Sequence[Shard], keys: array[int]) -> list[Shard]:
    """Return shards that know which of their samples have the id of an earlier sample.

    Args:
        shards: Shards with `samples`.
        keys: The `stable_key` of every sample's id, in order. It takes 8 bytes of memory for each sample.
            A run tells samples apart by the same key.
    """
    samples = len(keys)
    firsts = np.unique(np.frombuffer(keys, np.int64), return_index=True)[1]
    if len(firsts) == samples:
        return list(shards)
    repeats = np.setdiff1d(np.arange(samples), firsts)
    marked_shards = []
    start = 0
    for shard in shards:
        stop = start + (shard.samples or 0)
        first, last = repeats.searchsorted([start, stop])
        marked_shards.append(replace(shard, repeats=tuple((repeats[first:last] - start).tolist())))
        start = stop
    return marked_shards


def unique_samples(samples: Iterable[Sample | SkippedRow], shard: Shard) -> Iterator[Sample | SkippedRow]:
    """Yield the samples of a shard; those with the id of an earlier sample as errors with another id."""
    repeats = set(shard.repeats)
    for index, sample in enumerate(samples):
        if index in repeats and isinstance(sample, Sample):
            yield reject_repeat(sample)
        else:
            yield sample


def plan_shards(reader: Reader) -> list[Shard]:
    """Plan an input, and check that at least one of its first image files exists.

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
    subject = f"none of the first {len(images)} images exists" if len(images) > 1 else "the only image does not exist"
    folder = (first.url or "").removesuffix(first.file_name)
    raise InputError(
        f"{subject} in the folder {folder}; the first is {first.file_name!r}{why}. Give the folder that the paths of "
        "the images start from",
        key="input.image_root",
    )


def _first_images(reader: Reader, shards: Iterable[Shard]) -> list[ImageRef]:
    """At most `_FIRST_IMAGES` images that are files; none if the input holds its images. Raise InputError."""
    images: list[ImageRef] = []
    faults: list[RowError] = []
    items = (item for shard in shards for item in reader.read(shard))
    with closing(items):
        for item in islice(items, _FIRST_ROWS):
            if not isinstance(item, Sample):
                continue
            if item.error is not None:
                faults.append(item.error)
                continue
            if item.image.url is None or item.image.size >= 0:
                return []
            images.append(item.image)
            if len(images) == _FIRST_IMAGES:
                break
    if len(faults) >= _FEWEST_FAULTS and not images and {fault.reason for fault in faults} == {"bad_location"}:
        raise InputError(f"none of the first {len(faults)} rows names an image that can be read: {faults[0].detail}")
    return images
