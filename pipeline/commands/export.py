"""`phrasebox export`: a dataset in another format, with progress and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.commands.options import ImageRoot, MinScore, Where
from pipeline.console import console, errors
from stages.contract.errors import ConfigError

if TYPE_CHECKING:
    from stages.dataset.export.base import Exporter, ExportReport
    from stages.dataset.folder import Dataset

_SHOWN_EVERY_ROWS = 100


def export(
    dataset: Annotated[
        Path | None, typer.Argument(metavar="DATASET", help="Folder or URL of a finished dataset.  [required]")
    ] = None,
    name: Annotated[
        str, typer.Option("--format", metavar="NAME", help="What to write; --list describes the formats.  [required]")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder to write to.  [required]")
    ] = None,
    min_score: MinScore = 0.0,
    where: Where = "",
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="NAME=SHARE,...",
            help="Shares that sum to 1, e.g. train=0.9,val=0.1. The file name decides by its hash, so all rows of an "
            "image go into one split. By default all is train.",
        ),
    ] = "",
    segmentation: Annotated[
        str | None,
        typer.Option(
            "--segmentation",
            metavar="rle|polygons",
            help="With --format coco: rle is exact (the default), polygons fill holes.",
        ),
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the format, see --list. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
    keep_empty: Annotated[
        bool,
        typer.Option(
            "--keep-empty",
            help="Also images without a chosen region. What their captions do not name may be in them all the same.",
        ),
    ] = False,
    image_root: ImageRoot = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the export that is in --out; only files that an export wrote are deleted."
        ),
    ] = False,
    list_formats: Annotated[bool, typer.Option("--list", help="Describe the formats and exit.")] = False,
) -> None:
    """Write a dataset in a format that trainers read: COCO, ODVG, MDETR, GRIT, Hugging Face, YOLO and others.

    \b
    phrasebox export --list
    phrasebox export out/ --format coco --out coco/ --split train=0.9,val=0.1 --min-score 0.5
    """
    if list_formats:
        print_formats(console)
        return
    given = {"DATASET": dataset, "--format": name, "--out": out}
    missing = [option for option, value in given.items() if not value]
    if dataset is None or out is None or missing:
        raise ConfigError(f"export needs {', '.join(missing)}; --list describes the formats")
    try:
        report = export_dataset(
            dataset,
            name,
            out,
            console,
            min_score=min_score,
            where=where,
            splits=split,
            settings=settings,
            segmentation=segmentation,
            keep_empty=keep_empty,
            image_root=image_root,
            overwrite=overwrite,
        )
    except KeyboardInterrupt:
        errors.print("stopped. Nothing was written.")
        raise typer.Exit(130) from None
    print_report(report, out, console)


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
    from pipeline.config import load_config
    from stages.dataset.export.export import Request
    from stages.dataset.export.export import export as write
    from stages.dataset.export.splits import parse_splits
    from stages.dataset.folder import open_dataset, read_marks
    from stages.dataset.selection import Selection

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
        return write(dataset, out, name, exporter_type, request, advance)


def exporter_named(name: str) -> type[Exporter]:
    """The exporter of a format. Raises ConfigError with the names that there are."""
    from stages.dataset.export import EXPORTERS

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
    from stages.dataset.export import EXPORTERS

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
    from stages.dataset.export import EXPORTERS

    for name, exporter in EXPORTERS.items():
        console.print(f"{name}: {exporter.summary}", soft_wrap=True, highlight=False)
        console.print(f"    masks: {exporter.masks}", soft_wrap=True, highlight=False)
        settings = [f"{key}={str(field.default).lower()}" for key, field in exporter.config_type.model_fields.items()]
        if settings:
            console.print(f"    --set: {', '.join(settings)}", soft_wrap=True, highlight=False)
