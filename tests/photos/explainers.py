"""Tables in Markdown of what `phrasebox compare --json` tells: `python -m tests.photos.explainers FILE.json ...`.

For configs/measured/explainers.md. A figure that differs from Grad-ECLIP's by more than chance has a + or -.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Row = Mapping[str, Any]

PARTS: Final[dict[str, Mapping[str, str]]] = {
    "where the heat lies": {
        "pointing": "pointing",
        "pointing_off_centre": "off the centre",
        "energy": "energy",
        "box_recall": "box recall, best share",
        "box_recall_otsu": "by Otsu",
        "mask_iou": "mask IoU, best share",
        "mask_iou_otsu": "by Otsu",
    },
    "insertion and deletion": {
        "deletion_rise": "deletion, RISE",
        "insertion_rise": "insertion, RISE",
        "deletion_authors": "deletion, authors",
        "insertion_authors": "insertion, authors",
    },
    "sanity": {
        "weights_head": "head shuffled",
        "weights_all": "all shuffled",
        "phrase_swapped": "another image's phrase",
        "same_thing": "same thing",
        "other_thing": "another thing",
    },
}
"""Table -> figure -> column."""


def tables(rows: Sequence[Row]) -> str:
    """All tables of all sources."""
    sources = dict.fromkeys(row["pictures"] for row in rows)
    return "\n\n".join(
        part for name in sources for part in _of_source([row for row in rows if row["pictures"] == name])
    )


def _of_source(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    counts = first["counts"]
    sizes = f"{counts['images']:,} images, {counts['phrases']:,} phrases; model {first['model']} on {first['device']}"
    less = f"insertion and deletion of {counts['curves']:,} phrases, sanity on {counts['sanity']} images"
    parts = [f"**{first['pictures']}**: {sizes}; {less}"]
    for title, columns in PARTS.items():
        known = {name: column for name, column in columns.items() if any(name in row["figures"] for row in rows)}
        lines = [(_name(row), [_cell(row, name) for name in known]) for row in rows if set(known) & set(row["figures"])]
        if known:
            parts.append(_table(title, list(known.values()), lines))
    measured = [row for row in rows if not row["baseline"]]
    lines = [
        (
            _name(row),
            [
                f"{row['cost']['encode_image']:.2f}",
                _number(row["cosine_agreement"]["correlation"], 4),
                _number(row["cosine_agreement"]["mean_difference"], 4),
                _number(row["map_correlation"].get("grad_eclip"), 3),
            ],
        )
        for row in measured
    ]
    titles = ["x encode_image", "cosine: correlation", "mean difference", "maps: correlation with grad_eclip"]
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
    difference = (row["differences"] or {}).get(name)
    sign = ""
    if difference is not None and difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]:
        sign = "+" if difference["low"] > 0 else "-"
    return f"{found['value']:.3f}{sign}".replace("0.", ".", 1)


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
