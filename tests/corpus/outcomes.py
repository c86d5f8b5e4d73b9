"""What a row came to, and whether that is what its case asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.corpus.goods import seen
from tests.pipeline.light import is_alike


def outcome(row: Mapping[str, Any]) -> str:
    """ "annotated", "without phrases", or the row's error."""
    if row["error"] is not None:
        return f"{row['error']}: {row['error_detail']}"
    return "annotated" if row["phrase_count"] else "without phrases"


def meets(row: Mapping[str, Any], wanted: str, alone: Mapping[str, Any] | None = None) -> bool:
    """Whether a row is "annotated", "without phrases", "any row" (one of these), "REASON: part of the message", or
    "good": as the row of the same image in `alone`, the run of good samples alone.
    """
    if wanted == "good":
        return alone is not None and is_alike("row", seen(row), alone)
    if wanted == "any row":
        return row["error"] is None
    reason, colon, part = wanted.partition(": ")
    found = outcome(row)
    return found == wanted if not colon else found.startswith(f"{reason}: ") and part in found
