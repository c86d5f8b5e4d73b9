"""`phrasebox eval`: a finished dataset against ground truth.

Boxes, masks and scores are those of the shards, and so are heat maps where `output.heat_maps` stored them. Otherwise
the maps are computed again from the dataset's own configuration, which gives the same ones. Either way they are brought
into the form that the regions were cut from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.options import Finished, MovedImages, OverDataset, Resized, Truth, moved
from pipeline.terminal import console, errors
from stages.contract.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.dataset.folder import Dataset
    from pipeline.evaluate.matching import ImageMatches
    from pipeline.graph import Graph
    from stages.contract.records import HeatMap, Phrase, Record
    from stages.contract.stage import Stage
    from stages.read import Reader
    from stages.shared.truth.ground_truth import GroundTruth

DECIDE_MAPS: Final = ("model", "phrases", "images", "explain")
"""Sections of the configuration that heat maps depend on: whoever sets a key in them has the maps computed again."""

GROUP_COLUMNS = ("pointing", "box_recall", "box_iou", "mask_iou")
"""Metrics that the table shows for every group; the JSON has all of them."""


def evaluate(
    dataset: Finished,
    truth: Truth,
    maps: Annotated[
        bool,
        typer.Option(
            "--maps/--no-maps",
            help="Whether to measure heat maps: pointing, energy and pixel AP. They are computed again from the input "
            "if the dataset does not hold them (output.heat_maps), or if --set names a key of model, phrases, images "
            "or explain.",
        ),
    ] = True,
    absent: Annotated[
        bool,
        typer.Option(
            "--absent",
            help="Also test each image with phrases from other images, and measure how well they are recognised as "
            "absent. Requires the model and the images.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON and nothing else.")] = False,
    images: MovedImages = None,
    resized: Resized = False,
    settings: OverDataset = [],  # noqa: B006  typer copies it
) -> None:
    """Measure a dataset against known truth: pointing, boxes, masks, AP, scores; with 95 % intervals."""
    figures = evaluation_of(
        dataset,
        truth,
        errors if as_json else console,
        moved(images, settings),
        maps=maps,
        resized=resized,
        absent=absent,
    )
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        print_evaluation(figures, console)


def evaluation_of(
    dataset: Path,
    truth_path: Path,
    console: Console,
    settings: Sequence[str] = (),
    *,
    maps: bool = True,
    resized: bool = False,
    absent: bool = False,
) -> dict[str, Any]:
    """All figures of `pipeline.evaluate.report.report`, and whose they are.

    These are `dataset`, `truth`, `matched`, `rule` and `config`, and `maps`: whether the heat maps are "stored" ones,
    were "computed" again, or None, not measured.

    Args:
        dataset: Folder of a finished run.
        truth_path: A file or folder that `pipeline.evaluate.read_truth` reads.
        console: Shows the progress.
        settings: KEY=VALUE over the dataset's configuration, for files that moved and for the device.
        maps: Whether to measure the heat maps, too.
        resized: Whether the images were resized after the truth was drawn.
        absent: Whether to ask for absent phrases, too; see `pipeline.evaluate.absent`.

    Raises:
        InputError: The dataset or the truth cannot be read, or they do not fit together.
        ConfigError: A setting cannot be used, or the model is not the dataset's.
    """
    from pipeline.evaluate.grouping import grouping_of
    from pipeline.evaluate.matching import queries_of
    from pipeline.evaluate.report import Outcomes, report
    from stages.regions.stage import RegionsStage
    from stages.shared.storage import place_of
    from stages.shared.truth import read_truth
    from stages.sources import HEAT_MAPS

    truth = read_truth(truth_path)
    made, config = read_run(dataset, settings, explains=False)
    rows, matched = matched_rows(made, truth, resized=resized)
    outcomes = Outcomes()

    def add(row: Mapping[str, Any], phrases: Sequence[Phrase], *heat_maps: Mapping[str, HeatMap]) -> None:
        image = matched.images[row["file_name"]]
        outcomes.add(queries_of(row["id"], row, image, truth.categories, phrases, *heat_maps), maps=maps)
        outcomes.groupings.append(grouping_of(row["id"], row, image))

    stored = uses_stored_maps(made, settings)
    maps = maps and config.source.kind == HEAT_MAPS  # other sources of regions have none
    if maps:
        guided = config.regions.upsample != "linear"
        graph = graph_for(made, settings, pixels=guided)
        surfaces = [RegionsStage(config.regions)]
        if guided:
            surfaces.append(RegionsStage(config.regions.model_copy(update={"upsample": "linear"})))
        for row, record in heat_mapped(graph, rows, console, stored=stored):
            add(row, record.phrases, *(stage.surfaces_of(record) for stage in surfaces))
    else:
        for row in rows.values():
            add(row, phrases_of(row["annotations"]))
    if not outcomes.images:
        raise InputError(f"none of the {len(matched.images)} images has a phrase that {truth_path} knows")
    asked = {}
    if absent:
        from pipeline.commands.absent import absent_evaluation

        asked = absent_evaluation(made, truth, rows, matched, settings, console)
    return {
        "dataset": str(place_of(dataset)),
        "truth": str(truth_path),
        "matched": matched.counts,
        "maps": ("stored" if stored else "computed") if maps else None,
        "rule": config.regions.rule,
        **report(outcomes),
        **asked,
        "config": config.model_dump(mode="json", include={"model", "explain", "regions", "source"}),
    }


def read_run(path: Path, settings: Sequence[str], *, explains: bool) -> tuple[Dataset, RunConfig]:
    """A finished dataset, and its configuration with some settings changed. Raises InputError if it is not finished.

    explains: Whether the explainer's settings are needed; see `FinishedConfig`.
    """
    from pipeline.config import stored_config
    from pipeline.dataset.folder import open_dataset

    dataset = open_dataset(path)
    return dataset, stored_config(dataset.manifest["config"], settings, explains=explains)


def uses_stored_maps(dataset: Dataset, settings: Sequence[str]) -> bool:
    """Whether the heat maps of a dataset are taken from its shards, with these settings over its configuration."""
    from pipeline.config import sets_any

    return dataset.has_heat_maps and not sets_any(settings, DECIDE_MAPS)


def matched_rows(
    dataset: Dataset, truth: GroundTruth, *, resized: bool = False
) -> tuple[dict[int, dict[str, Any]], ImageMatches]:
    """The rows of the images that the truth has, by id, and which images these are.

    resized: Whether the truth is scaled to the sizes of the images.
    """
    from pipeline.evaluate.matching import match_images

    matched = match_images((row["file_name"] for row in dataset.rows(["file_name"])), truth)
    rows = dataset.rows([name for name in dataset.columns if name != "image"])
    found = {row["id"]: row for row in rows if row["file_name"] in matched.images}
    if resized:
        sizes = {row["file_name"]: (row["height"], row["width"]) for row in found.values() if row["error"] is None}
        scaled = {name: matched.images[name].scaled(size_hw) for name, size_hw in sizes.items()}
        matched = replace(matched, images={**matched.images, **scaled})
    return found, matched


def graph_for(dataset: Dataset, settings: Sequence[str], *, pixels: bool) -> Graph | None:
    """What computes what the dataset does not hold, or None if nothing has to be computed.

    Args:
        dataset: The dataset.
        settings: KEY=VALUE over its configuration.
        pixels: Whether the pixels are needed, too; no dataset holds them at the model's size.

    Raises:
        InputError: The dataset's input cannot be read.
        ConfigError: A setting cannot be used, the model that would compute the maps is not the dataset's, or somebody
            else's dataset names what the settings do not.
    """
    from pipeline.config import stored_config
    from pipeline.dataset.origin import check_named
    from pipeline.graph import build_graph

    stored = uses_stored_maps(dataset, settings)
    if stored and not pixels:
        return None
    check_named(dataset, settings=settings)
    graph = build_graph(stored_config(dataset.manifest["config"], settings))
    made_with = dataset.manifest["model_fingerprint"]
    if not stored and graph.fingerprint != made_with:
        raise ConfigError(
            f"{dataset.path} was made with other weights ({made_with}) than the configuration finds now "
            f"({graph.fingerprint}); phrasebox eval --no-maps evaluates the regions alone"
        )
    return graph


def heat_mapped(
    graph: Graph | None, rows: Mapping[int, dict[str, Any]], console: Console, *, stored: bool
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Each of the rows, by id, with a record that has its phrases and heat maps.

    Args:
        graph: That of `graph_for`. Without one, the records have no pixels.
        rows: With the columns that `matched_rows` reads.
        console: Shows the progress.
        stored: Whether phrases and maps are those of the rows; otherwise the graph computes them.

    Raises:
        InputError: The graph is needed, and some of the rows are no longer in the input.
    """
    from stages.contract.schema import mapped_record

    if graph is None:
        yield from ((row, mapped_record(row)) for row in rows.values())
    elif stored:
        _, prepare = graph.before
        for row, record in from_input(graph.reader, [prepare], rows, console):
            known = mapped_record(row)
            yield row, replace(record, phrases=known.phrases, heat_maps=known.heat_maps)
    else:
        yield from from_input(graph.reader, [*graph.before, graph.explains], rows, console)


