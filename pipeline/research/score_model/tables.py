"""The tables of `score-model`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from pipeline.commands.tables import format_interval, format_value, make_figure_table
from pipeline.terminal import counted, say

if TYPE_CHECKING:
    from pipeline.research.score_model.job import Scores

CLASS_FIGURES: Final = {"top1": "top1", "top5": "top5", "mean_per_class": "mean per class"}
PHRASE_FIGURES: Final = {"recall_1": "recall 1", "recall_5": "recall 5", "chance_1": "chance 1"}
RETRIEVAL_FIGURES: Final = {"r1": "r1", "r5": "r5", "r10": "r10"}
"""Figures of regions, of phrases and of retrieval -> headers."""

SEARCHES: Final = {"phrases": "in the image", "phrases_pool": "in up to 50 images"}
DIRECTIONS: Final = {"t2i": "image of a caption", "i2t": "caption of an image"}


def print_scores(scores: Scores, console: Console) -> None:
    """Print the tables of `score-model` for people, with the differences from another model where there is one."""
    counts = scores.counts
    say(
        console,
        f"{scores.model} on {scores.device}: {counted(counts.images, 'image')}, "
        f"{counted(counts.captions, 'caption')}, {counted(counts.boxes, 'region')}, in {scores.seconds:,.0f} s",
    )
    if scores.faults:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in scores.faults.items())
        say(console, f"images cannot be opened and are left out: {reasons}")
        say(console, *(f"  {example}" for example in scores.fault_examples))
    for key, kind in (("regions", "classes"), ("described", "colours and classes")):
        title = f"Regions, named among {counts.classes.get(key, 0):,} {kind}"
        _print_table(title, CLASS_FIGURES, {f"{key}.roi": "features in the box"}, scores, console)
    _print_table("Phrases: is the first region the right one?", PHRASE_FIGURES, SEARCHES, scores, console)
    _print_table("Retrieval", RETRIEVAL_FIGURES, DIRECTIONS, scores, console)
    if scores.comparison is not None:
        say(
            console,
            f"below each: the difference from {scores.comparison.compared_with}, paired over images; * is beyond "
            "chance",
        )


def _print_table(
    title: str, headers: dict[str, str], kinds: dict[str, str], scores: Scores, console: Console
) -> None:
    """Print a table with a row for each kind of question that was asked."""
    table = make_figure_table(title, [*headers.values(), "n"])
    for kind, name in kinds.items():
        if kind in scores.figures:
            _add_scores(table, name, kind, headers, scores)
    if table.row_count:
        console.print(table)


def _add_scores(table: Table, title: str, kind: str, names: Iterable[str], scores: Scores) -> None:
    """Add a row of figures with their intervals, and with differences from another model below them."""
    part = scores.figures[kind]
    differences = None if scores.comparison is None else scores.comparison.differences.get(kind)
    cells = []
    for name in names:
        lines = [format_value(part.figures.get(name)), format_interval(part.figures.get(name))]
        difference = None if differences is None else differences.figures.get(name)
        if difference is not None:
            sign = "" if difference.low <= 0 <= difference.high else " *"
            lines += [f"{difference.value:+.3f}{sign}", f"{difference.low:+.3f} {difference.high:+.3f}"]
        cells.append("\n".join(filter(None, lines)))
    table.add_row(title, *cells, f"{part.n:,}")
