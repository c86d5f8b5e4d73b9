from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.index import Index
from tests.build.datasets import Json
from tests.pipeline.dataset.plain import marks_of


@pytest.fixture(scope="package")
def whole(synthetic_dataset: Path) -> Any:
    """The 500 rows of the synthetic dataset as one table."""
    return pa.concat_tables(open_dataset(synthetic_dataset).tables())


@pytest.fixture(scope="package")
def rows(whole: Any) -> list[Json]:
    return whole.to_pylist()


@pytest.fixture(scope="package")
def index(synthetic_dataset: Path, rows: list[Json]) -> Iterator[Index]:
    with closing(Index(open_dataset(synthetic_dataset), marks_of(rows))) as index:
        index.build()
        yield index
