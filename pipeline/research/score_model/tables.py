"""The table of `score-model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console

from pipeline.commands.tables import format_interval, format_value, make_figure_table
from pipeline.terminal import counted, say

if TYPE_CHECKING:
    from pipeline.evaluate.estimates import Estimate
    from pipeline.research.score_model.job import Scores

KINDS: Final = {
    "regions.roi": "class of a region",
    "described.roi": "colour and class of a region",
    "phrases": "region of a phrase, in its image",
    "phrases_pool": "region of a phrase, in up to 50 images",
    "t2i": "image of a caption",
    "i2t": "caption of an image",
}
"""Kind of question -> words for it."""


def print_scores(scores: Scores, console: Console) -> None:
    """Print the table of `score-model` for people, with the differences from another model where there is one."""
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
    comparison = scores.comparison
    all_differences = {} if comparison is None else comparison.differences
    titles = [] if comparison is None else [f"over {comparison.compared_with}"]
    table = make_figure_table("", ["figure", "n", "value", "95 % interval", *titles])
    for kind, figures in scores.figures.items():
        classes = counts.classes.get(kind.partition(".")[0])
        title = KINDS[kind] if classes is None else f"{KINDS[kind]}, of {classes:,}"
        for name, figure in figures.items():
            differences = (
                [_format_difference(all_differences[kind].get(name))] if kind in all_differences else []
            )
            values = (format_value(figure), format_interval(figure))
            table.add_row(title, name.replace("_", " "), f"{figure.n:,}", *values, *differences)
            title = ""
    console.print(table)
    if comparison is not None:
        say(console, "differences are paired over images; * is beyond chance")


def _format_difference(gain: Estimate | None) -> str:
    if gain is None:
        return ""
    mark = "" if gain.low <= 0 <= gain.high else " *"
    return f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}){mark}"
