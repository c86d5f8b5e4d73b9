"""`phrasebox export`: a dataset in another format, with progress and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.config import load_config
from stages.contract.errors import ConfigError
from stages.dataset.export import EXPORTERS
from stages.dataset.export.base import Exporter, ExportReport
from stages.dataset.export.export import Request, export
from stages.dataset.export.splits import parse_splits
from stages.dataset.folder import Dataset, open_dataset
from stages.dataset.marks import read_marks
from stages.dataset.selection import Selection

_SHOWN_EVERY_ROWS = 100


def export_dataset(
    path: Path,
    name: str,
    out: Path,
    console: Console,
    *,
    min_score: float = 0.0,
    where: str = "",
    splits: str = "",
    settings: Sequence[str] = (),
    keep_empty: bool = False,
    segmentation: str | None = None,
    image_root: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Export a finished dataset. See `stages.dataset.export.export` for the options.

    splits        "train=0.9,val=0.1"
    settings      `KEY=VALUE` of the format's own config
    segmentation  short for the setting of this name

    Raises ConfigError or InputError for what the user can mend.
    """
    exporter_type = exporter_named(name)
    if segmentation is not None:
        if "segmentation" not in exporter_type.config_type.model_fields:
            raise ConfigError(f"--segmentation: not with {name}, whose masks are {exporter_type.masks}")
        settings = [*settings, f"segmentation={segmentation}"]
    config = load_config(None, settings, exporter_type.config_type)
    dataset = open_dataset(path)
    request = Request(
        config=config,
        selection=Selection(min_score=min_score, where=where, marks=read_marks(dataset.path) if where else {}),
        splits=parse_splits(splits),
        keep_empty=keep_empty,
        image_root=image_root,
        overwrite=overwrite,
    )
    with _progress(console, dataset) as advance:
        return export(dataset, out, name, exporter_type, request, advance)


def exporter_named(name: str) -> type[Exporter]:
    """The exporter of a format. Raises ConfigError with the names that there are."""
    if name not in EXPORTERS:
        raise ConfigError(f"--format: there is no {name!r}; one of {', '.join(sorted(EXPORTERS))}")
    return EXPORTERS[name]


@contextmanager
def _progress(console: Console, dataset: Dataset) -> Iterator[Callable[[int], None]]:
    """One line that is redrawn on a terminal; in a log it is silent."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    total = dataset.manifest.get("counts", {}).get("written")
    task = progress.add_task("rows", total=total)

    def advance(rows: int) -> None:
        if rows % _SHOWN_EVERY_ROWS == 0:
            progress.update(task, completed=rows)

    with progress:
        yield advance


def print_report(report: ExportReport, out: Path, console: Console) -> None:
    """What is in the export and what is not."""
    table = Table("", *report.samples, *(["all"] if len(report.samples) > 1 else []))
    for column in table.columns[1:]:
        column.justify = "right"
    for what, counts in (("images", report.samples), ("regions", report.regions)):
        numbers = [*counts.values(), *([counts.total()] if len(counts) > 1 else [])]
        table.add_row(what, *(f"{number:,}" for number in numbers))
    console.print(f"{report.format} in {out}", soft_wrap=True)
    console.print(table)
    if report.categories:
        console.print(f"{report.categories:,} categories")
    console.print(f"masks: {EXPORTERS[report.format].masks}", soft_wrap=True)
    for note, count in report.counts()["notes"].items():
        console.print(f"{count:,} {note}", soft_wrap=True)
    console.print(f"rows left out: {report.left_out.total():,} of {report.rows:,}")
    for reason, count in report.left_out.most_common():
        console.print(f"  {count:,} {reason}", soft_wrap=True)
    for fault in report.faults:
        console.print(f"    {fault}", soft_wrap=True)


def print_formats(console: Console) -> None:
    """Each format in a line, what becomes of the masks, and its settings."""
    for name, exporter in EXPORTERS.items():
        console.print(f"{name}: {exporter.summary}", soft_wrap=True, highlight=False)
        console.print(f"    masks: {exporter.masks}", soft_wrap=True, highlight=False)
        settings = [f"{key}={str(field.default).lower()}" for key, field in exporter.config_type.model_fields.items()]
        if settings:
            console.print(f"    --set: {', '.join(settings)}", soft_wrap=True, highlight=False)
