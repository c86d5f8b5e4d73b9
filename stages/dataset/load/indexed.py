"""A dataset by number, for samplers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset as TorchDataset

from stages.contract.errors import ConfigError, InputError, RowFault
from stages.dataset.folder import Dataset
from stages.dataset.load.bad_images import BadImages, OnBadImage
from stages.dataset.load.block import Block
from stages.dataset.load.contents import Contents
from stages.dataset.load.opened import choice_of, opened
from stages.dataset.load.pieces import counted, pieces_of, tables
from stages.dataset.load.sample import SampleMaker


class RegionDataset(TorchDataset[Any]):
    """The samples of a dataset by number, in the order of the shards: see `sample.py` for what a sample is.

    Parquet is read by row groups: a sample costs reading all of its group, unless it is among the last ones used.
    With images in the shards and a shuffling sampler that is up to as many times the bytes as a group has rows;
    `RegionStream` reads every byte once. A DataLoader asks for whole batches (`__getitems__`), which reads each
    group once a batch.

    Args:
        dataset, contents, min_score, where, keep_empty, keep_failed: as for `RegionStream`. The rows are counted
            first, which reads errors, scores, and what the condition asks for.
        on_bad_image: "raise" InputError, or "skip": batches of a DataLoader go without it, with a warning, counted in
            `bad_images.count`; a single sample still raises.
        cached_rows: rows of the last used row groups that a process holds, with their encoded images.

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
        on_bad_image: OnBadImage = "raise",
        cached_rows: int = 1000,
    ) -> None:
        self.dataset = opened(dataset)
        choice = choice_of(self.dataset, min_score, where, keep_empty=keep_empty, keep_failed=keep_failed)
        self._maker = SampleMaker(self.dataset, contents or Contents(), choice)
        self.bad_images = BadImages(on_bad_image)
        pieces, self.skipped_row_groups = pieces_of(self.dataset, choice)
        self._pieces = counted(pieces, choice, self._maker.selector)
        self._starts = np.cumsum([0, *(piece.size for piece in self._pieces)])
        self._cached_rows = cached_rows
        self._cache: OrderedDict[int, list[tuple[Block, int]]] = OrderedDict()
        self.read_row_groups = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        """Samples."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        """The sample of that number; negative ones count from the end. Raises InputError for a bad image."""
        block, row = self._place(index)
        try:
            return self._maker.sample(block, row)
        except RowFault as fault:
            raise InputError(f"{self._where(block, row)}: {fault}") from fault

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of those numbers, in their order, without those of bad images under "skip"."""
        found = {}
        for index in sorted(set(indices)):  # neighbours share a row group
            block, row = self._place(index)
            try:
                found[index] = self._maker.sample(block, row)
            except RowFault as fault:
                self.bad_images.met(self._where(block, row), fault)
        return [found[index] for index in indices if index in found]

    def _where(self, block: Block, row: int) -> str:
        return f"{self.dataset.path}: sample {block.sample_ids[row]!r}, image {block.file_names[row]!r}"

    def _place(self, index: int) -> tuple[Block, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a number below {len(self)}, got {index}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._rows(number)[index - int(self._starts[number])]

    def _rows(self, number: int) -> list[tuple[Block, int]]:
        """The samples of a piece, from the cache if it has them."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        piece = self._pieces[number]
        numbers = piece.numbers(0, piece.size)
        rows: list[tuple[Block, int]] = []
        self.read_row_groups += 1
        for offset, table in tables(piece, self._maker.columns):
            inside = numbers[(numbers >= offset) & (numbers < offset + table.num_rows)] - offset
            block, _ = self._maker.block(table.take(pa.array(inside)))
            rows += [(block, row) for row in range(len(block))]
        if len(rows) != piece.size:
            raise ConfigError(f"{piece.path} has changed since the dataset was opened: open it again")
        self._cache[number] = rows
        while len(self._cache) > 1 and sum(map(len, self._cache.values())) > self._cached_rows:
            self._cache.popitem(last=False)
        return rows
