"""`phrasebox tune`: try settings of explain and regions on images with known truth."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.commands.evaluate import graph_for, heat_mapped, matched_rows, read_run
from pipeline.commands.options import Finished, Json, MovedImages, OverDataset, Resized, Truth, moved
from pipeline.terminal import console, errors, progress_bar
from stages.contract.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.dataset.folder import Dataset
    from stages.contract.records import Record
    from stages.regions.score import Calibration
    from stages.shared.truth.ground_truth import TruthImage

Changes = Mapping[str, Any]
"""Keys of the configuration with their values."""

TRIED: Final[dict[str, tuple[Changes, ...]]] = {
    "contrast": tuple({"explain.contrast": share} for share in (0.0, 0.25, 0.5)),
    "blur": tuple({"regions.smooth_patches": patches} for patches in (0.0, 0.5, 1.0, 1.5, 2.0)),
    "rule": (
        {"regions.rule": "otsu"},
        {"regions.rule": "mean"},
        *({"regions.rule": "fixed", "regions.threshold": share} for share in (0.2, 0.3, 0.4, 0.5, 0.6)),
        *({"regions.rule": "quantile", "regions.quantile": share} for share in (0.5, 0.6, 0.7, 0.8)),
    ),
    "edges": (
        {"regions.upsample": "linear"},
        *(
            {"regions.upsample": "guided", "regions.rule": "fixed", "regions.threshold": share}
            for share in (0.2, 0.3, 0.45, 0.6)
        ),
    ),
    "outline": tuple({"regions.refine": kind} for kind in ("none", "grabcut")),
    "parts": tuple({"regions.keep_share": share} for share in (0.1, 0.3, 0.5, 0.7)),
    "plurals": tuple({"regions.max_regions_plural": most} for most in (1, 2, 3, 6)),
}
"""What is tried, in this order. None of it needs another forward pass."""

FIGURES: Final = ("pointing", "pointing_off_centre", "box_recall", "box_iou", "mask_iou")
"""Metrics of `pipeline.evaluate.metrics` that are shown. Beside them stands `precision`: the share of the regions
that are right (a box IoU of 0.5 or more)."""

Figure = Literal["pointing", "pointing_off_centre", "box_recall", "box_iou", "mask_iou", "precision"]

MARGIN: Final = 0.002
"""A setting takes the place of the one before only if its figure is better by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownImage:
    """An image with truth.

    Attributes:
        row: Of the dataset.
        record: With pixels, and with heat maps from which no other phrase's heat is taken away.
        truth: Where things are.
    """

    row: Mapping[str, Any]
    record: Record
    truth: TruthImage


def tune(
    dataset: Finished,
    truth: Truth,
    by: Annotated[Figure, typer.Option("--by", help="The figure that decides.")] = "box_recall",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.yaml", help="Write the best settings, for `phrasebox run --config`."),
    ] = None,
    most: Annotated[
        int, typer.Option("--most", metavar="N", min=1, help="Try the settings on the first N images with truth.")
    ] = 500,
    as_json: Json = False,
    images: MovedImages = None,
    resized: Resized = False,
    settings: OverDataset = [],  # noqa: B006  typer copies it
) -> None:
    """Try settings of explain and regions on images with known truth, one after the other, and keep what is better.

    Heat maps are computed once. Each setting is measured with the calibration that a run with it finds: one that was
    fitted to other settings is not used (regions.rule=fitted then cuts at the mean). Choose on some images, and report
    `phrasebox eval` on others.
    """
    figures = tuned(
        dataset, truth, errors if as_json else console, moved(images, settings), by=by, most=most, resized=resized
    )
    if out is not None:
        write_settings(figures["best"], out)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
        return
    print_tuning(figures, console)
    if out is not None:
        console.print(f"the best settings are in {out}", soft_wrap=True)


