"""Good samples to stand beside bad ones, drawn scenes with their captions; and what a row came to."""

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from phrasebox.pipeline.demo.scenes import write_scenes
from tests.build.datasets import Json
from tests.build.files import read_lines
from tests.pipeline.light import is_alike

COUNT = 5


class Good(NamedTuple):
    """name: of its image file, unlike all others; image: a JPEG; caption: with phrases."""

    name: str
    image: bytes
    caption: str


@cache
def goods() -> tuple[Good, ...]:
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), COUNT, seed=11, side_px=96)
        rows = read_lines(Path(folder) / "captions.jsonl")
        images = [(Path(folder) / "images" / row["image"]).read_bytes() for row in rows]
    return tuple(Good(f"good {i}.jpg", images[i], rows[i]["caption"]) for i in range(COUNT))


def good(number: int) -> Good:
    """The goods in turn."""
    return goods()[number % COUNT]


def row_facts(row: Mapping[str, Any]) -> Json:
    """All that a row says of its image, without the ids, which depend on its place in the input."""
    fields = {
        key: row[key]
        for key in ("width", "height", "captions", "phrase_count", "warnings", "error", "error_detail")
    }
    regions = [
        {k: v for k, v in region.items() if k not in ("id", "image_id")} for region in row["annotations"]
    ]
    return {**fields, "annotations": regions}


def meets(row: Mapping[str, Any], wanted: str, expected: Mapping[str, Any] | None = None) -> bool:
    """Whether a row is "annotated", "without phrases", "any row" (one of these), of the reason of an error, or
    "good": as expected, the row of the same image in a run of good samples alone.
    """
    if wanted == "good":
        return expected is not None and is_alike("row", row_facts(row), expected)
    outcome = "annotated" if row["phrase_count"] else "without phrases"
    return (row["error"] or outcome) == wanted or (wanted == "any row" and row["error"] is None)
