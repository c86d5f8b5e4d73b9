"""The tables of `score-model`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from pipeline.commands.tables import format_interval, format_value, make_figure_table
from pipeline.terminal import counted

CLASS_FIGURES: Final = {"top1": "top1", "top5": "top5", "mean_per_class": "mean per class"}
PHRASE_FIGURES: Final = {"recall_1": "recall 1", "recall_5": "recall 5", "chance_1": "chance 1"}
"""Figures of regions and of phrases in `score-model` -> headers."""

WAYS: Final = {"roi": "RoI, dense", "mask": "mask, dense", "crop": "crop, embedded"}
SEARCHES: Final = {"phrases": "in the image, RoI", "phrases_crop": "in the image, crop", "phrases_pool": "in many, RoI"}

FEW: Final = 10  # regions of a class, which says little of it


def print_scores(scores: Mapping[str, Any], console: Console) -> None:
    """Print the tables of `score-model` for people, with the differences from another model where there is one."""
    counts = scores["counts"]
    console.print(
        f"{scores['model']} on {scores['device']}: {counted(counts['images'], 'image')}, "
        f"{counted(counts['captions'], 'caption')}, {counted(counts['boxes'], 'region')}, "
        f"in {scores['seconds']:,.0f} s",
        soft_wrap=True,
    )
    if counts["failed"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in scores["faults"].items())
        console.print(f"{counts['failed']:,} images cannot be opened and are left out: {reasons}", soft_wrap=True)
        for example in scores["fault_examples"]:
            console.print(f"  {example}", soft_wrap=True)
    differences = scores.get("differences", {})
    for key, kind in (("regions", "classes"), ("described", "colours and classes")):
        if scores[key]:
            title = f"Regions, named among {counts['classes'][key]:,} {kind}"
            table = make_figure_table(title, [*CLASS_FIGURES.values(), "n"])
            for way, figures in scores[key].items():
                _add_scores(table, WAYS[way], CLASS_FIGURES, figures, differences.get(key, {}).get(way))
            console.print(table)
    _print_rare(scores, console)
    searches = [name for name in SEARCHES if name in scores]
    if searches:
        table = make_figure_table("Phrases: is the first region the right one?", [*PHRASE_FIGURES.values(), "n"])
        for name in searches:
            _add_scores(table, SEARCHES[name], PHRASE_FIGURES, scores[name], differences.get(name))
        console.print(table)
    if scores["retrieval"]:
        table = make_figure_table("Retrieval", ["r1", "r5", "r10", "n"])
        for direction, title in (("t2i", "image of a caption"), ("i2t", "caption of an image")):
            figures = {**scores["retrieval"], "n": scores["retrieval"].get(f"{direction}_n")}
            names = [f"{direction}_r{k}" for k in (1, 5, 10)]
            if figures["n"]:
                _add_scores(table, title, names, figures, differences.get("retrieval"))
        console.print(table)
    if differences:
        console.print(
            f"below each: the difference from {scores['compared_with']}, paired over images; * is beyond chance",
            soft_wrap=True,
        )
        if scores["asked_differently"]:
            console.print(f"which was asked differently: {'; '.join(scores['asked_differently'])}", soft_wrap=True)


def _print_rare(scores: Mapping[str, Any], console: Console) -> None:
    """Print how many classes of the mean over classes have few regions."""
    for classes in list(scores["classes"].values())[:1]:
        if rare := sum(1 for figure in classes.values() if figure["n"] < FEW):
            console.print(
                f"{rare:,} of {len(classes):,} classes that occur have fewer than {FEW} regions", soft_wrap=True
            )


def _add_scores(
    table: Table, title: str, names: Iterable[str], figures: Mapping[str, Any], differences: Mapping[str, Any] | None
) -> None:
    """Add a row of figures with their intervals, and with differences from another model below them."""
    cells = []
    for name in names:
        figure = figures.get(name)
        difference = (differences or {}).get(name)
        lines = [format_value(figure), format_interval(figure)]
        if difference is not None and difference["value"] is not None:
            sign = "" if difference["low"] <= 0 <= difference["high"] else " *"
            lines += [f"{difference['value']:+.3f}{sign}", f"{difference['low']:+.3f} {difference['high']:+.3f}"]
        cells.append("\n".join(filter(None, lines)))
    table.add_row(title, *cells, f"{figures['n']:,}")
