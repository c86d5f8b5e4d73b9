"""`phrasebox calibrate`: fit the scores of a model and its settings to how often regions are right.

For `regions.rule: fitted` the cut of heat maps is fitted first (`cut_fit.py`), and then the boxes
that correct it (`box_fit.py`), to images with known boxes. For a detector's dataset
the same regression is fitted to the evidence of its boxes (`stages.regions.detected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.calibration import calibration_basis, source_basis
from pipeline.config import sets_any
from pipeline.dataset.origin import is_own
from pipeline.evaluate.box_fit import BoxFigures, LearnedBoxes, fold_of, learn_boxes, place_things, true_places
from pipeline.evaluate.cut_fit import RowRecords, UsualSizes, fit_cut_to_rows
from pipeline.evaluate.detector_presence import fit_to_truth
from pipeline.evaluate.estimates import (
    Estimate,
    debiased_calibration_error,
    predict_out_of_fold,
    squared_error_gain,
)
from pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from pipeline.evaluate.metrics import is_right
from pipeline.evaluate.presence import fit_presence
from pipeline.logistic import Floats, fit_logistic
from pipeline.paths import check_writable, write_file
from pipeline.steps import Steps, build_steps
from stages.contract.errors import InputError
from stages.contract.records import Record
from stages.explain.presence import Presence
from stages.regions.config import RegionsConfig
from stages.regions.detected import BoxEvidence, DetectorPresence
from stages.regions.learned_box import BoxFit
from stages.regions.score import Calibration, Evidence
from stages.regions.stage import LinkStage, RegionsStage
from stages.regions.thresholds import FittedCut

FEWEST_REGIONS: Final = 100  # a calibration from fewer regions says more about chance than about the model


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFigures:
    """How good a fitted calibration is, on images that it was not fitted to.

    Attributes:
        matched: How many images were matched, and how.
        regions: Number of regions that it was fitted to.
        right: Number of them that are right.
        presence: `presence_auc` and `similarity_auc`, if presence was fitted, too.
        boxes: How good learned boxes are; None if the rule or the outlines leave no place for them.
        calibration_error: Error of the scores, without what chance adds.
        replaces: Whether the dataset has a calibration of the same kind, with which `gain`
            compares the scores. If not, it compares them with the share of right regions as the
            score of all.
        gain: The fall of the mean squared error.
    """

    matched: Mapping[str, int]
    regions: int
    right: int
    presence: Mapping[str, Estimate]
    boxes: BoxFigures | None
    calibration_error: Estimate
    replaces: bool
    gain: Estimate


def write_calibration(
    dataset: Path,
    truth_path: Path,
    out: Path,
    console: Console,
    settings: Sequence[str] = (),
    *,
    resized: bool = False,
    presence: bool = True,
) -> CalibrationFigures:
    """Fit a calibration to a dataset's images, write it to `out`, and return how good it is.

    The figures are from five folds: each region is judged once, by a fit that has not seen its
    image. Only the rule `regions.rule=fitted` (16 weights and the usual size of things) is
    fitted to all images, before; the usual size of a thing comes from the other images alone.
    `presence`: whether to fit presence, too, which takes a forward pass for each image.

    Raise as `open_evaluation_set`, InputError for too few regions, and ConfigError if `out`
    cannot be written.
    """
    check_writable("out", out)
    evaluation_set = open_evaluation_set(dataset, truth_path, settings, resized=resized)
    judge = _judge_heat_maps if evaluation_set.is_of_heat_maps else _judge_detector
    judged = judge(evaluation_set, console, presence=presence)
    regions = judged.regions
    labels = _labels_of(regions)
    names = list(regions[0].evidence.features)
    features = np.array([[*region.evidence.features.values()] for region in regions])
    images = np.array([region.image for region in regions], np.int64)
    fit = fit_logistic(features, labels)
    counts = {"regions": len(labels), "right": int(labels.sum())}
    calibration = Calibration(
        bias=fit.bias,
        **fit.by_name(names),
        made_with=judged.made_with,
        made_from={
            "truth": truth_path.name,
            "images": len({*images.tolist()}),
            **counts,
            **judged.made_from,
        },
        presence=judged.presence,
        cut=judged.cut,
        box=None if judged.boxes is None else judged.boxes.fit,
    )
    write_file("out", out, calibration.to_json())
    calibration_error, gain = _score_figures(regions, features, labels, images, judged.previous)
    return CalibrationFigures(
        matched=evaluation_set.matches.counts,
        **counts,
        presence=judged.presence_figures,
        boxes=None if judged.boxes is None else judged.boxes.figures,
        calibration_error=calibration_error,
        replaces=judged.previous is not None,
        gain=gain,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSet:
    """Regions to which scores are fitted, and what was fitted before them.

    Attributes:
        regions: The regions.
        made_with, made_from: See `Calibration`; the latter lacks the images and their regions.
        previous: The calibration that the new one replaces; None if there is none of its kind.
        presence: The fit of presence, if it was asked for.
        presence_figures: See `CalibrationFigures.presence`.
        cut: Where heat maps are cut.
        boxes: The boxes learned for heat maps.
    """

    regions: Sequence[JudgedRegion]
    made_with: dict[str, Any]
    made_from: Mapping[str, Any]
    previous: Calibration | None
    presence: Presence | DetectorPresence | None
    presence_figures: Mapping[str, Estimate]
    cut: FittedCut | None = None
    boxes: LearnedBoxes | None = None


def _judge_heat_maps(evaluation_set: EvaluationSet, console: Console, *, presence: bool) -> JudgedSet:
    """Fit cut, presence and boxes of heat maps, and judge the regions that they give."""
    previous = _replaced_calibration(evaluation_set, lambda: build_steps(evaluation_set.config()), presence=presence)
    evaluation_set = evaluation_set.with_requested_rule()
    config = evaluation_set.config()
    steps = evaluation_set.steps(pixels=config.regions.needs_pixels or config.regions.refine == "sam")
    rows = [(row, record) for row, record in evaluation_set.rows_with_maps(steps, console) if record.error is None]
    is_fitted = config.regions.rule == "fitted"
    cut, sizes = fit_cut_to_rows(config.regions, rows, evaluation_set) if is_fitted else (None, None)
    cuts = {row["id"]: _cut_of_others(cut, sizes, row["id"], record) for row, record in rows}
    _labels_of(_judge_regions(config.regions, rows, evaluation_set, cuts, has_absent=not presence))
    presence_fit, presence_figures, presences = fit_presence(evaluation_set, console) if presence else (None, {}, {})
    rows = [(row, _with_presences(row["id"], record, presences)) for row, record in rows]
    boxes = learn_boxes(
        place_things(config.regions, rows, true_places(evaluation_set), cuts),
        with_networks=config.regions.learns_boxes,
    )
    return JudgedSet(
        regions=_judge_regions(config.regions, rows, evaluation_set, cuts, boxes.folds, has_absent=not presence),
        made_with=calibration_basis(
            config.explain if steps is None else steps.explainer,
            config.regions,
            evaluation_set.dataset.manifest["model_fingerprint"],
            None if steps is None else steps.segmenter,
        ),
        made_from={"precisions": [config.model.precision]},
        previous=previous,
        presence=presence_fit,
        presence_figures=presence_figures,
        cut=cut,
        boxes=boxes,
    )


def _judge_detector(evaluation_set: EvaluationSet, console: Console, *, presence: bool) -> JudgedSet:
    """Compute the regions of a detector again, because rows may hold other scores, judge them, and fit presence."""
    steps = evaluation_set.source_steps()
    rows = [(row, record) for row, record in evaluation_set.rows_with_maps(steps, console) if record.error is None]
    regions = [
        region
        for row, record in rows
        for region in _judge_row(evaluation_set, row, record, steps.regions_stage, has_absent=not presence)
    ]
    _labels_of(regions)
    records = [record for _, record in rows]
    fit, figures = fit_to_truth(evaluation_set, steps, records, console) if presence else (None, {})
    return JudgedSet(
        regions=regions,
        made_with=source_basis(evaluation_set.config().source, steps.fingerprint),
        made_from={},
        previous=_replaced_calibration(evaluation_set, lambda: steps, presence=presence),
        presence=fit,
        presence_figures=figures,
    )


def _score_figures(
    regions: Sequence[JudgedRegion],
    features: Floats,
    labels: NDArray[np.bool_],
    images: NDArray[np.int64],
    previous: Calibration | None,
) -> tuple[Estimate, Estimate]:
    """Return the calibration error of scores from five folds, and their gain, see `CalibrationFigures`."""
    share = labels.mean()
    baseline = np.array([share if previous is None else previous.probability(region.evidence) for region in regions])
    scores = predict_out_of_fold(features, labels, images)
    gain = squared_error_gain(baseline, scores, labels, images)
    return debiased_calibration_error(scores, labels, images), gain


def _cut_of_others(cut: FittedCut | None, sizes: UsualSizes | None, image: int, record: Record) -> FittedCut | None:
    """Return the cut with usual sizes from images other than this one."""
    if cut is None or sizes is None:
        return None
    usual = sizes.of_other_images(image, (phrase.head for phrase in record.phrases))
    return cut.model_copy(update={"usual": usual})


def _with_presences(image: int, record: Record, presences: Mapping[tuple[int, str], float]) -> Record:
    """Return the record with the presences of this fit, None without one, in place of an earlier one's."""
    heat_maps = (replace(heat_map, presence=presences.get((image, heat_map.text))) for heat_map in record.heat_maps)
    return replace(record, heat_maps=tuple(heat_maps))


