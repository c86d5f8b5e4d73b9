"""Photographs with captions, and the rows that pipelines have to make of them."""

import json
import shutil
from pathlib import Path

import pytest

from phrasebox.pipeline.annotate.annotator import Annotator
from phrasebox.pipeline.demo.photographs import FOLDER
from tests.build.datasets import Json

MOST = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They are left to `make pipelines`; what pipelines warn of is not ours to change."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.pipelines)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def photographs() -> list[Json]:
    """The first bundled photographs, and one that is missing."""
    lines = (FOLDER / "captions.jsonl").read_text("utf-8").splitlines()[:MOST]
    return [*map(json.loads, lines), {"id": "none", "image": "none.jpg", "captions": ["a dog"]}]


@pytest.fixture
def folder(photographs: list[Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of someone who has them, and the current one."""
    shutil.copytree(FOLDER, tmp_path / "photos", ignore=shutil.ignore_patterns("*.py", "*.md", "*.json*"))
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in photographs))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def expected(photographs: list[Json]) -> list[Json]:
    """The rows of the photographs, without a pipeline."""
    annotate = Annotator("photo", input={"image_root": str(FOLDER)}, regions={"absent_share": 0.05})
    rows = annotate(photographs)
    assert [row["error"] for row in rows] == [None] * MOST + ["missing_image"]
    return rows