def tuned(
    dataset: Path,
    truth_path: Path,
    console: Console,
    settings: Sequence[str] = (),
    *,
    by: Figure = "box_recall",
    most: int = 500,
    resized: bool = False,
    tried: Mapping[str, Sequence[Changes]] = TRIED,
) -> dict[str, Any]:
    """Try groups of changes one after the other; the best of each group stays for the next ones.

    Args:
        dataset: Folder of a finished run. Its settings are the start.
        truth_path: A file or folder that `pipeline.evaluate.read_truth` reads.
        console: Shows the progress.
        settings: KEY=VALUE over the dataset's configuration, for files that moved and for the device.
        by: The figure that decides.
        most: Images to try the settings on.
        resized: Whether the images were resized after the truth was drawn.
        tried: Groups of changes, see `TRIED`.

    Returns:
        `dataset`, `truth`, `images`, `targets` and `by`; `start`, the figures of the dataset's settings; `steps`, one
        for each try: `group`, `changes`, `kept`, `figures`; `best`, all changes that are kept; `figures`, theirs.

    Raises:
        InputError: The dataset or the truth cannot be read, or no phrase of one is known to the other.
        ConfigError: A setting cannot be used.
    """
    from pipeline.config import stored_config
    from pipeline.graph import calibration_basis, presence_in
    from stages.explain.stage import ExplainStage
    from stages.shared.truth import read_truth

    truth = read_truth(truth_path)
    made, config = read_run(dataset, settings, explains=True)
    rows, matched = matched_rows(made, truth, resized=resized)
    rows = dict(list(rows.items())[:most])
    calibrations = _calibrations_of(made, config, settings)

    def measured(tried: RunConfig) -> dict[str, Any]:
        basis = calibration_basis(tried, made.manifest["model_fingerprint"])
        fitting = next((one for one in calibrations if one.made_with == basis), None)
        return figures_of(known, tried, truth.categories, fitting)

    # With GrabCut the stage of the model keeps the pixels. No calibration is fitted to these settings together.
    uncontrasted = [*settings, "explain.contrast=0", "regions.refine=grabcut", "regions.calibration=none"]
    graph = graph_for(made, uncontrasted, pixels=True)
    told = [one for one in calibrations if one.presence is not None]
    if graph is not None and told:
        graph = replace(graph, model=ExplainStage(graph.explains.config, presence=presence_in(told[0])))
    known = [
        KnownImage(row=row, record=record, truth=matched.images[row["file_name"]])
        for row, record in heat_mapped(graph, rows, console, stored=False)
        if record.error is None
    ]
    best: dict[str, Any] = {}
    figures = start = measured(config)
    if not start["targets"]:
        raise InputError(f"none of the {len(known)} images has a phrase that {truth_path} knows")
    if start[by] is None:
        raise ConfigError(f"--by {by}: there is no such figure with this truth and the dataset's settings")
    steps: list[dict[str, Any]] = []
    with progress_bar(console, "settings", sum(map(len, tried.values()))) as advance:
        for group, candidates in tried.items():
            group_best = best
            here = len(steps)
            for changes in candidates:
                both = {**best, **changes}
                changed = stored_config(made.manifest["config"], [*settings, *map("=".join, _texts(both))])
                found = measured(changed)
                steps.append({"group": group, "changes": dict(changes), "kept": False, "figures": found})
                if found[by] is not None and found[by] > figures[by] + (MARGIN if changed != config else 0.0):
                    figures, group_best = found, both
                advance(len(steps))
            best = group_best
            for step in steps[here:]:
                step["kept"] = all(best.get(key) == value for key, value in step["changes"].items())
    return {
        "dataset": str(dataset),
        "truth": str(truth_path),
        "images": len(known),
        "targets": start["targets"],
        "by": by,
        "start": start,
        "steps": steps,
        "best": best,
        "figures": figures,
    }


