"""The tables of `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from pipeline.commands.tables import format_value, make_figure_table
from pipeline.research.compare.figures import FIGURES, TABLES, sizes_of
from pipeline.terminal import counted


def print_comparison(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the tables of `compare` for people. A + or - marks a value that differs from Grad-ECLIP's beyond chance."""
    first = rows[0]
    counts = first["counts"]
    console.print(
        f"{first['pictures']}: {counted(counts['images'], 'image')}, {counted(counts['phrases'], 'phrase')}, "
        f"{counts['placed']:,} of them with a known place; model {first['model']} on {first['device']}",
        soft_wrap=True,
    )
    for title, figures in TABLES.items():
        columns = [figure for figure in figures if any(figure in row["figures"] for row in rows)]
        table = make_figure_table(title, [FIGURES[figure].title for figure in columns])
        for row in rows:
            if any(figure in row["figures"] for figure in columns):
                label = f"({row['explainer']})" if row["baseline"] else row["explainer"]
                table.add_row(label, *(_with_mark(row, figure) for figure in columns))
        if columns:
            table.add_row("n", *(f"{n} " for n in sizes_of(rows, columns)))
            console.print(table)
    titles = ("x encode_image", "ms an image", "cosine r", "cosine differs by", "failed maps")
    table = make_figure_table("Cost, and what was explained", titles)
    for row in rows:
        if not row["baseline"]:
            cost = row["cost"]
            agreement = row["cosine_agreement"]
            table.add_row(
                row["explainer"],
                f"{cost['encode_image']:.2f}",
                f"{1000 * cost['seconds']:,.0f}",
                "-" if agreement["correlation"] is None else f"{agreement['correlation']:.4f}",
                f"{agreement['mean_distance']:.4f}",
                f"{row['failed_maps']:,}",
            )
    console.print(table)
    console.print(
        "+ and -: higher or lower than grad_eclip by more than chance (paired, over 8 or more images; 95 % for "
        "all marks together, Holm). Deletion, "
        "shuffled weights and other phrases: lower is better. (centre), (random) and (raw_attention) know no phrase",
        soft_wrap=True,
    )


def _with_mark(row: Mapping[str, Any], name: str) -> str:
    figure = row["figures"].get(name)
    difference = (row["differences"] or {}).get(name)
    return format_value(figure) + ("" if figure is None else ((difference or {}).get("mark") or " "))
