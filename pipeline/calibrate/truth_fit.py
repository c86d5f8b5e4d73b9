"""`phrasebox calibrate`: fit the scores of a model and its settings to how often regions are right.

For `regions.rule: fitted` the cut of heat maps is fitted first (`cut_fit.py`), and then the boxes
that correct it (`box_fit.py`), to images with known boxes. For a dataset of another source
the same regression is fitted to the evidence of its boxes (`phrasebox.stages.scores.detected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console

from phrasebox.pipeline.calibrate.box_fit import (
    LearnedBoxes,
    fold_of,
    learn_boxes,
    learn_usual_boxes,
    place_objects,
    true_places,
)
from phrasebox.pipeline.calibrate.caption_views import CaptionView, captionings_of, views_of
from phrasebox.pipeline.calibrate.cut_fit import RowQueries, UsualSizes, fit_cut_to_rows
from phrasebox.pipeline.calibrate.presence import fit_detector_presence, fit_presence_to_truth
from phrasebox.pipeline.config.paths import write_file
from phrasebox.pipeline.config.run_config import sets_any
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.pipeline.evaluate.estimates import (
    Estimate,
    Estimates,
    debiased_calibration_error,
    judge_with_folds,
    squared_error_gain,
)
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.pipeline.run.calibration import calibration_basis, source_basis
from phrasebox.pipeline.run.steps import AnyRegionsStage, AnySteps, build_steps
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.values import Bools, Json
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.detected import BoxEvidence, DetectorPresence
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.learned_box import BoxModel
from phrasebox.stages.scores.logistic import fit_logistic
from phrasebox.stages.scores.presence import Presence
from phrasebox.stages.scores.score import Calibration, Evidence

FEWEST_REGIONS: Final = 100  # a calibration from fewer regions says more about chance than about the model


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFigures:
    """How good a fitted calibration is, on images that it was not fitted to.

    Attributes:
        matched: How many images were matched, and how.
        regions: Number of regions that it was fitted to.
        right: Number of them that are right.
        presence: `presence_auc` and `similarity_auc`.
        box_gain: Gain of learned boxes in box recall; None if the settings or the images leave no place for them.
        calibration_error: Error of the scores, without what chance adds.
        error_with_fewer: The same where the images have fewer captions, see `caption_views`; None if they have one.
        replaces: Whether the dataset has a calibration of the same kind, with which `gain`
            compares the scores. If not, it compares them with the share of right regions as the
            score of all.
        gain: The fall of the mean squared error.
    """

    matched: Mapping[str, int]
    regions: int
    right: int
    presence: Estimates
    box_gain: Estimate | None
    calibration_error: Estimate
    error_with_fewer: Estimate | None = None
    replaces: bool
    gain: Estimate


def write_calibration(evaluation_set: EvaluationSet, out: Path, console: Console) -> CalibrationFigures:
    """Fit a calibration to a dataset's images, write it to `out`, and return how good it is.

    The figures are from five folds: each region is judged once, by a fit that has not seen its
    image. Only the rule `regions.rule=fitted` (16 weights and the usual size of objects) is
    fitted to all images, before; the usual size of an object comes from the other images alone.

    Args:
        evaluation_set: The dataset and its ground truth.
        out: The file to write.
        console: Shows the progress.

    Raise InputError for too few or one-sided regions, as `EvaluationSet.full_steps`, and ConfigError if `out`
    cannot be written.
    """
    fit = _CalibrationFit(evaluation_set, console)
    judged = fit.judge_heat_maps() if evaluation_set.is_of_heat_maps else fit.judge_detector()
    regions = judged.regions
    is_whole = np.array([region.is_whole for region in regions])
    labels = np.array([region.is_right for region in regions], np.bool_)
    _check_enough(labels[is_whole])
    names = list(regions[0].evidence.features)
    features = np.array([[*region.evidence.features.values()] for region in regions])
    images = np.array([region.image for region in regions], np.int64)
    scores = judge_with_folds(features, labels, images, ("right regions", "wrong regions"))
    regression = fit_logistic(features, labels)
    counts = {"regions": int(is_whole.sum()), "right": int(labels[is_whole].sum())}
    calibration = Calibration(
        bias=regression.bias,
        **regression.by_name(names),
        made_with=judged.made_with,
        made_from={
            "truth": evaluation_set.truth_path.name,
            "images": len({*images.tolist()}),
            **counts,
            **judged.made_from,
        },
        presence=judged.presence,
        cut=judged.cut,
        box=None if judged.boxes is None else judged.boxes.fit,
    )
    previous = judged.previous
    share = labels[is_whole].mean()
    baseline = np.array(
        [
            share if previous is None else previous.probability(region.evidence)
            for region in regions
            if region.is_whole
        ]
    )

    def error_of(chosen: Bools) -> Estimate:
        return debiased_calibration_error(scores[chosen], labels[chosen], images[chosen])

    figures = CalibrationFigures(
        matched=evaluation_set.matches.counts,
        **counts,
        presence=judged.presence_figures,
        box_gain=None if judged.boxes is None else judged.boxes.gain,
        calibration_error=error_of(is_whole),
        error_with_fewer=None if is_whole.all() else error_of(~is_whole),
        replaces=previous is not None,
        gain=squared_error_gain(baseline, scores[is_whole], labels[is_whole], images[is_whole]),
    )
    write_file("out", out, calibration.to_json())
    return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSet:
    """Regions to which scores are fitted, and what was fitted before them.

    Attributes:
        regions: The regions.
        made_with, made_from: See `Calibration`; the latter lacks the images and their regions.
        previous: The calibration that the new one replaces; None if there is none of its kind.
        presence: The fit of presence.
        presence_figures: See `CalibrationFigures.presence`.
        cut: Where heat maps are cut.
        boxes: The boxes learned for heat maps.
    """

    regions: Sequence[JudgedRegion]
    made_with: Json
    made_from: Json
    previous: Calibration | None
    presence: Presence | DetectorPresence
    presence_figures: Estimates
    cut: FittedCut | None = None
    boxes: LearnedBoxes | None = None


@dataclass(frozen=True, slots=True)
class _CalibrationFit:
    """A fit to a dataset and its ground truth.

    Attributes:
        evaluation_set: The dataset and its ground truth.
        console: Shows the progress.
    """

    evaluation_set: EvaluationSet
    console: Console

    def judge_heat_maps(self) -> JudgedSet:
        """Fit cut, presence and boxes of heat maps, and judge the regions that they give."""
        previous = self._replaced_calibration(lambda: build_steps(self.evaluation_set.config()))
        evaluation_set = self.evaluation_set.with_requested_cut()
        config = evaluation_set.config()
        steps = evaluation_set.steps(pixels=config.regions.needs_pixels or config.regions.refine == "sam")
        rows = evaluation_set.sound_rows(steps, self.console)
        is_fitted = config.regions.rule == "fitted"
        cut, sizes = (
            fit_cut_to_rows(config.regions, rows, evaluation_set.queries) if is_fitted else (None, None)
        )
        cuts = {row["id"]: cut_of_others(cut, sizes, row["id"], record) for row, record in rows}
        presence, presence_figures, presences = fit_presence_to_truth(evaluation_set, self.console)
        rows = [(row, _with_presences(row["id"], record, presences)) for row, record in rows]
        views = sorted(
            (view for row, record in rows for view in views_of(row, record)),
            key=lambda view: view.captions is not None,
        )
        objects = place_objects(
            config.regions, [view[:2] for view in views], true_places(evaluation_set.queries), cuts
        )
        boxes = learn_boxes(objects) if config.regions.learns_boxes else learn_usual_boxes(objects)
        return JudgedSet(
            regions=self._judge_regions(config.regions, views, cuts, boxes.folds),
            made_with=calibration_basis(
                config.explain if steps is None else steps.explainer,
                config.regions,
                evaluation_set.dataset.manifest["model_fingerprint"],
                None if steps is None else steps.segmenter,
            ),
            made_from={
                "precisions": [config.model.precision],
                "captions": [captioning.rounded for captioning in captionings_of(views)],
            },
            previous=previous,
            presence=presence,
            presence_figures=presence_figures,
            cut=cut,
            boxes=boxes,
        )

    def judge_detector(self) -> JudgedSet:
        """Compute the regions of a source again, because rows may hold other scores, judge them, and fit presence."""
        evaluation_set = self.evaluation_set
        steps = evaluation_set.source_steps()
        rows = evaluation_set.sound_rows(steps, self.console)
        regions = [
            region
            for row, record in rows
            for region in judge_row(row, record, steps.regions_stage, evaluation_set.queries)
        ]
        records = [record for _, record in rows]
        presence, figures = fit_detector_presence(evaluation_set, steps, records, self.console)
        return JudgedSet(
            regions=regions,
            made_with=source_basis(evaluation_set.config().source, steps.fingerprint),
            made_from={},
            previous=self._replaced_calibration(lambda: steps),
            presence=presence,
            presence_figures=figures,
        )

    def _replaced_calibration(self, build: Callable[[], AnySteps]) -> Calibration | None:
        """Return the calibration of the dataset's scores if its regression is about the same phrases, else None.

        build: Returns the dataset's steps.
        """
        dataset = self.evaluation_set.dataset
        made_with = dataset.manifest.get("calibration")
        changes = [
            change
            for change in self.evaluation_set.settings
            if not change.startswith("regions.calibration=")
        ]
        if (
            made_with is None
            or not is_own(dataset.run)
            or sets_any(changes, ("explain", "regions", "source"))
        ):
            return None
        calibration = build().calibration
        if calibration is None or calibration.digest != made_with:
            return None
        return None if calibration.presence is None else calibration

    def _judge_regions(
        self,
        config: RegionsConfig,
        views: Sequence[CaptionView],
        cuts: Mapping[int, FittedCut | None],
        box_fits: Sequence[BoxModel],
    ) -> list[JudgedRegion]:
        """Return the `_judge_row` of all views.

        cuts: The cut of each image.
        box_fits: The fit for the images of each fold; none leaves the cuts' boxes.
        """
        regions: list[JudgedRegion] = []
        for row, record, captions in views:
            box_fit = box_fits[fold_of(row["id"])] if box_fits else None
            stage = RegionsStage(config, fitted_cut=cuts[row["id"]], box_fit=box_fit)
            judged = judge_row(row, record, stage, self.evaluation_set.queries)
            regions += (region._replace(is_whole=captions is None) for region in judged)
        return regions


def judge_row(
    row: Row, record: Record, stage: AnyRegionsStage, queries: RowQueries
) -> Iterator[JudgedRegion]:
    """Yield the regions of phrases that the ground truth knows, once where several captions say a phrase."""
    row_regions = stage.regions_of(record)
    judged = set()  # captions repeat phrases, and a region counts once
    for query in queries(row, record.phrases):
        if query.target is None or query.phrase_index is None:
            continue
        boxes = query.target.boxes_xywh_px
        if (query.phrase, boxes) in judged:
            continue
        judged.add((query.phrase, boxes))
        for region, evidence in row_regions[query.phrase_index]:
            yield JudgedRegion(query.image, evidence, is_right(region.box_xywh_px, boxes))


def cut_of_others(
    cut: FittedCut | None, sizes: UsualSizes | None, image: int, record: Record
) -> FittedCut | None:
    """Return the cut with usual sizes from images other than this one."""
    if cut is None or sizes is None:
        return None
    usual = sizes.of_other_images(image, (phrase.head for phrase in record.phrases))
    return cut.model_copy(update={"usual": usual})


def _with_presences(image: int, record: Record, presences: Mapping[tuple[int, str], float]) -> Record:
    """Return the record with the presences of this fit in place of an earlier one's."""
    heat_maps = (
        replace(heat_map, presence=presences.get((image, heat_map.text))) for heat_map in record.heat_maps
    )
    return replace(record, heat_maps=tuple(heat_maps))


def _check_enough(labels: Bools) -> None:
    """Raise InputError if too few regions (n,) are right or wrong to fit scores to."""
    if len(labels) < FEWEST_REGIONS or labels.all() or not labels.any():
        raise InputError(
            f"{len(labels)} regions with a known truth, {labels.sum()} of them right: a calibration needs at least "
            f"{FEWEST_REGIONS}, right ones and wrong ones"
        )


class JudgedRegion(NamedTuple):
    """A region of a phrase that the ground truth knows.

    Attributes:
        image: The number of its image.
        evidence: Its evidence.
        is_right: Whether it is right.
        is_whole: Whether all captions of the image made it.
    """

    image: int
    evidence: Evidence | BoxEvidence
    is_right: bool
    is_whole: bool = True