def _labels_of(regions: Sequence[JudgedRegion]) -> NDArray[np.bool_]:
    """Return whether each region is right, (n,). Raise InputError if there are too few right or wrong ones."""
    labels = np.array([region.is_right for region in regions], np.bool_)
    if len(labels) < FEWEST_REGIONS or labels.all() or not labels.any():
        raise InputError(
            f"{len(labels)} regions with a known truth, {labels.sum()} of them right: a calibration needs at least "
            f"{FEWEST_REGIONS}, right ones and wrong ones"
        )
    return labels


def _replaced_calibration(
    evaluation_set: EvaluationSet, build: Callable[[], Steps], *, presence: bool
) -> Calibration | None:
    """Return the calibration of the dataset's scores if its regression is about the same phrases, else None.

    build: returns the dataset's steps.
    presence: whether presence is fitted, so that the regression is about present phrases alone.
    """
    made_with = evaluation_set.dataset.manifest.get("calibration")
    changes = [setting for setting in evaluation_set.settings if not setting.startswith("regions.calibration=")]
    is_changed = sets_any(changes, ("explain", "regions", "source"))
    if made_with is None or not is_own(evaluation_set.dataset.run) or is_changed:
        return None
    steps = build()
    calibration = steps.calibration
    if steps.calibration_digest != made_with or calibration is None or (calibration.presence is not None) != presence:
        return None
    return calibration


