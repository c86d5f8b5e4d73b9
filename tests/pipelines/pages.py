"""The examples of the page about pipelines, and what their rows have to be."""

from collections.abc import Sequence

import pytest

from tests.build.datasets import Json
from tests.test_pages import blocks

PAGE = "docs/how-to/call-from-a-pipeline.md"


def example(mark: str, language: str = "python") -> str:
    """The one block of the page that has a line."""
    (text,) = (block.text for block in blocks(PAGE) if block.language == language and mark in block.text)
    return text


def assert_alike(rows: Sequence[Json], expected: Sequence[Json]) -> None:
    """The same phrases with the same boxes, within a pixel: batches differ in their last digits."""
    assert [row["error"] for row in rows] == [row["error"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        found, wanted = row["annotations"], other["annotations"]
        assert [entry["phrase"] for entry in found] == [entry["phrase"] for entry in wanted]
        for entry, wanted_entry in zip(found, wanted, strict=True):
            assert entry["bbox"] == pytest.approx(wanted_entry["bbox"], abs=1)
            assert entry["score"] == pytest.approx(wanted_entry["score"], abs=1e-3)
            assert entry["segmentation"]["size"] == wanted_entry["segmentation"]["size"]
        assert [entry["phrase"] for entry in row["absent"]] == [
            entry["phrase"] for entry in other["absent"]
        ]
    assert sum(len(row["annotations"]) for row in rows) > len(rows)
