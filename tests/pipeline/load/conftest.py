"""Two datasets that all tests of the loaders read, and what a loader should give of them, found the slow way."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.load import Contents
from tests.build.datasets import Json, change_rows, shards_of
from tests.synthetic import write_synthetic

NO_IMAGES = Contents(images=False)


def letters(texts: Sequence[str]) -> torch.Tensor:
    """A tokenizer: the code points of the first five letters."""
    return torch.tensor([[ord(letter) for letter in text[:5].ljust(5)] for text in texts])


def changed(
    folder: Path, change: Callable[[int, Json], None] = lambda number, row: None, rows: int = 30
) -> Path:
    """The dataset after `change(number, row)` of every row, with row groups of that many rows."""
    numbers = count()

    def change_all(values: list[Json]) -> None:
        for row in values:
            change(next(numbers), row)

    for path in shards_of(folder):
        change_rows(path, change_all, row_group_size=rows)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 rows without images in three shards, row groups of 30."""
    return changed(write_synthetic(tmp_path_factory.mktemp("load") / "dataset", 230, rows_per_file=90))


@pytest.fixture(scope="session")
def with_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows with images in two shards, row groups of 8."""
    written = write_synthetic(
        tmp_path_factory.mktemp("load") / "dataset", 40, rows_per_file=25, embed_images=True
    )
    return changed(written, rows=8)


def expected(folder: Path, keep: Callable[[Json], bool] = lambda region: True) -> dict[str, list[int]]:
    """sample_id -> ids of its regions that are kept, of rows without an error and with such a region."""
    regions_of_samples = {}
    for row in open_dataset(folder).rows():
        regions = [region["id"] for region in row["annotations"] if keep(region)]
        if row["error"] is None and regions:
            regions_of_samples[row["sample_id"]] = regions
    return regions_of_samples


def given(samples: Any) -> dict[str, list[int]]:
    """The same of samples; no sample may come twice."""
    regions: dict[str, list[int]] = {}
    for sample in samples:
        assert sample["sample_id"] not in regions
        regions[sample["sample_id"]] = sample["region_ids"].tolist()
    return regions


def names(samples: Any) -> list[str]:
    """Sample ids in order."""
    return [sample["sample_id"] for sample in samples]