class JudgedRegion(NamedTuple):
    """A region of a phrase that the ground truth knows, by the number of its image."""

    image: int
    evidence: Evidence | BoxEvidence
    is_right: bool


def _judge_regions(
    config: RegionsConfig,
    rows: RowRecords,
    evaluation_set: EvaluationSet,
    cuts: Mapping[int, FittedCut | None],
    box_fits: Sequence[BoxFit] = (),
    *,
    has_absent: bool,
) -> list[JudgedRegion]:
    """Return the `_judge_row` of all rows.

    cuts: The cut of each image.
    box_fits: The fit for the images of each fold; none leaves the cuts' boxes.
    """
    regions: list[JudgedRegion] = []
    for row, record in rows:
        box_fit = box_fits[fold_of(row["id"])] if box_fits else None
        stage = RegionsStage(config, fitted_cut=cuts[row["id"]], box_fit=box_fit)
        regions += _judge_row(evaluation_set, row, record, stage, has_absent=has_absent)
    return regions


def _judge_row(
    evaluation_set: EvaluationSet,
    row: Mapping[str, Any],
    record: Record,
    stage: RegionsStage | LinkStage,
    *,
    has_absent: bool,
) -> Iterator[JudgedRegion]:
    """Yield the regions of phrases that the ground truth knows, once where several captions say a phrase.

    has_absent: Whether to include phrases that the ground truth knows to be absent.
    """
    row_regions = stage.regions_of(record)
    judged = set()  # captions repeat phrases, and a region counts once
    for query in evaluation_set.queries(row, record.phrases):
        boxes = () if query.target is None else query.target.boxes_xywh_px
        is_repeated = (query.phrase, boxes) in judged
        if is_repeated or query.phrase_index is None or (query.target is None and not has_absent):
            continue
        judged.add((query.phrase, boxes))
        for region, evidence in row_regions[query.phrase_index]:
            yield JudgedRegion(query.image, evidence, is_right(region.box_xywh_px, boxes))
