"""A dataset as a stream of samples, for training on more than fits into memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from stages.contract.errors import ConfigError, InputError, RowFault
from stages.dataset.folder import Dataset
from stages.dataset.load.bad_images import BadImages, OnBadImage
from stages.dataset.load.block import Block
from stages.dataset.load.contents import Contents
from stages.dataset.load.opened import choice_of, opened
from stages.dataset.load.order import cut, place, shuffled, stretch
from stages.dataset.load.pieces import Piece, counted, pieces_of, tables
from stages.dataset.load.sample import SampleMaker

Even = Literal["no", "drop", "repeat"]

Entry = tuple[Block, int] | None
"""A row of the sequence: where it stands, or None if it is no sample."""


class RegionStream(IterableDataset[Any]):
    """Streams the samples of a dataset: see `stages.dataset.load.sample` for what a sample is.

    Workers and ranks share an epoch's rows, each sample comes exactly once. The order is a function of `seed`, epoch
    and the numbers of ranks and workers, of nothing else; call `set_epoch` before each epoch, as with torch's
    DistributedSampler, or every epoch has the same one. It reaches persistent workers too.

    Rows are dealt out to within one row, but which of them are samples is only known when they are read: ranks may
    get different numbers of samples, at which DistributedDataParallel hangs. `even` prevents it.

    Args:
        dataset: its folder, or an opened one.
        contents: what a sample holds.
        min_score: only regions with at least this score. Row groups without any are not read.
        where: SQL condition on regions, see `stages.dataset.selection`.
        keep_empty: also images without a chosen region.
        keep_failed: also rows with an error; only without images.
        shuffle: False for the order of the shards.
        shuffle_rows: rows of the window that is shuffled; a worker holds as many, with their encoded images. Windows
            hold neighbours of a row group: where groups are large and the dataset is sorted, take several groups'.
        seed: of the order, >= 0.
        even: "drop" or "repeat" give each rank the same number of samples: up to `world_size - 1` are left out of an
            epoch, others in each, or come twice. The rows are counted first, which reads their errors and scores.
        count: count the rows, for `len`; so do "drop" and "repeat".
        rank, world_size: by default of torch.distributed if it is initialised, else RANK and WORLD_SIZE, else 0 of 1;
            asked for here, not later in the workers.
        on_bad_image: "raise" InputError, or "skip" it with a warning, counted in `bad_images.count`. With `even` a
            neighbour comes twice in its place.

    `skipped_row_groups` could not hold a sample, by their statistics; `read_row_groups` counts those that this
    process has read.

    Raises InputError for what is no dataset and ConfigError for arguments that cannot be.
    """

    def __init__(
        self,
        dataset: Dataset | Path | str,
        contents: Contents | None = None,
        *,
        min_score: float = 0.0,
        where: str = "",
        keep_empty: bool = False,
        keep_failed: bool = False,
        shuffle: bool = True,
        shuffle_rows: int = 1000,
        seed: int = 0,
        even: Even = "no",
        count: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        if shuffle_rows < 1 or seed < 0:
            raise ConfigError(f"expected shuffle_rows >= 1 and seed >= 0, got {shuffle_rows} and {seed}")
        if even not in ("no", "drop", "repeat"):
            raise ConfigError(f"even: expected 'no', 'drop' or 'repeat', got {even!r}")
        self.dataset = opened(dataset)
        self._choice = choice_of(self.dataset, min_score, where, keep_empty=keep_empty, keep_failed=keep_failed)
        self._maker = SampleMaker(self.dataset, contents or Contents(), self._choice)
        self._shuffle, self._shuffle_rows, self._seed, self._even = shuffle, shuffle_rows, seed, even
        self._given = rank is not None
        self.rank, self.world_size = place(rank, world_size)
        self.bad_images = BadImages(on_bad_image)
        self._pieces, self.skipped_row_groups = pieces_of(self.dataset, self._choice)
        self._counted = count or even != "no"
        if self._counted:
            self._pieces = counted(self._pieces, self._choice, self._maker.selector)
        self.read_row_groups = 0
        # In shared memory, so that it reaches workers that live on; -1 until `set_epoch` is called.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()
        self._begun, self._position, self._resumes = 0, 0, False

    def set_epoch(self, epoch: int) -> None:
        """The number, >= 0, of the epoch that the next iteration gives. A loaded state counts for its own epoch."""
        if epoch < 0:
            raise ValueError(f"expected epoch >= 0, got {epoch}")
        self._epoch.fill_(epoch)
        if not self._resumes or epoch != self._begun:
            self._begun, self._position, self._resumes = epoch, 0, False

    def __len__(self) -> int:
        """Samples of this rank in an epoch. Raises TypeError if they were not counted."""
        if not self._counted:
            raise TypeError("the samples of a RegionStream are not counted: give count=True, or even")
        start, stop = self._rank_stretch()
        return stop - start

    def state_dict(self) -> dict[str, int]:
        """Where this process's iteration stands, at no cost. With workers it is theirs that counts: torchdata's
        StatefulDataLoader asks each of them, and gives each its own back."""
        return {"seed": self._seed, "epoch": self._begun, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration gives the rest of the state's epoch, unless `set_epoch` asks for another one, which is
        given whole. The dataset, the arguments, the ranks and the workers must be those that the state was saved with.

        Raises ConfigError for the state of another seed.
        """
        if state["seed"] != self._seed:
            raise ConfigError(f"the state is of seed {state['seed']}, this stream has {self._seed}")
        self._begun, self._position, self._resumes = state["epoch"], state["position"], True
        # A worker gets its state when the iteration begins, after the trainer's `set_epoch`, which all of them share.
        if get_worker_info() is None:
            self._epoch.fill_(state["epoch"])

    def __iter__(self) -> Iterator[Any]:
        """This worker's samples of the epoch."""
        self._check_place()
        asked = int(self._epoch)
        epoch = asked if asked >= 0 else self._begun
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        start, stop = stretch(*self._rank_stretch(), workers, number)
        skipped = self._position if self._resumes and epoch == self._begun else 0
        self._begun, self._position, self._resumes = epoch, skipped, False
        order = range(len(self._pieces))
        if self._shuffle:
            order = shuffled(len(self._pieces), self._seed, epoch).tolist()
        pieces = [self._pieces[index] for index in order]
        samples = self._samples(pieces, epoch, start, stop, skipped)
        return samples if self._even == "no" else _in_full(samples)

    def _samples(self, pieces: list[Piece], epoch: int, start: int, stop: int, skipped: int) -> Iterator[Any]:
        """Samples of a stretch without its first rows; None for a bad image under `even`."""
        begun = skipped // self._shuffle_rows * self._shuffle_rows
        entries = self._entries(pieces, start + begun, stop)
        for first in range(start + begun, stop, self._shuffle_rows):
            window = list(islice(entries, self._shuffle_rows))
            order = range(len(window))
            if self._shuffle:
                order = shuffled(len(window), self._seed, epoch, first).tolist()
            for place_, index in enumerate(order, start=first - start):
                entry, window[index] = window[index], None
                if place_ < skipped:
                    continue
                self._position = place_ + 1
                if entry is not None:
                    yield from self._sample(*entry)

    def _sample(self, block: Block, row: int) -> Iterator[Any]:
        try:
            sample = self._maker.sample(block, row)
        except RowFault as fault:
            where = f"{self.dataset.path}: sample {block.sample_ids[row]!r}, image {block.file_names[row]!r}"
            self.bad_images.met(where, fault)
            if self._even != "no":
                yield None
        else:
            yield sample
        finally:
            block.images[row] = None  # other rows keep the block alive

    def _entries(self, pieces: list[Piece], start: int, stop: int) -> Iterator[Entry]:
        """The rows of a part of the epoch's sequence, one by one."""
        for number, first, last in cut([piece.size for piece in pieces], start, stop):
            piece = pieces[number]
            wanted = piece.numbers(first, last)
            self.read_row_groups += 1
            for offset, table in tables(piece, self._maker.columns):
                if offset > wanted[-1]:
                    break
                inside = wanted[(wanted >= offset) & (wanted < offset + table.num_rows)] - offset
                if not len(inside):
                    continue
                yield from self._entries_of(table, inside)

    def _entries_of(self, table: Any, numbers: Any) -> Iterator[Entry]:
        if len(numbers) < table.num_rows:
            table = table.take(pa.array(numbers))
        block, kept = self._maker.block(table)
        places: list[Entry] = [None] * table.num_rows
        for row, number in enumerate(kept.tolist()):
            places[number] = (block, row)
        yield from places

    def _rank_stretch(self) -> tuple[int, int]:
        total = sum(piece.size for piece in self._pieces)
        if self._even == "no":
            return stretch(0, total, self.world_size, self.rank)
        each = total // self.world_size if self._even == "drop" else -(-total // self.world_size)
        return self.rank * each, (self.rank + 1) * each

    def _check_place(self) -> None:
        """A stream that was made before its process joined a group would give all ranks the same samples."""
        now = place(None, None) if torch.distributed.is_available() and torch.distributed.is_initialized() else None
        if not self._given and now is not None and now != (self.rank, self.world_size):
            raise ConfigError(
                f"the stream was made for rank {self.rank} of {self.world_size}, this process is rank {now[0]} of "
                f"{now[1]}: make it after torch.distributed.init_process_group, or give rank and world_size"
            )


def _in_full(samples: Iterator[Any]) -> Iterator[Any]:
    """The samples, another one in the place of each None. Raises InputError if there is no other."""
    owed, last = 0, None
    for sample in samples:
        if sample is None:
            owed += 1
            continue
        last = sample
        for _ in range(1 + owed):
            yield last
        owed = 0
    if last is None and owed:
        raise InputError(f"all {owed} images of this worker's part are broken or missing, see the warnings")
    for _ in range(owed):
        yield last
