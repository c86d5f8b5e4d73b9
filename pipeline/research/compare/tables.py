"""The tables of `compare`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from phrasebox.pipeline.commands.tables import format_value, make_figure_table
from phrasebox.pipeline.research.compare.comparison import Comparison, ComparisonRow
from phrasebox.pipeline.research.compare.figures import FIGURES, TABLES
from phrasebox.pipeline.terminal import counted, say


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the tables of `compare` for people. A + or - marks a value that differs from Grad-ECLIP's beyond chance."""
    rows = comparison.rows
    counts = comparison.counts
    say(
        console,
        f"{comparison.pictures}: {counted(counts.images, 'image')}, {counted(counts.phrases, 'phrase')}, "
        f"{counts.placed:,} of them with a known place; model {comparison.model} on {comparison.device}",
    )
    for title, figures in TABLES.items():
        columns = [figure for figure in figures if any(figure in row.figures for row in rows)]
        table = make_figure_table(title, [FIGURES[figure].title for figure in columns])
        for row in rows:
            if any(figure in row.figures for figure in columns):
                label = f"({row.explainer})" if row.baseline else row.explainer
                table.add_row(label, *(_with_mark(row, figure) for figure in columns))
        if columns:
            table.add_row("n", *(f"{n} " for n in sizes_of(rows, columns)))
            console.print(table)
    titles = ("multiple", "ms an image", "r with the model's", "differs by", "failed maps")
    table = make_figure_table(
        "Cost as a multiple of encoding the image, and the cosine that was explained", titles
    )
    for row in rows:
        if row.explained is not None:
            agreement = row.explained.cosine_agreement
            table.add_row(
                row.explainer,
                f"{row.explained.cost.encode_image:.2f}",
                f"{1000 * row.explained.cost.seconds:,.0f}",
                "-" if agreement.correlation is None else f"{agreement.correlation:.4f}",
                f"{agreement.mean_distance:.4f}",
                f"{row.explained.failed_maps:,}",
            )
    console.print(table)
    say(
        console,
        "+ and -: higher or lower than grad_eclip by more than chance (paired, over 8 or more images; 95 % for "
        "all marks together, Holm). Deletion, "
        "shuffled weights and other phrases: lower is better. (centre), (random) and (raw_attention) know no phrase",
    )


def sizes_of(rows: Sequence[ComparisonRow], names: Sequence[str]) -> list[str]:
    """Return the number of values of each figure, over some rows; `2, 16` where the rows differ."""
    sizes = [sorted({row.figures[name].n for row in rows if name in row.figures}) for name in names]
    return [", ".join(f"{n:,}" for n in numbers) for numbers in sizes]


def _with_mark(row: ComparisonRow, name: str) -> str:
    figure = row.figures.get(name)
    return "-" if figure is None else format_value(figure) + (row.mark(name) or " ")
