"""The examples in the docstrings of public classes and functions, run by doctest."""

import doctest
import pkgutil
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import phrasebox
import phrasebox.pipeline.dataset
import phrasebox.pipeline.export
import phrasebox.pipeline.export.chat
import phrasebox.pipeline.load

PACKAGES = (
    phrasebox.pipeline.dataset,
    phrasebox.pipeline.export,
    phrasebox.pipeline.export.chat,
    phrasebox.pipeline.load,
)
MODULES = ["phrasebox", "phrasebox.pipeline.locator"]
MODULES += [
    module.name
    for package in PACKAGES
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.fixture(autouse=True)
def reader(
    inline_dataset: Path, scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The folder of somebody who follows the examples: a dataset `out/` and an image `photo.jpg`."""
    (tmp_path / "out").symlink_to(inline_dataset)
    shutil.copy(min((scenes_folder / "images").iterdir()), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.parametrize("name", sorted({*phrasebox.__all__} - {"RunConfig", "__version__", "run"}))
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>> " in str(getattr(phrasebox, name).__doc__)
