"""`phrasebox eval`: a finished dataset against ground truth.

Boxes, masks and scores are those of the shards. Heat maps are not stored. They are computed again from the
dataset's own configuration, which gives the same maps, and brought into the form that the regions were cut from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.options import Finished, MovedImages, OverDataset, Truth, moved
from pipeline.terminal import console, errors
from stages.contract.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.graph import Graph
    from stages.contract.records import HeatMap, Phrase, Record
    from stages.dataset.evaluate.matching import ImageMatches
    from stages.dataset.evaluate.truth import GroundTruth
    from stages.dataset.folder import Dataset

GROUP_COLUMNS = ("pointing", "box_recall", "box_iou", "mask_iou")
"""Metrics that the table shows for every group; the JSON has all of them."""


def evaluate(
    dataset: Finished,
    truth: Truth,
    maps: Annotated[
        bool,
        typer.Option(
            "--maps/--no-maps",
            help="Compute the heat maps again for pointing, energy and pixel AP; without them the input is not needed.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON and nothing else.")] = False,
    images: MovedImages = None,
    settings: OverDataset = [],  # noqa: B006  typer copies it
) -> None:
    """Measure a dataset against known truth: pointing, boxes, masks, AP, scores; with 95 % intervals."""
    figures = evaluation_of(dataset, truth, errors if as_json else console, moved(images, settings), maps=maps)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        print_evaluation(figures, console)


def evaluation_of(
    dataset: Path, truth_path: Path, console: Console, settings: Sequence[str] = (), *, maps: bool = True
) -> dict[str, Any]:
    """All figures of `stages.dataset.evaluate.report.report`, and `dataset`, `truth`, `matched`, `rule`, `config`.

    Args:
        dataset: Folder of a finished run.
        truth_path: A file or folder that `stages.dataset.evaluate.read_truth` reads.
        console: Shows the progress.
        settings: KEY=VALUE over the dataset's configuration, for files that moved and for the device.
        maps: Whether to compute the heat maps again, for the metrics that need them.

    Raises:
        InputError: The dataset or the truth cannot be read, or they do not fit together.
        ConfigError: A setting cannot be used, or the model is not the dataset's.
    """
    from pipeline.graph import build_graph
    from stages.dataset.evaluate import read_truth
    from stages.dataset.evaluate.matching import queries_of
    from stages.dataset.evaluate.report import Outcomes, report
    from stages.regions.stage import RegionsStage
    from stages.storage import place_of

    truth = read_truth(truth_path)
    made, config = read_run(dataset, settings)
    rows, matched = matched_rows(made, truth)
    outcomes = Outcomes()

    def add(row: Mapping[str, Any], phrases: Sequence[Phrase], *heat_maps: Mapping[str, HeatMap]) -> None:
        image = matched.images[row["file_name"]]
        outcomes.add(queries_of(row["id"], row, image, truth.categories, phrases, *heat_maps), maps=maps)

    if maps:
        graph = build_graph(config)
        if graph.fingerprint != made.manifest["model_fingerprint"]:
            raise ConfigError(
                f"{dataset} was made with other weights ({made.manifest['model_fingerprint']}) than the configuration "
                f"finds now ({graph.fingerprint}); --no-maps evaluates the regions alone"
            )
        surfaces = [RegionsStage(config.regions)]
        if config.regions.upsample != "linear":
            surfaces.append(RegionsStage(config.regions.model_copy(update={"upsample": "linear"})))
        for row, record in heat_mapped(graph, rows, console):
            add(row, record.phrases, *(stage.surfaces_of(record) for stage in surfaces))
    else:
        for row in rows.values():
            add(row, _phrases_with_regions(row))
    if not outcomes.images:
        raise InputError(f"none of the {len(matched.images)} images has a phrase that {truth_path} knows")
    return {
        "dataset": str(place_of(dataset)),
        "truth": str(truth_path),
        "matched": matched.counts,
        "rule": config.regions.rule,
        **report(outcomes),
        "config": config.model_dump(mode="json", include={"model", "explain", "regions"}),
    }


def read_run(path: Path, settings: Sequence[str]) -> tuple[Dataset, RunConfig]:
    """A finished dataset, and its configuration with some settings changed. Raises InputError if it is not finished."""
    from pipeline.config import stored_config
    from stages.dataset.folder import open_dataset

    dataset = open_dataset(path)
    return dataset, stored_config(dataset.manifest["config"], settings)


def matched_rows(dataset: Dataset, truth: GroundTruth) -> tuple[dict[int, dict[str, Any]], ImageMatches]:
    """The rows of the images that the truth has, by id, and which images these are."""
    from stages.dataset.evaluate.matching import match_images

    rows = list(dataset.rows(["id", "file_name", "width", "height", "captions", "annotations", "error"]))
    matched = match_images((row["file_name"] for row in rows), truth)
    return {row["id"]: row for row in rows if row["file_name"] in matched.images}, matched


def heat_mapped(
    graph: Graph, rows: Mapping[int, dict[str, Any]], console: Console
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Each of the rows, by id, with its record from the input, which has phrases and heat maps.

    Raises InputError if some of the rows are no longer in the input.
    """
    from pipeline.engines.inline import batch_rows, run_stages
    from pipeline.summary import Display, Report
    from stages.contract.records import Record
    from stages.read import Skipped

    stages = (*graph.before, graph.model)
    for stage in stages:
        stage.setup()
    progress = Report(expected=len(rows))
    missing = set(rows)
    items = (item for shard in graph.reader.shards() for item in graph.reader.read(shard))

    def wanted() -> Iterator[Record]:
        """The first record of each id; nothing is read after the last one."""
        while missing and (item := next(items, None)) is not None:
            record = None if isinstance(item, Skipped) else Record.start(item)
            if record is not None and record.sample.id in missing:
                missing.remove(record.sample.id)
                yield record

    records = wanted()
    with Display(console).shown() as display:
        while batch := list(islice(records, batch_rows(graph.model))):
            for record in run_stages(stages, batch, progress.stage):
                yield rows[record.sample.id], record
            progress.rows(len(batch), 0)
            display.update(progress)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(rows)} rows are no longer in the input of the dataset, and heat maps cannot be "
            "computed without it; phrasebox eval --no-maps needs no input"
        )


