"""Cutting an input into shards, making sure that no id is given twice and that its images are where it says."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice, pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import InputError
from stages.contract.records import ImageRef, Sample, stable_id
from stages.read.base import Reader, Renamed, Shard
from stages.read.find import FoundFile
from stages.read.streams import is_compressed
from stages.storage import filesystem_of, path_in

_FIRST_IMAGES: Final = 20
"""Images of which at least one must exist."""

_FIRST_ROWS: Final = 1000
"""Rows among which they are looked for."""


class Entry(NamedTuple):
    """A row seen while planning. position: its first byte; row: its number; place: as messages name it."""

    position: int
    row: int
    sample_id: str
    place: str


class IdLog:
    """Finds the rows whose id an earlier row has, at 8 bytes of memory for each row.

    Rows are compared by the 53-bit hash that becomes the image id of the dataset, so that this
    id is unique too; equal hashes are told from equal ids by a second look at the rows.
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
        """New ids for the rows that need one, by the row's ordinal in the input; `index` is not set yet.

        again: gives all rows once more, as (id, place); called only if two hashes are equal.
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
    """Shards of `shard_size` rows; a compressed file is one shard, as it cannot be entered in the middle.

    scan: gives the rows of a file, in order; it may be called twice for each file.
    """
    log = IdLog()
    shards: list[Shard] = []
    for file in files:
        starts: list[tuple[int, int]] = []
        rows = 0
        for entry in scan(file):
            if rows % shard_size == 0 and not (starts and is_compressed(file.url)):
                starts.append((entry.position, entry.row))
            log.add(entry.sample_id)
            rows += 1
        for part, ((position, row), (stop, _)) in enumerate(pairwise([*starts, (None, 0)])):
            samples = rows - part * shard_size if stop is None else shard_size
            shards.append(
                Shard(
                    url=file.url,
                    name=file.name,
                    start=position or 0,
                    stop=stop,
                    first_row=row,
                    samples=samples,
                )
            )
    return with_renamed(shards, log.renamed(lambda: ((e.sample_id, e.place) for file in files for e in scan(file))))


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
    url = image.url or ""
    filesystem = filesystem_of(url)
    return bool(filesystem.exists(path_in(filesystem, url)))


def with_renamed(shards: Sequence[Shard], renamed: dict[int, Renamed]) -> list[Shard]:
    """Give each shard the renamed rows that are its own.

    Raises ValueError if a shard's `samples` is not known.
    """
    if not renamed:
        return list(shards)
    ordinals = sorted(renamed)
    answers: list[Shard] = []
    first = taken = 0
    for shard in shards:
        if shard.samples is None:
            raise ValueError(f"expected the number of rows of {shard.url}")
        own: list[Renamed] = []
        while taken < len(ordinals) and ordinals[taken] < first + shard.samples:
            own.append(replace(renamed[ordinals[taken]], index=ordinals[taken] - first))
            taken += 1
        first += shard.samples
        answers.append(replace(shard, renamed=tuple(own)) if own else shard)
    return answers


def _contains(ordered: NDArray[np.int64], value: int) -> bool:
    index = int(np.searchsorted(ordered, value))
    return index < len(ordered) and int(ordered[index]) == value
