"""The plain values of a dataset's rows, and what they hold."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
"""A row of a dataset: its values by column."""

Annotation = dict[str, Any]
"""An entry of the column `annotations`: one region of one phrase, its values by field."""


def absent_phrases(row: Row) -> list[str]:
    """Return the absent phrases of a row, each once."""
    return list(dict.fromkeys(entry["phrase"] for entry in row["absent"]))