def _phrases_with_regions(row: Mapping[str, Any]) -> list[Phrase]:
    from stages.contract.records import Phrase

    found = {
        (each["phrase"], each["caption_index"], *each["span"]): Phrase(
            text=each["phrase"],
            head=each["head"],
            caption_index=each["caption_index"],
            start=each["span"][0],
            end=each["span"][1],
        )
        for each in row["annotations"]
    }
    return list(found.values())


def print_evaluation(figures: Mapping[str, Any], console: Console) -> None:
    """The tables for people."""
    from stages.dataset.evaluate.metrics import METRICS

    counts = figures["counts"]
    console.print(
        f"{counts['targets']:,} phrases of {counts['images']:,} images with a known place; "
        f"{counts['targets_not_among_phrases']:,} of them were not found in the captions and count as missed; "
        f"{counts['absent_phrases']:,} phrases name what is not there",
        soft_wrap=True,
    )
    print_matched(figures["matched"], console)
    table = Table("metric", "value", "95 % interval", "what it is", title="all phrases", title_justify="left")
    for name, figure in figures["metrics"].items():
        table.add_row(name, number(figure), interval(figure), METRICS[name].doc)
    for name, figure in figures["coco_ap"].items():
        doc = f"COCO AP of {'boxes' if name == 'box' else 'masks'}, IoU .50:.95 (at .50: {figure['ap50']:.3f})"
        table.add_row(f"{name}_ap", number(figure["ap"]), interval(figure["ap"]), doc)
    console.print(table)
    console.print(f"masks and boxes: regions as in the dataset, cut by rule {figures['rule']!r}", soft_wrap=True)
    shown = [name for name in GROUP_COLUMNS if name in figures["metrics"]]
    headers = [name.replace("_", " ").replace("iou", "IoU") for name in shown]  # so that narrow terminals break them
    table = Table("group", "", "phrases", *headers, title="by group", title_justify="left")
    for group, members in figures["groups"].items():
        for index, (member, metrics) in enumerate(members.items()):
            cells = [_with_margin(metrics.get(name)) for name in shown]
            table.add_row(group if index == 0 else "", member, f"{metrics[shown[-2]]['n']:,}", *cells)
    if figures["groups"]:
        console.print(table)
    _print_scores(figures, console)


def print_matched(matched: Mapping[str, int], console: Console) -> None:
    """Say which images were matched by less than their names, and which were left out; nothing if there are none."""
    by_stem, ambiguous = matched["by_stem"], matched["ambiguous"]
    if by_stem:
        console.print(f"{by_stem:,} images have another extension in the truth: matched without it", soft_wrap=True)
    if ambiguous:
        console.print(
            f"{ambiguous:,} images were left out: the truth has several names like theirs, or one that several of the "
            "dataset's are like",
            soft_wrap=True,
        )


def _print_scores(figures: Mapping[str, Any], console: Console) -> None:
    if not figures["counts"]["regions"]:
        return
    title = "area under risk-coverage, lower is better"
    table = Table("regions ranked by", "value", "95 % interval", title=title, title_justify="left")
    for name, figure in figures["scores"].items():
        table.add_row(name, number(figure), interval(figure))
    console.print(table)
    error = figures["calibration_error"]
    console.print(f"expected calibration error of the score: {number(error)} {interval(error)}", soft_wrap=True)
    table = Table("score at least", "regions kept", "precision", title="filtering by score", title_justify="left")
    for line in figures["thresholds"]:
        precision = "-" if line["precision"] is None else f"{line['precision']:.1%}"
        table.add_row(f"{line['score']:g}", f"{line['kept']:.1%}", precision)
    console.print(table)


def number(figure: Mapping[str, Any] | None) -> str:
    """The value of a figure, for a table."""
    return "-" if figure is None or figure["value"] is None else f"{figure['value']:.3f}"


def _with_margin(figure: Mapping[str, Any] | None) -> str:
    """The value and, below it, the larger half of its interval."""
    if figure is None or figure["value"] is None:
        return "-"
    margin = max(figure["value"] - figure["low"], figure["high"] - figure["value"])
    return f"{figure['value']:.3f}\n±{margin:.3f}"


def interval(figure: Mapping[str, Any] | None) -> str:
    """The interval of a figure, for a table."""
    return "" if figure is None or figure["low"] is None else f"{figure['low']:.3f}-{figure['high']:.3f}"
