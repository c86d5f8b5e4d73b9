"""A dataset as samples for training: by number, for samplers, or as a stream, for more than fits into memory.

An epoch of the stream is one sequence of rows: the row groups, shuffled over all shards. Every
worker of every rank reads one stretch of it; the lengths of the stretches differ by at most one
row. Within a stretch, windows of rows are shuffled. No global random state is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from pydantic import Field
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, get_worker_info

from phrasebox.pipeline.dataset.folder import Dataset, open_dataset
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.load.row_groups import LoadOptions, RowGroup, row_groups_of, select_rows
from phrasebox.pipeline.load.sample import BadImages, Contents, SampleMaker
from phrasebox.stages.contract.errors import ConfigError, InputError, RowFault
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import AnyPath

AnyDataset = Dataset | AnyPath | str


class StreamOptions(LoadOptions):
    """The order of a stream, and the part of it for a rank.

    Attributes:
        shuffle: Shuffle the samples; otherwise they come in the order of the shards.
        shuffle_rows: Rows that a worker holds to shuffle them, with their encoded images. Rows of
            a row group stay near each other, so a sorted dataset needs a window of several row
            groups.
        seed: Seed of the order.
        even: "drop" gives each rank the same number of samples. Up to `world_size - 1` samples
            are left out, others in each epoch. The rows are counted first, which reads their
            errors and scores, and the stream has a length; a skipped bad image is replaced by a
            neighbour.
        rank: Number of this rank. By default that of torch.distributed if it is initialised, else
            RANK, else 0; the stream's constructor reads it, not the workers.
        world_size: Number of ranks, with the same defaults: WORLD_SIZE, else 1.
    """

    shuffle: bool = True
    shuffle_rows: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0)
    even: Literal["no", "drop"] = "no"
    rank: int | None = None
    world_size: int | None = None


class _Images:
    """The parts of both loaders: the dataset, the maker of samples, and the row groups."""

    def __init__(self, dataset: AnyDataset, contents: Contents | None, options: LoadOptions) -> None:
        self.bad_images = BadImages(options.on_bad_image)
        self.dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
        self._maker = SampleMaker(self.dataset, contents or Contents(), options)
        self.threshold = self._maker.selection.threshold
        self._groups = row_groups_of(self.dataset)
        self.read_row_groups = 0


class RegionStream(_Images, IterableDataset[Any]):
    """A stream of the samples of a dataset; `phrasebox.pipeline.load.sample` describes a sample.

    Workers and ranks share the rows of an epoch, and each sample comes exactly once. The order is
    a function of `seed`, the epoch and the numbers of ranks and workers. Call `set_epoch` before
    each epoch, as with torch's DistributedSampler, or every epoch has the same order; it reaches
    persistent workers too.

    Ranks get equal numbers of rows, give or take one, but may get different numbers of samples.
    Then DistributedDataParallel hangs; `even` prevents it.

    Args:
        dataset: A dataset, or its folder or URL.
        contents: The contents of a sample; by default images and annotations.
        **options: min_score, precision, keep, max_area, where, keep_empty, corrected, on_bad_image,
            shuffle, shuffle_rows, seed, even, rank, world_size: see `RegionChoice`, `LoadOptions` and
            `StreamOptions`.

    Attributes:
        threshold: The least score of `precision` or `keep`, and what it keeps; else None.
        bad_images: Its `count` is the number of skipped images.
        read_row_groups: Number of row groups that this process has read.

    Raises:
        InputError: The dataset is missing or damaged.
        ConfigError: An option is invalid or unknown.

    >>> from torch.utils.data import DataLoader
    >>> from phrasebox import RegionStream, collate_regions
    >>> from phrasebox.pipeline.load import Contents
    >>> stream = RegionStream("out/", Contents(square_px=224), precision=0.7, even="drop")
    >>> stream.set_epoch(3)
    >>> batch = next(iter(DataLoader(stream, 4, collate_fn=collate_regions)))
    >>> batch["images"].shape, batch["images"].dtype
    (torch.Size([4, 3, 224, 224]), torch.uint8)
    """

    def __init__(self, dataset: AnyDataset, contents: Contents | None = None, **options: Any) -> None:
        self._options = StreamOptions(**options)
        self._is_even = self._options.even != "no"
        self.rank, self.world_size = place_of_rank(self._options.rank, self._options.world_size)
        super().__init__(dataset, contents, self._options)
        if self._is_even:
            self._groups = select_rows(
                self._groups, self._options, self._maker.selector, self._maker.corrections
            )
        # In shared memory, so that it reaches workers that live on.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the number, >= 0, of the epoch of the next iteration."""
        if epoch < 0:
            raise ValueError(f"expected epoch >= 0, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of this rank's samples in an epoch. Raise TypeError without `even`."""
        if not self._is_even:
            raise TypeError('the samples of a RegionStream are not counted: give even="drop"')
        return len(range(*self._rank_stretch()))

    def __iter__(self) -> Iterator[Any]:
        """Yield this worker's samples of the epoch."""
        self._check_place()
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        samples = self._samples(int(self._epoch), *stretch(*self._rank_stretch(), workers, number))
        return _replace_missing(samples) if self._is_even else samples

    def _order(self, count: int, *seeds: int) -> Sequence[int]:
        if not self._options.shuffle:
            return range(count)
        order: list[int] = np.random.default_rng((self._options.seed, *seeds)).permutation(count).tolist()
        return order

    def _samples(self, epoch: int, start: int, stop: int) -> Iterator[Any]:
        """Yield the samples of a stretch; None for a bad image under `even`."""
        groups = [self._groups[number] for number in self._order(len(self._groups), epoch)]
        entries = self._entries(groups, start, stop)
        for first in range(start, stop, self._options.shuffle_rows):
            window = list(islice(entries, self._options.shuffle_rows))
            for index in self._order(len(window), epoch, first):
                row = window[index]
                window[index] = None
                if row is not None:
                    yield from self._sample(row)

    def _sample(self, row: Row) -> Iterator[Any]:
        try:
            yield self._maker.sample(row)
        except RowFault as fault:
            self.bad_images.report(self._maker.where(row), fault)
            if self._is_even:
                yield None

    def _entries(self, groups: list[RowGroup], start: int, stop: int) -> Iterator[Row | None]:
        """Yield the rows of a part of the epoch's sequence; None for a row that is no sample."""
        for number, first, last in split_by_group([group.size for group in groups], start, stop):
            self.read_row_groups += 1
            for table in groups[number].stretch(self._maker.columns, first, last):
                samples, numbers = self._maker.choose(table)
                rows = dict(zip(numbers.tolist(), self._maker.rows(samples), strict=True))
                yield from (rows.get(place) for place in range(table.num_rows))

    def _rank_stretch(self) -> tuple[int, int]:
        total = sum(group.size for group in self._groups)
        if not self._is_even:
            return stretch(0, total, self.world_size, self.rank)
        size = total // self.world_size
        return self.rank * size, (self.rank + 1) * size

    def _check_place(self) -> None:
        """Raise ConfigError if the process joined a group after the constructor: all ranks would get equal samples."""
        rank, ranks = place_of_rank(self._options.rank, self._options.world_size)
        if _in_group() and (rank, ranks) != (self.rank, self.world_size):
            raise ConfigError(
                f"the stream was made for rank {self.rank} of {self.world_size}, this process is "
                f"rank {rank} of {ranks}: make it after torch.distributed.init_process_group, or "
                "give rank and world_size"
            )


class RegionDataset(_Images, TorchDataset[Any]):
    """The samples of a dataset by number, in the order of shards; `phrasebox.pipeline.load.sample` describes a sample.

    Reading a sample reads its row group, unless that is cached: with images in the shards and a
    shuffling sampler, `RegionStream` reads far less. A DataLoader reads each group once a batch
    (`__getitems__`). Under "skip", its batches come without bad images; a single sample still
    raises.

    The rows are counted first. A process caches the last used row groups with their encoded
    images: up to `cached_bytes`, and at least one.

    Args:
        dataset: A dataset, or its folder or URL.
        contents: The contents of a sample; by default images and annotations.
        cached_bytes: The most memory for row groups.
        **options: min_score, precision, keep, max_area, where, keep_empty, corrected, on_bad_image: see
            `RegionChoice` and `LoadOptions`.

    Attributes:
        bad_images, read_row_groups, threshold: As of `RegionStream`.

    Raises:
        InputError: The dataset is missing or damaged.
        ConfigError: An option is invalid or unknown.

    >>> from phrasebox import RegionDataset
    >>> samples = RegionDataset("out/", where="w > 20")
    >>> sample = samples[-1]
    >>> sample["image"].dtype, tuple(sample["image"].shape) == (3, *sample["size_hw"])
    (torch.uint8, True)
    >>> len(sample["phrases"]) == len(sample["boxes_xyxy_px"]) == len(sample["scores"])
    True
    """

    def __init__(
        self,
        dataset: AnyDataset,
        contents: Contents | None = None,
        cached_bytes: int = 2**28,
        **options: Any,
    ) -> None:
        load_options = LoadOptions(**options)
        super().__init__(dataset, contents, load_options)
        self._groups = select_rows(
            self._groups, load_options, self._maker.selector, self._maker.corrections
        )
        self._starts = np.cumsum([0, *(group.size for group in self._groups)])
        self._cached_bytes = cached_bytes
        # The last used at the end. Rows as plain values take a hundred times the memory.
        self._cache: dict[int, pa.Table] = {}

    def __getstate__(self) -> Json:
        return {**self.__dict__, "_cache": {}}

    def __repr__(self) -> str:
        """Return the samples and the dataset on one line."""
        return f"RegionDataset: {len(self):,} samples of {self.dataset!r}"

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        """Return the sample with a number; negative numbers count from the end.

        Raise InputError for a bad image.
        """
        row = self._row(index)
        try:
            return self._maker.sample(row)
        except RowFault as fault:
            raise InputError(f"{self._maker.where(row)}: {fault}") from fault

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples with these numbers, in this order; under "skip" without those of bad images."""
        samples = {}
        for index in sorted(set(indices)):  # neighbours share a row group
            row = self._row(index)
            try:
                samples[index] = self._maker.sample(row)
            except RowFault as fault:
                self.bad_images.report(self._maker.where(row), fault)
        return [samples[index] for index in indices if index in samples]

    def _row(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a number below {len(self)}, got {index}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        table = self._cache[number] = self._cache.pop(number, None) or self._samples(self._groups[number])
        while (
            len(self._cache) > 1
            and sum(group.nbytes for group in self._cache.values()) > self._cached_bytes
        ):
            del self._cache[next(iter(self._cache))]
        return self._maker.rows(table.slice(index - int(self._starts[number]), 1))[0]

    def _samples(self, group: RowGroup) -> pa.Table:
        self.read_row_groups += 1
        tables = group.stretch(self._maker.columns, 0, group.size)
        table = pa.concat_tables(self._maker.choose(part)[0] for part in tables)
        if table.num_rows != group.size:
            raise ConfigError(f"{group.path} has changed since the dataset was opened: open it again")
        return table


def _replace_missing(samples: Iterator[Any]) -> Iterator[Any]:
    """Yield the samples, with a neighbour in the place of each None.

    Raise InputError if all are None.
    """
    gap = 0
    last = None
    for sample in samples:
        gap += 1
        if sample is not None:
            last = sample
            yield from repeat(last, gap)
            gap = 0
    if last is None and gap:
        raise InputError(f"all {gap} images of this worker's part are broken or missing, see the warnings")
    yield from repeat(last, gap)


def place_of_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of ranks, by default those of torch.distributed or of the environment (torchrun)."""
    if (rank is None) != (world_size is None):
        raise ConfigError(f"expected rank and world_size together, got {rank} and {world_size}")
    if rank is None or world_size is None:
        if _in_group():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank = int(os.environ.get("RANK", "0"))
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ConfigError(f"expected 0 <= rank < world_size, got rank {rank} of {world_size}")
    return rank, world_size


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def stretch(start: int, stop: int, parts: int, part: int) -> tuple[int, int]:
    """Return part `part` of `parts` of the positions from `start` to `stop`; lengths differ by at most one."""
    size = stop - start
    return start + size * part // parts, start + size * (part + 1) // parts


def split_by_group(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (group, first, last) for positions `start` to `stop` of a sequence of groups with `sizes` rows."""
    offset = 0
    for number, size in enumerate(sizes):
        first = max(0, start - offset)
        last = min(size, stop - offset)
        if first < last:
            yield number, first, last
        offset += size