def from_input(
    reader: Reader, stages: Sequence[Stage], rows: Mapping[int, dict[str, Any]], console: Console
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Each of the rows with its record from the input after some stages.

    Raises InputError if some of the rows are no longer in the input.
    """
    from pipeline.engines.inline import batch_rows, run_stages, set_up
    from pipeline.summary import Display, Report
    from stages.contract.records import Record

    progress = Report(expected=len(rows))
    missing = set(rows)
    samples = reader.samples(reader.shards())

    def wanted() -> Iterator[Record]:
        """The first record of each id; nothing is read after the last one."""
        while missing and (sample := next(samples, None)) is not None:
            record = Record.start(sample)
            if record.sample.id in missing:
                missing.remove(record.sample.id)
                yield record

    records = wanted()
    with set_up(stages), Display(console).shown() as display:
        while batch := list(islice(records, batch_rows(stages[-1]))):
            for record in run_stages(stages, batch, progress.stage):
                yield rows[record.sample.id], record
            progress.rows(len(batch), 0)
            display.update(progress)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(rows)} rows are no longer in the input of the dataset, which is needed because "
            "the dataset holds no heat maps, or for the colours; phrasebox eval --no-maps needs no input"
        )


def phrases_of(entries: Iterable[Mapping[str, Any]]) -> list[Phrase]:
    """The phrases that entries of a row's `annotations`, `absent` or `phrases` name, each once, in their order."""
    from stages.contract.records import Phrase

    found = {
        (each["phrase"], each["caption_index"], *each["span"]): Phrase(
            text=each["phrase"],
            head=each["head"],
            caption_index=each["caption_index"],
            start=each["span"][0],
            end=each["span"][1],
            plural=each.get("plural", False),
        )
        for each in entries
    }
    return list(found.values())


def print_evaluation(figures: Mapping[str, Any], console: Console) -> None:
    """The tables for people."""
    from pipeline.evaluate.metrics import METRICS

    counts = figures["counts"]
    console.print(
        f"{counts['targets']:,} phrases of {counts['images']:,} images with a known place; "
        f"{counts['targets_not_among_phrases']:,} of them were not found in the captions and count as missed; "
        f"{counts['absent_phrases']:,} phrases name something absent",
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
    if figures["maps"] is not None:
        whose = {"stored": "as the dataset holds them", "computed": "computed again from the dataset's input"}
        console.print(f"heat maps: {whose[figures['maps']]}", soft_wrap=True)
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
    for name, doc in (("group_f1", "F1 of pairs of phrases"), ("group_b_cubed", "B-cubed F1 of phrases")):
        if name in figures:
            figure = figures[name]
            console.print(
                f"phrases that name the same thing: {doc} {number(figure)} ({interval(figure)}; {figure['n']:,})",
                soft_wrap=True,
            )
    _print_scores(figures, console)
    if "presence_auc" in figures:
        from pipeline.commands.absent import print_absent

        print_absent(figures, console)


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
