"""The tables of `eval`, and how all verbs that judge show figures and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from phrasebox.pipeline.dataset.selection import SIZES
from phrasebox.pipeline.evaluate.estimates import BINS, Estimate, Estimates
from phrasebox.pipeline.evaluate.metrics import METRICS, WITHOUT_TEXT
from phrasebox.pipeline.terminal import counted, say

if TYPE_CHECKING:
    from phrasebox.pipeline.evaluate.absent_figures import AbsentFigures
    from phrasebox.pipeline.evaluate.evaluation import Evaluation, Figures
    from phrasebox.pipeline.evaluate.reviews import ReviewFigures

GROUP_COLUMNS: Final = ("pointing", "box_recall", "box_recall_above_text", "mask_iou")
"""The metrics of the table by group: as many as fit into 80 columns. The JSON has all metrics."""

BASELINE_ROWS: Final = {
    "the dataset": ("pointing", "pointing_off_centre", "box_recall", "box_recall_merged"),
    "above text alone": tuple(f"{name}_above_text" for name in WITHOUT_TEXT),
    "text alone": ("text_point", "text_point_off_centre", "text_box", "text_box_merged"),
    "another phrase's region": ("", "", "other_box", "other_box_merged"),
    "middle of the image": ("centre", "", "centred_box", "centred_box_merged"),
    "whole image, any pixel": ("chance", "", "whole_image", "whole_image_merged"),
}
"""Row -> metrics of a column; box recall is that of MDETR's ANY-BOX and MERGED-BOX."""

ABSENT_ROWS: Final = {
    "auc": "ROC area, phrases of other images",
    "auc_without_synonyms": "without such that may be there by another name",
    "auc_same_type": "of the same type",
    "auc_adversarial": "with nouns that occur beside those of the image",
    "auc_attribute": "in another colour, against coloured phrases",
    "auc_said": "false phrases of the captions",
    "il_mcc": "IL_MCC: answered where it is there",
    "positive_f1": "positive F1: boxes where it is there",
    "cgf1": "cgF1: their product",
}
ABSENT_COLUMNS: Final = {
    "presence": "presence",
    "presence_of_group": "shared by an object's texts",
    "z_score": "z-score of the cosine",
    "similarity": "cosine",
}

KINDS: Final = {
    "body": "parts of the body",
    "sport": "toys and sports gear",
    "things": "other objects",
    "other": "unlisted nouns",
}
"""Kind of a head noun, a section of `nouns.txt` -> what it is called where its own name does not say it."""


def format_value(figure: Estimate | None) -> str:
    """Return the value of a figure."""
    return "-" if figure is None or isnan(figure.value) else f"{figure.value:.3f}"


def format_interval(figure: Estimate | None) -> str:
    """Return the interval of a figure."""
    return "" if figure is None or isnan(figure.low) else f"{figure.low:.3f}-{figure.high:.3f}"


def format_heading(name: str) -> str:
    """Return the name of a metric in words, which narrow terminals break."""
    return name.replace("_", " ").replace("iou", "IoU")


def make_figure_table(title: str, columns: Sequence[str]) -> Table:
    """Return a table of figures: names in the first column, which has no header, and numbers in the others."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title or None, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _titled_table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left")


def _add_row(table: Table, name: str, figure: Estimate, *more: str) -> None:
    table.add_row(name, format_value(figure), format_interval(figure), *more)


def print_matched(matched: Mapping[str, int], console: Console) -> None:
    """Print how many images were left out, if there are any."""
    if matched["ambiguous"]:
        say(
            console,
            f"{matched['ambiguous']:,} images were left out: the ground truth has several names like theirs, or one "
            "that is like several of the dataset's",
        )


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the tables of `eval` for people."""
    figures = evaluation.figures
    counts = figures.counts
    say(
        console,
        f"{counted(counts.targets, 'phrase')} of {counted(counts.images, 'image')} with a known place; "
        f"{counts.targets_not_among_phrases:,} of them were not found in the captions and count as missed; "
        f"{counts.absent_phrases:,} phrases name something absent",
    )
    print_matched(evaluation.matched, console)
    print_baselines(figures.metrics, console)
    table = _titled_table("all phrases", "metric", "value", "95 % interval", "definition")
    baselines = {name for row in BASELINE_ROWS.values() for name in row}
    for name, figure in figures.metrics.items():
        if name not in baselines:
            _add_row(table, name, figure, METRICS[name].doc)
    console.print(table)
    if evaluation.maps is not None:
        origins = {
            "stored": "as the dataset holds them",
            "computed": "computed again from the dataset's input",
        }
        say(console, f"heat maps: {origins[evaluation.maps]}")
    say(
        console,
        f"masks and boxes: as in the dataset, cut by rule {evaluation.rule!r}; --set does not change them",
    )
    _print_groups(figures, console)
    if counts.regions:
        _print_scores(figures, console)
    if evaluation.absent is not None:
        _print_absent(evaluation.absent, console)
    say(console, evaluation.verdict)


def print_baselines(metrics: Estimates, console: Console) -> None:
    """Print figures beside those of answers without a map, and the gain over an answer from the text alone."""
    table = make_figure_table(
        "beside answers without a map; text alone is the usual place of the head noun in other images",
        ["pointing", "off centre", "recall ANY", "recall MERGED"],
    )
    for title, names in BASELINE_ROWS.items():
        if any(name in metrics for name in names):
            table.add_row(title, *(_with_margin(metrics.get(name)) for name in names))
    console.print(table)


