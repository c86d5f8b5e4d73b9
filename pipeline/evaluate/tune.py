"""`phrasebox tune`: try settings of explain and regions on images with ground truth, one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from rich.console import Console

from pipeline.config import RunConfig, sets_any
from pipeline.config_text import as_yaml
from pipeline.evaluate.judged import JudgedDataset, judged_dataset
from pipeline.evaluate.metrics import correct, value_of
from pipeline.graph import build_steps, calibration_basis, presence_in
from pipeline.terminal import progress_bar
from stages.contract.errors import ConfigError, InputError
from stages.contract.records import Record
from stages.contract.schema import records_to_rows
from stages.explain.stage import ExplainStage, contrasted
from stages.regions.score import Calibration, read_calibration
from stages.regions.stage import RegionsStage
from stages.shared.storage import write_text

Changes = Mapping[str, Any]  # keys of the configuration with their values

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
"""Groups of changes, tried in this order. None of them needs another forward pass."""

Figure = Literal["pointing", "pointing_off_centre", "box_recall", "box_iou", "mask_iou", "precision"]
"""Metrics, and `precision`: the share of the regions that are right (a box IoU of 0.5 or more)."""

FIGURES: Final[tuple[str, ...]] = get_args(Figure)

MARGIN: Final = 0.002  # a setting takes the place of the one before only if its figure is better by this


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
    """Try groups of changes one after the other on `most` images; the best of each group by a figure stays.

    `dataset`, `truth_path`, `settings` and `resized` are as for `judged_dataset`, `tried` as `TRIED`.

    Returns:
        `dataset`, `truth`, `images`, `targets` and `by`; `start`, the figures of the dataset's settings; `steps`, one
        for each try: `group`, `changes`, `kept`, `figures`; `best`, all changes that are kept; `figures`, theirs.

    Raises:
        InputError: The dataset or the ground truth cannot be read, or no phrase of one is known to the other.
        ConfigError: A setting cannot be used.
    """
    judged = judged_dataset(dataset, truth_path, settings, resized=resized)
    config = judged.config()
    calibrations = _calibrations_of(judged, config)
    known = _known_images(judged, calibrations, most, console)

    def measured(tried: RunConfig) -> dict[str, Any]:
        basis = calibration_basis(tried, judged.dataset.manifest["model_fingerprint"])
        fitting = next((one for one in calibrations if one.made_with == basis), None)
        return figures_of(known, tried, judged, fitting)

    best: dict[str, Any] = {}
    figures = start = measured(config)
    if not start["targets"]:
        raise InputError(f"none of the {len(known)} images has a phrase that {truth_path} knows")
    if start[by] is None:
        raise ConfigError(f"--by {by}: there is no such figure with this ground truth and the dataset's settings")
    steps: list[dict[str, Any]] = []
    with progress_bar(console, "settings", sum(map(len, tried.values()))) as advance:
        for group, candidates in tried.items():
            group_best, here = best, len(steps)
            for changes in candidates:
                both = {**best, **changes}
                added = [f"{key}={json.dumps(value)}" for key, value in both.items()]
                changed = replace(judged, settings=[*settings, *added]).config()
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


def _calibrations_of(judged: JudgedDataset, config: RunConfig) -> list[Calibration]:
    """The dataset's calibration, and with `auto` the others of its model; none if the dataset has none.

    Raise ConfigError if the dataset was made with another calibration than the configuration finds now.
    """
    dataset = judged.dataset
    made_with, changes = dataset.manifest["calibration"], sets_any(judged.settings, ("explain", "regions"))
    if made_with is None and not changes:
        return []
    steps = build_steps(config)
    if steps.calibration != made_with and not changes:
        raise ConfigError(
            f"regions.calibration: {config.regions.calibration} is no longer the one that {dataset.path} was made with"
        )
    own, shipped = steps.cuts.calibration, () if steps.described is None else steps.described.calibrations
    others = shipped if config.regions.calibration == "auto" else ()
    return [*([] if own is None else [own]), *map(read_calibration, others)]


def _known_images(
    judged: JudgedDataset, calibrations: Sequence[Calibration], most: int, console: Console
) -> list[Record]:
    # With GrabCut the stage of the model keeps the pixels. No calibration is fitted to these settings together.
    uncontrasted = ("explain.contrast=0", "regions.refine=grabcut", "regions.calibration=none")
    judged = replace(judged, settings=[*judged.settings, *uncontrasted])
    graph = judged.graph(pixels=True)
    with_presence = [one for one in calibrations if one.presence is not None]
    if graph is not None and with_presence:
        graph = replace(graph, model=ExplainStage(graph.explains.config, presence=presence_in(with_presence[0])))
    return [record for _, record in judged.mapped(graph, console, most) if record.error is None]


def figures_of(
    known: Sequence[Record], config: RunConfig, judged: JudgedDataset, calibration: Calibration | None = None
) -> dict[str, Any]:
    """Return `FIGURES` and the numbers of `targets` and `regions` with the settings of a configuration.

    A metric that no target has is None, and so is `precision` if nothing has a region. `calibration` is the one that a
    run with these settings finds.
    """
    stage = RegionsStage(config.regions, calibration)
    values: dict[str, list[float]] = {name: [] for name in FIGURES if name != "precision"}
    targets, right = 0, list[bool]()
    for plain in known:
        maps = contrasted(list(plain.heat_maps), config.explain.contrast)
        record = replace(plain, heat_maps=tuple(maps))
        (row,) = records_to_rows(stage.process([record]), embed_images=False).to_pylist()
        for query in judged.queries(row, record.phrases, stage.surfaces_of(record)):
            right += correct(query)
            if query.target is not None:
                targets += 1
                for name, found in values.items():
                    found.append(value_of(name, query))
    numbers = {name: [value for value in found if not math.isnan(value)] for name, found in values.items()}
    means = {name: math.fsum(found) / len(found) if found else None for name, found in numbers.items()}
    precision = sum(right) / len(right) if right else None
    return {**means, "precision": precision, "regions": len(right), "targets": targets}


def write_settings(best: Changes, out: Path) -> None:
    """Write settings as a configuration file. Raise ConfigError if the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, as_yaml(best))
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
