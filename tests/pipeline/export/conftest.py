"""The dataset that all tests of exports read."""

from pathlib import Path

import pytest

from tests.pipeline.export.datasets import write_dataset


@pytest.fixture(scope="session")
def demo_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kinds of rows that formats stumble over, with images. Only to be read."""
    return write_dataset(tmp_path_factory.mktemp("exported") / "dataset")