def _calibrations_of(made: Dataset, config: RunConfig, settings: Sequence[str]) -> list[Calibration]:
    """The dataset's calibration, and with `auto` the others of its model; none if the dataset has none.

    Raises ConfigError if the dataset was made with another calibration than the configuration finds now.
    """
    from pipeline.config import sets_any
    from pipeline.graph import build_steps
    from stages.regions.score import read_calibration

    changes = sets_any(settings, ("explain", "regions"))
    if made.manifest["calibration"] is None and not changes:
        return []
    steps = build_steps(config)
    if steps.calibration != made.manifest["calibration"] and not changes:
        raise ConfigError(
            f"regions.calibration: {config.regions.calibration} is no longer the one that {made.path} was made with"
        )
    own, shipped = steps.cuts.calibration, () if steps.described is None else steps.described.calibrations
    others = shipped if config.regions.calibration == "auto" else ()
    return [*([] if own is None else [own]), *map(read_calibration, others)]


def figures_of(
    known: Sequence[KnownImage],
    config: RunConfig,
    categories: frozenset[str],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Return `FIGURES`, `precision`, and the numbers of `targets` and `regions` with the settings of a configuration.

    A figure that no target has is None, and so is `precision` where nothing has a region.

    Args:
        known: The images.
        config: The settings.
        categories: See `GroundTruth.categories`.
        calibration: The one that a run with these settings finds; None if there is none.
    """
    from pipeline.evaluate.matching import queries_of
    from pipeline.evaluate.metrics import METRICS, correct
    from stages.contract.schema import records_to_rows
    from stages.explain.stage import contrasted
    from stages.regions.stage import RegionsStage

    stage = RegionsStage(config.regions, calibration)
    values: dict[str, list[float]] = {name: [] for name in FIGURES}
    targets, right = 0, list[bool]()
    for number, image in enumerate(known):
        maps = contrasted(list(image.record.heat_maps), config.explain.contrast)
        record = replace(image.record, heat_maps=tuple(maps))
        (row,) = records_to_rows(stage.process([record]), embed_images=False).to_pylist()
        for query in queries_of(number, row, image.truth, categories, record.phrases, stage.surfaces_of(record)):
            right += correct(query)
            if query.target is None:
                continue
            targets += 1
            for name, found in values.items():
                value = METRICS[name].value(query)
                if value is not None:
                    found.append(value)
    means = {name: math.fsum(found) / len(found) if found else None for name, found in values.items()}
    precision = sum(right) / len(right) if right else None
    return {**means, "precision": precision, "regions": len(right), "targets": targets}


def write_settings(best: Changes, out: Path) -> None:
    """Write settings as a configuration file. Raises ConfigError if the file cannot be written."""
    from pipeline.config import as_yaml
    from stages.shared.storage import write_text

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, as_yaml(best))
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error


def print_tuning(figures: Mapping[str, Any], console: Console) -> None:
    """The table for people: a line for each try, and what stays."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("pointing", "off centre", "box recall", "box IoU", "mask IoU", "precision"):
        table.add_column(name, justify="right")
    table.add_row("the dataset's settings", *_cells(figures["start"]), end_section=True)
    lines = list(figures["steps"])
    for step, following in zip(lines, [*lines[1:], None], strict=True):
        what = " ".join(str(value) for value in step["changes"].values())
        ends = following is None or following["group"] != step["group"]
        name = f"{step['group']}: {what}{' *' if step['kept'] else ''}"
        table.add_row(name, *_cells(step["figures"]), end_section=ends)
    console.print(f"{figures['images']:,} images, {figures['targets']:,} phrases with known boxes", soft_wrap=True)
    console.print(table)
    console.print(f"* stays, by {figures['by']}; a group is tried with what stays of those above it", soft_wrap=True)


def _cells(figures: Mapping[str, Any]) -> list[str]:
    shown = [figures[name] for name in (*FIGURES, "precision")]
    return ["-" if value is None else f"{value:.3f}" for value in shown]


def _texts(changes: Changes) -> list[tuple[str, str]]:
    return [(key, json.dumps(value)) for key, value in changes.items()]
