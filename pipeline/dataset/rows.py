"""Names for the plain values of a dataset's rows."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
"""A row of a dataset: its values by column."""

Annotation = dict[str, Any]
"""An entry of the column `annotations`: one region of one phrase, its values by field."""

Values = dict[str, Any]
"""Plain values by name, as JSON holds them."""
