"""Two datasets that all tests of the loaders read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.load.made import regrouped
from tests.synthetic import write_synthetic

ROWS = 230


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 rows without images in three shards, row groups of 30."""
    return regrouped(write_synthetic(tmp_path_factory.mktemp("load") / "dataset", ROWS, rows_per_file=90), 30)


@pytest.fixture(scope="session")
def with_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows with images in two shards, row groups of 8."""
    written = write_synthetic(tmp_path_factory.mktemp("load") / "dataset", 40, rows_per_file=25, embed_images=True)
    return regrouped(written, 8)
