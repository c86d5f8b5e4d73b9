"""Write a dataset in a format that trainers read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from phrasebox.pipeline.commands.options import (
    OPTIONS,
    AsJson,
    FinishedDataset,
    ImageRoot,
    Keep,
    MaxArea,
    MinScore,
    Precision,
    Where,
    naming_options,
    stopping,
)
from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.dataset import Dataset, open_dataset
from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset
from phrasebox.pipeline.export.base import Per
from phrasebox.pipeline.export.push import open_repository, push
from phrasebox.pipeline.export.report import ExportReport
from phrasebox.pipeline.terminal import console, errors, print_json, progress_bar, say
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json


def print_formats(is_asked: bool) -> None:
    """Describe the formats and exit, if that is asked."""
    if is_asked:
        exporters, messages = EXPORTERS.load_all()
        lines = [f"{EXPORTERS.label(kind)}: {exporter.describe()}" for kind, exporter in exporters.items()]
        say(console, *lines, *messages)
        raise typer.Exit


FormatName = Annotated[
    str, typer.Option("--format", metavar="NAME", help="What to write; --list describes the formats.")
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="New folder to write to; with --push NAME by default.  [required without --push]",
    ),
]
Repository = Annotated[
    str,
    typer.Option(
        "--push",
        metavar="OWNER/NAME",
        help="Also upload the format hf as a dataset of the Hugging Face hub, private unless --public. The token "
        "is that of `hf auth login`, or HF_TOKEN.",
    ),
]
Public = Annotated[bool, typer.Option("--public", help="Let everybody see the dataset of --push.")]
RegionsPer = Annotated[
    Per | None,
    typer.Option(
        "--per",
        help="group: each object once, with all phrases that name it, by default in formats with categories; "
        "phrase: with every phrase of every caption, by default in the others. --list names "
        "each format's.",
    ),
]
MinCount = Annotated[
    int,
    typer.Option(
        "--min-count",
        metavar="N",
        min=0,
        help="Leave out categories with fewer than N regions in the export.",
    ),
]
Split = Annotated[
    str,
    typer.Option(
        metavar="NAME=SHARE,...",
        help="Shares that sum to 1, e.g. train=0.9,val=0.1. The file name decides by its hash, so all rows of an "
        "image go into one split. By default everything goes into train.",
    ),
]
FormatSettings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the format, see --list. Repeatable."),
]
KeepEmpty = Annotated[
    bool,
    typer.Option(
        "--keep-empty",
        help="Also write images without a chosen region, which may show objects all the same.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the export in --out and --push; files of nothing else are deleted.",
    ),
]
ListFormats = Annotated[
    bool,
    typer.Option("--list", is_eager=True, callback=print_formats, help="Describe the formats and exit."),
]


@naming_options(OPTIONS | {"push": "--push"})
def export(
    dataset: FinishedDataset,
    name: FormatName,
    out: OutFolder = None,
    push_to: Repository = "",
    public: Public = False,
    min_score: MinScore = 0.0,
    precision: Precision = None,
    keep: Keep = None,
    max_area: MaxArea = 1.0,
    where: Where = "",
    per: RegionsPer = None,
    min_count: MinCount = 0,
    split: Split = "",
    settings: FormatSettings = [],  # noqa: B006  typer copies it
    keep_empty: KeepEmpty = False,
    image_root: ImageRoot = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    list_formats: ListFormats = False,
) -> None:
    """Write a dataset in a format that trainers read: COCO, ODVG, MDETR, GRIT, Hugging Face, YOLO and others.

    \b
    phrasebox export --list
    phrasebox export out/ --format coco --out coco/ --split train=0.9,val=0.1 --precision 0.7
    phrasebox export out/ --format hf --push me/regions --keep 0.3 --max-area 0.6
    """
    _check_format(name, push_to)
    if out is None:
        if not push_to:
            raise ConfigError("say where to write: a folder", key="--out")
        out = Path(push_to.rpartition("/")[2])
    request = ExportRequest(
        exporter=EXPORTERS[name],
        config=load_config(None, settings, EXPORTERS[name].config_type),
        out=out,
        min_score=min_score,
        precision=precision,
        keep=keep,
        max_area=max_area,
        where=where,
        per=per,
        min_count=min_count,
        split=split,
        keep_empty=keep_empty,
        image_root=image_root,
        overwrite=overwrite,
    )
    source = open_dataset(dataset)
    if push_to:
        source.selection(request)  # What cannot be chosen is rejected before the hub changes.
        open_repository(push_to, public=public, overwrite=overwrite)
    report = _write(source, request, errors if as_json else console)
    url = push(out, push_to) if push_to else None
    if as_json:
        print_json(_figures(report, request, url), ensure_ascii=False)
    else:
        _print(report, request, url)


def _check_format(name: str, repository: str) -> None:
    """Raise ConfigError if the format is unknown, or is not for the hub."""
    if name not in EXPORTERS:
        raise ConfigError(
            f"there is no {name!r}; one of {', '.join(map(EXPORTERS.label, EXPORTERS))}", key="--format"
        )
    if repository and name != "hf":
        raise ConfigError("the hub shows the format hf; add --format hf", key="--push")


def _write(dataset: Dataset, request: ExportRequest, progress: Console) -> ExportReport:
    total = dataset.manifest.get("counts", {}).get("written")
    with (
        stopping("stopped. Nothing was written."),
        progress_bar(progress, "rows", total) as advance,
    ):
        return export_dataset(dataset, request, advance)


def _figures(report: ExportReport, request: ExportRequest, url: str | None) -> Json:
    return {
        "format": report.format,
        "out": str(request.out),
        **report.counts(),
        "faults": report.faults,
        "pushed": url,
        "images": report.images,
        "next": report.next_step,
    }


def _print(report: ExportReport, request: ExportRequest, url: str | None) -> None:
    table = Table("", *report.samples, *(["all"] if len(report.samples) > 1 else []))
    for column in table.columns[1:]:
        column.justify = "right"
    for title, counts in (("images", report.samples), ("regions", report.regions)):
        numbers = [*counts.values(), *([counts.total()] if len(counts) > 1 else [])]
        table.add_row(title, *(f"{number:,}" for number in numbers))
    say(console, f"{report.format} in {request.out}")
    console.print(table)
    say(console, "\n".join(report.lines(request.exporter.masks)))
    if url:
        say(console, f"uploaded to {url}")