def _print_groups(figures: Figures, console: Console) -> None:
    columns = [name for name in GROUP_COLUMNS if name in figures.metrics]
    table = _titled_table("by group", "group", "", "phrases", *map(format_heading, columns))
    for group, members in figures.groups.items():
        for index, (member, metrics) in enumerate(members.items()):
            cells = [_with_margin(metrics.get(name)) for name in columns]
            table.add_row(group if index == 0 else "", member, f"{metrics['box_recall'].n:,}", *cells)
    if figures.groups:
        console.print(table)


def _with_margin(figure: Estimate | None) -> str:
    if figure is None or isnan(figure.value):
        return "-"
    margin = max(figure.value - figure.low, figure.high - figure.value)
    return f"{figure.value:.3f}\n±{margin:.3f}"


def _print_scores(figures: Figures, console: Console) -> None:
    table = _titled_table(
        "area under risk-coverage, lower is better", "regions ranked by", "value", "95 % interval"
    )
    for name, figure in figures.scores.items():
        _add_row(table, name, figure)
    console.print(table)
    error = figures.calibration_error
    say(
        console,
        f"calibration error of the score, without chance: {format_value(error)} {format_interval(error)} (Kumar et al. "
        f"2019, root mean square, {BINS} bins)",
    )
    sizes = [f"box {size}" for size in SIZES]
    title = "filtering by least score; by size of the box, its share of the image: precision and share of these regions"
    table = make_figure_table(title, ["regions kept", "precision", *sizes])
    for line in figures.thresholds:
        n = max(1, line.precision.n)
        by_size = (f"{format_value(figure)}\n{figure.n / n:.0%}" for figure in line.sizes.values())
        table.add_row(f"{line.score:g}", f"{line.share:.1%}", _with_margin(line.precision), *by_size)
    table.add_row("true boxes", "", "", *(f"{share:.0%}" for share in figures.true_sizes.values()))
    console.print(table)


def _print_absent(figures: AbsentFigures, console: Console) -> None:
    signals = {**figures.by, "saco": figures.saco}
    counts = ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in figures.pairs.items() if n)
    columns = {**ABSENT_COLUMNS, "saco": "SA-Co: score of 0.5 or more"}
    table = make_figure_table(f"absent phrases ({counts})", list(columns.values()))
    for name, title in ABSENT_ROWS.items():
        cells = [(signals[signal] or {}).get(name) for signal in columns]
        if any(cells):
            table.add_row(title, *map(_with_margin, cells))
    console.print(table)
    for doc, error in (
        ("calibration error of the score, present and absent phrases", figures.ece),
        ("  of the phrases that are there", figures.ece_there),
    ):
        say(console, f"{doc}: {format_value(error)} {format_interval(error)}")
    if figures.shares is not None:
        table = Table("presence at least", "kept of those that are there", "of absent ones")
        for line in figures.shares:
            table.add_row(f"{line.presence:g}", f"{line.present:.1%}", f"{line.absent:.1%}")
        console.print(table)


def print_review_counts(counts: Mapping[str, int], reviewers: Mapping[str, int], console: Console) -> None:
    """Print the numbers of answers by kind and by reviewer."""
    names = {
        "absent": "not there",
        "unsure": "cannot say",
        "elsewhere": "about regions that are not in the dataset",
    }
    answers = (
        f"{count:,} {names.get(name, name)}"
        for name, count in counts.items()
        if count and name != "damaged"
    )
    people = ", ".join(f"{name} {count:,}" for name, count in reviewers.items())
    console.print(f"answers: {', '.join(answers)}; by {people}", soft_wrap=True, markup=False)
    if counts["damaged"]:
        say(console, f"{counts['damaged']:,} lines of the reviews cannot be read and are left out")


def print_reviews(figures: ReviewFigures, console: Console) -> None:
    """Print the tables of `stats --reviews` for people."""
    print_review_counts(figures.counts, figures.reviewers, console)
    agreement = figures.agreement
    if agreement.share is not None:
        say(
            console,
            f"{counted(agreement.regions, 'region')} answered by several: they agree in {agreement.share:.0%} of pairs",
        )
    say(
        console,
        f"Here a region counts once, however many captions name it: {counted(figures.regions, 'region')}. "
        "Without --reviews, stats counts it once for each caption.",
    )
    table = _titled_table(
        f"of all {counted(figures.regions, 'region')}", "", "share", "95 % interval", "answers"
    )
    rows = {"right": figures.precision, "phrase not in the image": figures.absent}
    for kind, figure in figures.by_kind.items():
        rows[f"right: phrases for {KINDS.get(kind, kind)}"] = figure
    for name, figure in rows.items():
        _add_row(table, name, figure, f"{figure.n:,}")
    console.print(table)
    thresholds = {f"{line.low:g} or more": line for line in figures.thresholds}
    curve = {f"{line.low:.2f} to {line.high:.2f}": line for line in figures.curve}
    for title, lines in (("filtering by score", thresholds), ("by score", curve)):
        table = _titled_table(title, "score", "regions", "mean score", "right", "95 % interval", "answers")
        for label, line in lines.items():
            score = "-" if line.score is None else f"{line.score:.3f}"
            cells = (format_value(line.precision), format_interval(line.precision), str(line.precision.n))
            table.add_row(label, f"{line.share:.1%}", score, *cells)
        console.print(table)
    error = figures.calibration_error
    say(
        console,
        f"calibration error of the score, without chance: {error.n:,} answers are too few"
        if isnan(error.value)
        else f"calibration error of the score, without chance: {format_value(error)} {format_interval(error)}",
    )
