"""`phrasebox calibrate`: fit the scores of a model and its settings to how often regions are right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.evaluate import (
    graph_for,
    heat_mapped,
    interval,
    matched_rows,
    number,
    print_matched,
    read_run,
    uses_stored_maps,
)
from pipeline.commands.options import Finished, MovedImages, OverDataset, Resized, Truth, moved
from pipeline.terminal import console
from stages.contract.errors import ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.dataset.folder import Dataset
    from pipeline.evaluate.cut_fit import UsualSizes
    from pipeline.evaluate.matching import ImageMatches
    from stages.contract.geometry import Box
    from stages.contract.records import Record
    from stages.regions.config import RegionsConfig
    from stages.regions.paint import Painted
    from stages.regions.score import Evidence
    from stages.regions.thresholds import FittedCut
    from stages.shared.truth.ground_truth import GroundTruth

FEWEST_REGIONS = 100
"""A calibration from fewer regions says more about chance than about the model."""


def calibrate(
    dataset: Finished,
    truth: Truth,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE.json", help="File to write; runs take it as regions.calibration=FILE.json."
        ),
    ],
    presence: Annotated[
        bool,
        typer.Option(
            "--presence/--no-presence",
            help="Whether to fit, too, how likely a phrase is in its image at all. Needs the model and the images.",
        ),
    ] = True,
    images: MovedImages = None,
    resized: Resized = False,
    settings: OverDataset = [],  # noqa: B006  typer copies it
) -> None:
    """Fit scores to how often regions are right, for the model and settings that the dataset was made with."""
    figures = write_calibration(
        dataset, truth, out, console, moved(images, settings), resized=resized, presence=presence
    )
    print_calibration(figures, out, console)


def write_calibration(
    dataset: Path,
    truth_path: Path,
    out: Path,
    console: Console,
    settings: Sequence[str] = (),
    *,
    resized: bool = False,
    presence: bool = True,
) -> dict[str, Any]:
    """Fit a calibration to a dataset's images, write it to `out`, and return what it is worth.

    The figures are from five folds: each region is judged by a fit that has not seen its image. Only where maps are cut
    (`regions.rule=fitted`, 16 weights and the usual size of things) is fitted to all images, before; how large things
    usually are, the other images tell each. A path that cannot be written is refused before any work, where that can be
    known.

    Args:
        dataset: Folder of a finished run.
        truth_path: A file or folder that `pipeline.evaluate.read_truth` reads.
        out: The file to write.
        console: Shows the progress.
        settings: KEY=VALUE over the dataset's configuration.
        resized: Whether the images were resized after the truth was drawn.
        presence: Whether to fit presence, too, which takes a forward pass for each image.

    Raises:
        InputError: There are too few regions, or only right or only wrong ones.
        ConfigError: `out` cannot be written.
    """
    import numpy as np

    from pipeline.evaluate.matching import queries_of
    from pipeline.evaluate.report import weighted_estimate
    from pipeline.evaluate.scores import calibration_error, fit_logistic, out_of_fold, risk_coverage_area
    from pipeline.graph import calibration_basis
    from stages.regions.score import FEATURES, Calibration
    from stages.regions.stage import RegionsStage
    from stages.shared.storage import check_writable, write_text
    from stages.shared.truth import read_truth

    check_writable("--out", out)
    truth = read_truth(truth_path)
    made, config = read_run(dataset, settings, explains=True)
    rows, matched = matched_rows(made, truth, resized=resized)
    stored = uses_stored_maps(made, settings)
    graph = graph_for(made, settings, pixels=config.regions.needs_pixels)
    fitted_cut = sizes = None
    if config.regions.rule == "fitted":
        maps = heat_mapped(graph, rows, console, stored=stored)
        fitted_cut, sizes = _fitted_cut(config.regions, maps, matched, truth.categories)
    evidence: list[Evidence] = []
    right: list[bool] = []
    images: list[int] = []
    for row, record in heat_mapped(graph, rows, console, stored=stored):
        if record.error is not None:
            continue
        image = matched.images[row["file_name"]]
        own_cut = fitted_cut
        if fitted_cut is not None and sizes is not None:
            own_cut = replace(fitted_cut, usual=sizes.without(row["id"], (phrase.head for phrase in record.phrases)))
        stage = RegionsStage(config.regions, fitted=own_cut)
        found = stage.regions_of(record)
        queries = queries_of(row["id"], row, image, truth.categories, record.phrases)
        # Whether phrases are there at all is for presence to say.
        for query in (one for one in queries if one.target is not None or not presence):
            boxes = () if query.target is None else query.target.boxes_xywh_px
            for painted, what_is_known in () if query.phrase_index is None else found[query.phrase_index]:
                evidence.append(what_is_known)
                right.append(_is_right(painted, boxes))
                images.append(query.image)
    if len(right) < FEWEST_REGIONS or all(right) or not any(right):
        raise InputError(
            f"{len(right)} regions with a known truth, {sum(right)} of them right: a calibration needs at least "
            f"{FEWEST_REGIONS}, right ones and wrong ones"
        )
    features = np.array([[measure(one) for measure in FEATURES.values()] for one in evidence])
    labels, owners = np.array(right), np.array(images, np.int64)
    fit = fit_logistic(features, labels)
    fitted, told = _fitted_presence(made, truth, rows, matched, settings, console) if presence else (None, None)
    names = list(FEATURES)
    calibration = Calibration(
        bias=fit.bias,
        weight=dict(zip(names, fit.weight.tolist(), strict=True)),
        mean=dict(zip(names, fit.mean.tolist(), strict=True)),
        scale=dict(zip(names, fit.scale.tolist(), strict=True)),
        made_with=calibration_basis(
            config if graph is None else graph.settings(config), made.manifest["model_fingerprint"]
        ),
        made_from={"truth": truth_path.name, "images": len(set(images)), "regions": len(right), "right": sum(right)},
        presence=fitted,
        cut=None if fitted_cut is None else fitted_cut.plain(),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, calibration.to_json())
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
    unseen = out_of_fold(features, labels, owners)
    return {
        "matched": matched.counts,
        "regions": len(right),
        "right": sum(right),
        **({} if told is None else {"presence": told}),
        "risk_coverage_area": asdict(weighted_estimate(partial(risk_coverage_area, unseen, labels), owners)),
        "calibration_error": asdict(weighted_estimate(partial(calibration_error, unseen, labels), owners)),
    }


def _fitted_cut(
    config: RegionsConfig,
    maps: Iterable[tuple[Mapping[str, Any], Record]],
    matched: ImageMatches,
    categories: frozenset[str],
) -> tuple[FittedCut, UsualSizes]:
    """Where maps are best cut: each is cut at all shares, and the first region of each cut is right or wrong.

    Other images alone tell each cut how large its thing usually is.

    Raises InputError if none or all of them are right.
    """
    import numpy as np

    from pipeline.evaluate.cut_fit import SeenThing, UsualSizes, fit_cut
    from pipeline.evaluate.matching import queries_of
    from stages.regions.stage import RegionsStage
    from stages.regions.thresholds import SHARES, FittedCut, cut_features

    stages = [RegionsStage(config.model_copy(update={"rule": "fixed", "threshold": share})) for share in SHARES]
    surfaces: list[NDArray[np.uint8]] = []
    named: list[tuple[int, tuple[str, ...]]] = []
    seen: list[SeenThing] = []
    right: list[list[bool]] = []
    for row, record in maps:
        if record.error is not None:
            continue
        own_surfaces = stages[0].surface_of_each(record)
        heads = stages[0].heads_of(record, stages[0].groups_of(record))
        found = [stage.regions_of(record) for stage in stages]
        queries = queries_of(row["id"], row, matched.images[row["file_name"]], categories, record.phrases)
        for query in queries:
            index = query.phrase_index
            if query.target is None or index is None or (surface := own_surfaces[index]) is None:
                continue
            boxes = query.target.boxes_xywh_px
            own_head = next(phrase.head for phrase in record.phrases if phrase.text == query.phrase)
            seen.append(SeenThing(image=query.image, head=own_head, log_size=_log_size(boxes, query.size_hw)))
            named.append((query.image, heads[index]))
            surfaces.append(surface.values.astype(np.uint8))
            firsts = [own[index][:1] for own in found]
            right.append([any(_is_right(painted, boxes) for painted, _ in first) for first in firsts])
    if not seen:
        raise InputError("no phrase with a known place to fit regions.rule=fitted to")
    sizes = UsualSizes(seen)
    told = [sizes.without(image, heads) for image, heads in named]
    usual = [fmean(of[head] for head in heads) for of, (_, heads) in zip(told, named, strict=True)]
    features = [cut_features(surface, size) for surface, size in zip(surfaces, usual, strict=True)]
    try:
        fit = fit_cut(np.array(features), np.array(right))
    except ValueError as error:
        raise InputError(f"{len(right)} phrases with a known place: {error} to fit regions.rule=fitted to") from error
    return FittedCut.of(fit.weight, fit.mean, fit.scale, sizes.all()), sizes


def _log_size(boxes: Sequence[Box], size_hw: tuple[int, int]) -> float:
    """The mean logarithm of the shares of an image that boxes cover; one without an area counts as a pixel."""
    return fmean(math.log(max(w * h, 1.0) / (size_hw[0] * size_hw[1])) for _, _, w, h in boxes)


def _is_right(region: Painted, boxes: Sequence[Box]) -> bool:
    """Whether the region's box is one of the true ones."""
    from pipeline.evaluate.metrics import IOU
    from stages.contract.geometry import box_iou

    return any(box_iou(region.box_xywh_px, true) >= IOU for true in boxes)


def _fitted_presence(
    made: Dataset,
    truth: GroundTruth,
    rows: Mapping[int, dict[str, Any]],
    matched: ImageMatches,
    settings: Sequence[str],
    console: Console,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Presence as plain values, and the figures of its fit."""
    from pipeline.commands.absent import asked_of, fit_presence, model_graph

    presence, told = fit_presence(model_graph(made, settings), rows, asked_of(rows, matched, truth), console)
    return presence.plain(), told


def print_calibration(figures: Mapping[str, Any], out: Path, console: Console) -> None:
    """The table for people."""
    table = Table("figure, on images not fitted to", "value", "95 % interval")
    for name in ("risk_coverage_area", "calibration_error"):
        table.add_row(name, number(figures[name]), interval(figures[name]))
    told = figures.get("presence", {})
    for name in ("presence_auc", "similarity_auc"):
        if told:
            table.add_row(name, number(told[name]), interval(told[name]))
    print_matched(figures["matched"], console)
    console.print(f"{figures['regions']:,} regions, {figures['right']:,} of them right", soft_wrap=True)
    console.print(table)
    console.print(f"calibration in {out}; use it with --set regions.calibration={out}", soft_wrap=True)
