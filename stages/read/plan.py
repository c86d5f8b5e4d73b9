"""Cutting an input into shards, making sure that no id is given twice and that its images are where it says."""

from __future__ import annotations

import json
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import InputError
from stages.contract.records import ImageRef, Sample, stable_id
from stages.read.base import Reader, Renamed, Shard
from stages.read.find import FoundFile
from stages.read.streams import is_compressed
from stages.shared.storage import place_of

_FIRST_IMAGES: Final = 20
"""Images of which at least one must exist."""

_FIRST_ROWS: Final = 1000
"""Rows among which they are looked for."""


class Entry(NamedTuple):
    """A sample seen while planning.

    Attributes:
        position: The first byte of its first row.
        row: The number of that row.
        place: Its name in messages.
        rows: How many rows it is made of.
    """

    position: int
    row: int
    sample_id: str
    place: str
    rows: int


class IdLog:
    """Finds the rows whose id an earlier row has, with 8 bytes of memory for each row.

    Rows are compared by the 53-bit hash that becomes the image id of the dataset, so that this id is unique too. A
    second look at the rows tells equal ids from ids that only have the same hash.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, sample_id: str) -> None:
        """Note the id of the next row."""
        self._hashes.append(stable_id(sample_id))

    def extend(self, hashes: array[int]) -> None:
        """Note the `stable_id`s of the next rows."""
        self._hashes.extend(hashes)

    def renamed(self, again: Callable[[], Iterable[tuple[str, str]]]) -> dict[int, Renamed]:
        """New ids for the rows that need one, by the row's ordinal in the input; `Renamed.index` is not set yet.

        Args:
            again: Gives all rows once more, as (id, place). It is called only if two hashes are equal.
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
        for ordinal, (sample_id, place) in enumerate(again()):
            if not is_shared[ordinal]:
                continue
            owner = owners.setdefault(int(hashes[ordinal]), (ordinal, sample_id))
            if owner[0] == ordinal:
                continue
            other = f"{sample_id}#{place}"
            while (other_hash := stable_id(other)) in given or _contains(ordered, other_hash):
                other += "#"
            given.add(other_hash)
            renamed[ordinal] = Renamed(index=0, sample_id=other, duplicate=owner[1] == sample_id)
        return renamed


def plan_lines(
    files: Sequence[FoundFile], scan: Callable[[FoundFile], Iterator[Entry]], shard_size: int
) -> list[Shard]:
    """Shards of `shard_size` samples; a compressed file is one shard, since it cannot be entered in the middle.

    Args:
        files: The input.
        scan: Gives the samples of a file, in order. It may be called twice for each file.
        shard_size: Samples of a shard.
    """
    log = IdLog()
    shards: list[Shard] = []
    for file in files:
        starts: list[tuple[int, int]] = []
        rows: list[int] = []
        samples = 0
        for entry in scan(file):
            if samples % shard_size == 0 and not (starts and is_compressed(file.url)):
                starts.append((entry.position, entry.row))
                rows.append(0)
            log.add(entry.sample_id)
            samples += 1
            rows[-1] += entry.rows
        for part, ((position, row), (stop, _)) in enumerate(pairwise([*starts, (None, 0)])):
            shards.append(
                Shard(
                    url=file.url,
                    name=file.name,
                    start=position or 0,
                    stop=stop,
                    first_row=row,
                    samples=samples - part * shard_size if stop is None else shard_size,
                    rows=rows[part],
                )
            )
    return with_renamed(shards, log.renamed(lambda: ((e.sample_id, e.place) for file in files for e in scan(file))))


def plan_rows(url: str, name: str, rows: Sequence[Any], shard_size: int) -> Iterator[Shard]:
    """Shards of a file that cannot be read in parts; they carry their rows, plain values, as compressed JSON."""
    for start in range(0, len(rows), shard_size):
        part = rows[start : start + shard_size]
        payload = zlib.compress(json.dumps(part, separators=(",", ":")).encode())
        stop = start + len(part)
        yield Shard(url=url, name=name, start=start, stop=stop, first_row=start, samples=len(part), payload=payload)


def grouped_rows(shards: Iterable[Shard]) -> str | None:
    """Return a sentence about an input in which several rows are one sample; None if each row is one."""
    counted = [(shard.rows, shard.samples) for shard in shards if shard.rows is not None and shard.samples is not None]
    rows, samples = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
    if rows == samples:
        return None
    return (
        f"{rows:,} rows were grouped into {samples:,} samples, since rows of one image follow each other; "
        "--set input.group_rows=false keeps them apart"
    )


def carried_rows(shard: Shard) -> list[Any]:
    """The rows of a shard of `plan_rows`."""
    rows: list[Any] = json.loads(zlib.decompress(shard.payload))
    return rows


def with_unique_ids(shards: Sequence[Shard], ids: Sequence[tuple[str, str]]) -> list[Shard]:
    """The shards, with new ids for rows whose id an earlier row has.

    Args:
        shards: The input.
        ids: (id, place) of all its rows, in order.
    """
    log = IdLog()
    for sample_id, _ in ids:
        log.add(sample_id)
    return with_renamed(shards, log.renamed(lambda: ids))


def plan_shards(reader: Reader) -> list[Shard]:
    """The shards of an input whose images are there.

    Looked at are the first images that the input names as files of their own.

    Raises:
        InputError: None of these images exists; and whatever `Reader.shards` raises.
    """
    shards = reader.shards()
    images = _first_images(reader, shards)
    if not images:
        return shards
    with ThreadPoolExecutor(_FIRST_IMAGES) as pool:
        if any(pool.map(_exists, images)):
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


def _exists(image: ImageRef) -> bool:
    return place_of(image.url or "").exists()


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


def _contains(ordered: NDArray[np.int64], value: int) -> bool:
    index = int(np.searchsorted(ordered, value))
    return index < len(ordered) and int(ordered[index]) == value
