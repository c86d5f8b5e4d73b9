"""Tables in Markdown of what `phrasebox compare --json` tells: `python -m tests.photos.explainers FILE.json ...`.

For configs/measured/explainers.md. A figure that differs from Grad-ECLIP's by more than chance has
a + or - (Holm's correction over all marks).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.compare.figures import TABLES, sizes_of

Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> str:
    """All tables of all sources."""
    sources = dict.fromkeys(row["pictures"] for row in rows)
    parts = [_of_source([row for row in rows if row["pictures"] == name]) for name in sources]
    return "\n\n".join(part for own in parts for part in own)


def _of_source(rows: Sequence[Row]) -> list[str]:
    first, counts = rows[0], rows[0]["counts"]
    sizes = f"{counts['images']:,} images, {counts['phrases']:,} phrases; model {first['model']} on {first['device']}"
    parts = [f"**{first['pictures']}**: {sizes}"]
    for title, figures in TABLES.items():
        known = [name for name in figures if any(name in row["figures"] for row in rows)]
        lines = [(_name(row), [_cell(row, name) for name in known]) for row in rows if set(known) & set(row["figures"])]
        if known:
            lines.append(("n", sizes_of(rows, known)))
            parts.append(_table(title, [figures[name].title for name in known], lines))
    lines = []
    for row in (row for row in rows if not row["baseline"]):
        agreement = row["cosine_agreement"]
        numbers = [_number(agreement[name], 4) for name in ("correlation", "mean_difference")]
        lines.append((_name(row), [f"{row['cost']['encode_image']:.2f}", *numbers]))
    titles = ["x encode_image", "cosine: correlation", "mean difference"]
    parts.append(_table("cost, and what is explained", titles, lines))
    return parts


def _table(title: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in lines)])


def _name(row: Row) -> str:
    return f"*{row['explainer']}*" if row["baseline"] else f"`{row['explainer']}`"


def _cell(row: Row, name: str) -> str:
    found = row["figures"].get(name)
    if found is None:
        return "-"
    difference = (row["differences"] or {}).get(name) or {}
    return f"{found['value']:.3f}{difference.get('mark', '')}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """The command."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    rows = [row for name in sys.argv[1:] for row in json.loads(Path(name).read_text(encoding="utf-8"))]
    print(tables(rows))


if __name__ == "__main__":
    main()
