"""A dataset by number, for samplers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset as TorchDataset

from stages.contract.errors import ConfigError, InputError, RowFault
from stages.dataset.folder import Dataset
from stages.dataset.load.row_groups import RowBlock, counted, opened, row_groups_of
from stages.dataset.load.sample import BadImages, Contents, OnBadImage, SampleMaker
from stages.storage import AnyPath


class RegionDataset(TorchDataset[Any]):
    """The samples of a dataset by number, in the order of the shards: see `sample.py` for what a sample is.

    Parquet is read by row groups: a sample costs reading all of its group, unless the group is among the last ones
    used. With images in the shards and a shuffling sampler that is up to as many times the bytes as a group has rows;
    `RegionStream` reads every byte once. A DataLoader asks for whole batches (`__getitems__`), which reads each group
    once a batch.

    Args:
        dataset, contents, min_score, where, keep_empty, keep_failed: As for `RegionStream`. The rows are counted
            first, which reads errors, scores, and what the condition needs.
        on_bad_image: "raise" InputError, or "skip": batches of a DataLoader come without the image, with a warning and
            counted in `bad_images.count`; a single sample still raises.
        cached_rows: Rows of the last used row groups that a process holds, with their encoded images.

    Raises:
        InputError: There is no dataset, or it is damaged.
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        dataset: Dataset | AnyPath | str,
        contents: Contents | None = None,
        *,
        min_score: float = 0.0,
        where: str = "",
        keep_empty: bool = False,
        keep_failed: bool = False,
        on_bad_image: OnBadImage = "raise",
        cached_rows: int = 1000,
    ) -> None:
        self.dataset, choice = opened(dataset, min_score, where, keep_empty=keep_empty, keep_failed=keep_failed)
        self._maker = SampleMaker(self.dataset, contents or Contents(), choice)
        self.bad_images = BadImages(on_bad_image)
        groups, self.skipped_row_groups = row_groups_of(self.dataset, choice)
        self._groups = counted(groups, choice, self._maker.selector)
        self._starts = np.cumsum([0, *(group.size for group in self._groups)])
        self._cached_rows = cached_rows
        self._cache: OrderedDict[int, list[tuple[RowBlock, int]]] = OrderedDict()
        self.read_row_groups = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        """The sample with a number; negative ones count from the end. Raises InputError for a bad image."""
        block, row = self._place(index)
        try:
            return self._maker.sample(block, row)
        except RowFault as fault:
            raise InputError(f"{self._maker.where(block, row)}: {fault}") from fault

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples with these numbers, in their order; under "skip" without those of bad images."""
        found = {}
        for index in sorted(set(indices)):  # neighbours share a row group
            block, row = self._place(index)
            try:
                found[index] = self._maker.sample(block, row)
            except RowFault as fault:
                self.bad_images.met(self._maker.where(block, row), fault)
        return [found[index] for index in indices if index in found]

    def _place(self, index: int) -> tuple[RowBlock, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a number below {len(self)}, got {index}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._rows(number)[index - int(self._starts[number])]

    def _rows(self, number: int) -> list[tuple[RowBlock, int]]:
        """The samples of a row group, from the cache if it has them."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        group = self._groups[number]
        rows: list[tuple[RowBlock, int]] = []
        self.read_row_groups += 1
        for table in group.stretch(self._maker.columns, 0, group.size):
            block, _ = self._maker.block(table)
            rows += [(block, row) for row in range(len(block))]
        if len(rows) != group.size:
            raise ConfigError(f"{group.path} has changed since the dataset was opened: open it again")
        self._cache[number] = rows
        while len(self._cache) > 1 and sum(map(len, self._cache.values())) > self._cached_rows:
            self._cache.popitem(last=False)
        return rows
