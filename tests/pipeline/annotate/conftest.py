"""Tables of scenes, and annotators of the bundled model for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.annotate.annotator import Annotator
from tests.build.datasets import Json


@pytest.fixture(scope="session")
def rows(scenes_folder: Path) -> list[Json]:
    """The captions of the scenes, with the names of their images."""
    lines = (scenes_folder / "captions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def embedded(rows: list[Json], scenes_folder: Path) -> list[Json]:
    """The same with the encoded images, as Hugging Face has them."""
    return [
        {
            **row,
            "image": {
                "bytes": (scenes_folder / "images" / row["image"]).read_bytes(),
                "path": row["image"],
            },
        }
        for row in rows
    ]


@pytest.fixture(scope="session")
def make_annotator(scenes_folder: Path) -> Callable[..., Annotator]:
    """Make an annotator of the images of the scenes, whose phrases are seldom absent."""

    def make(regions: Json | None = None, **settings: Any) -> Annotator:
        source = {"image_root": str(scenes_folder / "images"), "id": "id", **settings.pop("input", {})}
        return Annotator(
            "demo", input=source, regions={"absent_share": 0.05, **(regions or {})}, **settings
        )

    return make


@pytest.fixture(scope="session")
def annotator(make_annotator: Callable[..., Annotator]) -> Annotator:
    return make_annotator()
