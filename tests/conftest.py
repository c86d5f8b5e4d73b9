"""What all tests share: no network, no caches, two threads, and one small dataset of drawn scenes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Read by the libraries when they are imported, which a fixture would be too late for.
_CACHE = tempfile.TemporaryDirectory(prefix="phrasebox-tests-")  # goes away with this variable
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
# The same number on every machine: sums in float32 depend on it.
os.environ["OMP_NUM_THREADS"] = "2"

# The same examples each time: a failure is the change's own. `make fuzz` draws others. No deadlines: other programs may
# need the machine.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None, print_blob=True)
hypothesis.settings.load_profile("same")

SCENES = 12
"""Scenes in `scenes_folder` and rows in `inline_dataset`."""


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes as `phrasebox scenes` writes them. Only to be read."""
    from stages.model.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, SCENES, seed=3)
    return folder


@pytest.fixture(scope="session")
def scenes_config(scenes_folder: Path) -> dict[str, Any]:
    """Values of a run over the scenes with the embedded model and the inline engine, without `output`."""
    captions, images = scenes_folder / "captions.jsonl", scenes_folder / "images"
    return {
        "input": {"kind": "jsonl", "path": str(captions), "image_root": str(images)},
        "engine": {"kind": "inline"},
    }


@pytest.fixture(scope="session")
def inline_dataset(scenes_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of the scenes, three files long. Only to be read: copy it to change it."""
    from rich.console import Console

    from pipeline.commands.run import run
    from pipeline.config import RunConfig

    output = {"path": str(tmp_path_factory.mktemp("inline") / "dataset"), "rows_per_file": 5}
    return run(RunConfig.model_validate({**scenes_config, "output": output}), Console(quiet=True))


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of 500 rows in three shards, made without a model. Only to be read: copy it to change it."""
    from tests.synthetic import write_synthetic

    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "dataset", 500, rows_per_file=180, seed=3)
