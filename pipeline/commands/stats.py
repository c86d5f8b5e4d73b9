"""Count a dataset: images, regions, scores, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from typing import Annotated, Final

import typer
from rich.table import Table

from phrasebox.pipeline.commands.options import (
    AnyDataset,
    AsJson,
    Where,
    naming_options,
)
from phrasebox.pipeline.commands.tables import print_reviews
from phrasebox.pipeline.dataset.folder import open_any_dataset
from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.marks import read_marks
from phrasebox.pipeline.dataset.selection import SIZES, Search
from phrasebox.pipeline.dataset.statistics import statistics
from phrasebox.pipeline.evaluate.estimates import plain_values
from phrasebox.pipeline.evaluate.reviews import measure_reviews, read_reviewed_regions
from phrasebox.pipeline.terminal import console, errors, print_json, progress_bar, say
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.score_threshold import PRECISIONS
from phrasebox.stages.contract.values import Json

_BAR: Final = 30  # characters of the longest bar

_STATUS: Final = {
    "regions": "with regions",
    "no_regions": "phrases but no region",
    "no_phrases": "without phrases",
    "failed": "failed",
}


@naming_options()
def stats(
    dataset: AnyDataset,
    as_json: AsJson = False,
    where: Where = "",
    most: Annotated[
        int,
        typer.Option(
            "--top", metavar="N", min=1, max=10_000, help="Number of frequent phrases and heads to list."
        ),
    ] = 15,
    reviews: Annotated[
        bool,
        typer.Option(
            "--reviews",
            help="Estimate how good the dataset is from what people said of its regions, and nothing else.",
        ),
    ] = False,
) -> None:
    """Count a dataset: images, regions, scores, sizes, frequent phrases, errors.

    \b
    phrasebox stats out/
    phrasebox stats out/ --where "score >= 0.3 AND head = 'dog'"
    phrasebox stats out/ --reviews    how good is it, by the answers of phrasebox inspect out/ --review
    """
    source = open_any_dataset(dataset)
    if reviews:
        if where:
            raise ConfigError("it is about all regions; leave --where out", key="--reviews")
        review_figures = measure_reviews(read_reviewed_regions(source))
        if as_json:
            print_json({"dataset": str(source.path), **plain_values(review_figures)}, ensure_ascii=False)
        else:
            print_reviews(review_figures, console)
        return
    with closing(Index(source, read_marks(source.path))) as index:
        search = Search(where=where)
        index.check(search)
        with progress_bar(errors, "reading shards", len(source.shards)) as advance:
            index.build(lambda count, _: advance(count))
        counts = statistics(index, search, most=most)
    figures = {"dataset": str(source.path), "finished": source.is_finished, **counts}
    if as_json:
        print_json(figures, ensure_ascii=False)
    else:
        _print(figures)


def _print(figures: Json) -> None:
    samples = figures["samples"]
    note = "" if figures["finished"] else " (the run has not finished)"
    say(console, f"{figures['dataset']}{note}")
    counts = {
        "images": samples["all"],
        **{f"  {title}": samples.get(status, 0) for status, title in _STATUS.items()},
        **{f"    {error['reason']}": error["count"] for error in figures["errors"]},
        "regions": figures["regions"],
        **({"  with a box of the input": figures["given"]} if figures["given"] else {}),
        "different phrases": figures["phrases"],
        "different head nouns": figures["heads"],
        **{f"marked {mark}": count for mark, count in figures["marks"].items()},
    }
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    if figures["absent_share"] is not None:
        say(
            console,
            f"{figures['absent_share']:.1%} of the phrases name nothing in their image, as their presences estimate",
        )
    if figures["regions"]:
        _print_histogram("score", figures["score"])
        _print_thresholds(figures)
        _print_histogram("region's share of the image", figures["area_share"])
    for name in ("phrases_per_image", "regions_per_image", "objects_per_image"):
        if figures[name] is not None:
            _print_bars(name.replace("_", " "), figures[name]["labels"], figures[name]["counts"])
    for name, title in (("top_phrases", "phrase"), ("top_heads", "head noun")):
        table = Table(title, "regions", "mean score", title=f"most frequent {title}s", title_justify="left")
        for entry in figures[name]:
            table.add_row(entry["text"], f"{entry['count']:,}", f"{entry['score']:.2f}")
        console.print(table)


def _print_thresholds(figures: Json) -> None:
    title = "what a precision keeps; by size of the box, its share of the image: share of these regions, mean score"
    sizes = [f"box {size}" for size in SIZES]
    table = Table("precision", "score at least", "regions", *sizes, title=title, title_justify="left")
    for column in table.columns:
        column.justify = "right"
    everything = {"regions": figures["regions"], "share": 1.0, "sizes": figures["sizes"]}
    for line in (everything, *figures["thresholds"]):
        goal = [f"{line['precision']:g}", f"{line['score']:.3f}"] if "precision" in line else ["all", ""]
        cells = [
            "-" if size["score"] is None else f"{size['share']:.0%}, {size['score']:.2f}"
            for size in line["sizes"].values()
        ]
        table.add_row(*goal, f"{line['regions']:,} ({line['share']:.0%})", *cells)
    console.print(table)
    if figures["highest_precision"] is None:
        console.print("scores only rank: --keep 0.3 takes the best 30 %")
    elif len(figures["thresholds"]) < len(PRECISIONS):
        console.print(f"no score reaches a higher precision than {figures['highest_precision']:.2f}")


def _print_histogram(title: str, histogram: Json) -> None:
    labels = [f"{low:g} to {high:g}" for low, high in pairwise(histogram["edges"])]
    middle = histogram["quantiles"]
    heading = f"{title}: median {middle['50']:.3f}, quartiles {middle['25']:.3f} and {middle['75']:.3f}"
    _print_bars(heading, labels, histogram["counts"])


def _print_bars(title: str, labels: Sequence[str], counts: Sequence[int]) -> None:
    table = Table(show_header=False, title=title, title_justify="left")
    most = max(*counts, 1)
    for label, count in zip(labels, counts, strict=True):
        table.add_row(label, f"{count:>11,}", "█" * round(_BAR * count / most) or ("▏" if count else ""))
    console.print(table)
