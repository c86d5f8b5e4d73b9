"""`phrasebox calibrate --reviews`: scores fitted to people's answers about some 200 regions of a dataset.

So few answers only correct the previous calibration of the dataset's scores, if there is one. The
fit is the most likely one a posteriori; a standardised weight has a normal prior around the
previous one.

right      the regression on a region's evidence, fitted to "right" and "wrong"
presence   its log odds, constant + slope * log odds with slope >= 0, fitted to "there" (right or wrong) and "not there"

Where presence is not known, "not there" counts as wrong. The cut of maps does not change: an answer
is about the shown cut, and a wrong box does not tell whether another cut of its map would be right.
Boxes that people drag do (`boxes.py`); where learned boxes are used, `right` is fitted to
those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import logit

from phrasebox.pipeline.calibrate.box_fit import LearnedBoxes
from phrasebox.pipeline.calibrate.cut_fit import RowRecords
from phrasebox.pipeline.calibrate.review_boxes import (
    judge_learned_boxes,
    learn_reviewed_boxes,
    reviewed_phrases,
)
from phrasebox.pipeline.config.paths import write_file
from phrasebox.pipeline.dataset.folder import Dataset, open_dataset
from phrasebox.pipeline.evaluate.estimates import (
    Estimate,
    debiased_calibration_error,
    predict_out_of_fold,
    squared_error_gain,
)
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, phrases_of, process_input
from phrasebox.pipeline.evaluate.foreign_phrases import model_steps
from phrasebox.pipeline.evaluate.matching import ImageMatches
from phrasebox.pipeline.evaluate.reviews import (
    MIN_ANSWERS,
    ReviewedRegions,
    latest_time,
    read_reviewed_regions,
)
from phrasebox.pipeline.run.calibration import calibration_basis, source_basis
from phrasebox.pipeline.run.presence_fit import signals_of
from phrasebox.pipeline.run.steps import AnyRegionsStage, AnySteps, HeatMapSteps
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.values import Bools, Floats, Floats32, Json
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.captioning import Captioning
from phrasebox.stages.scores.detected import BoxEvidence, DetectorPresence
from phrasebox.stages.scores.logistic import LogisticModel, mean_and_scale, most_likely
from phrasebox.stages.scores.presence import ImageStatistics, Presence
from phrasebox.stages.scores.score import Calibration, Evidence, feature_names
from phrasebox.stages.truth.ground_truth import GroundTruth, TruthImage

CERTAINTY: Final = 40.0
"""Precision of the prior of a standardised weight. With 200 answers about the 500 photographs
that settings are chosen on, precision from 0.5 on is closest to its claim with 30 to 80. Scenes
show no difference from 10 to 80."""

SIMILARITY_WEIGHT: Final = 0.7
"""Prior weight of the standardised similarity without a previous calibration. The shipped
calibrations have 0.3 to 0.5. On the same photographs 0.5 and 1 are worse, and with 0 too few
regions get a score of 0.5."""

DETECTOR_SCORES: Final = Calibration(
    bias=0.0,
    weight={"log_odds": 1.0},
    mean={"log_odds": 0.0},
    scale={"log_odds": 1.0},
    made_with={},
    made_from={},
)
"""Takes a detector's own scores for probabilities: the prior of the first answers about its
boxes."""

BIAS_CERTAINTY: Final = 0.01  # precision of the prior of the constant

PRESENCE_CERTAINTY: Final = 0.3
"""Precision of the prior of presence's constant: presence must not become certain if nobody says
"not there"."""

_CERTAIN: Final = 1e-6  # presences are rounded to six decimals, and the log odds of 0 and 1 have no bounds


class ReviewModel(NamedTuple):
    """Two regressions: `right` of a region, from its evidence; `presence` of a phrase, from its log odds, if known."""

    right: LogisticModel
    presence: LogisticModel | None

    def scores(self, features: Floats, odds: Floats) -> Floats:
        """Return the scores (m,) of regions, from features (m, k) and log odds of presence (m, 1)."""
        right = self.right.probability(features)
        return right if self.presence is None else right * self.presence.probability(odds)


def fit_answers(
    features: Floats,
    odds: Floats,
    answers: NDArray[np.str_],
    previous: Calibration | None,
    names: Sequence[str] | None = None,
) -> ReviewModel:
    """Fit to answers (m,); `previous` made the dataset's scores. Raise ValueError if all or none is right.

    names: Of the features, if they are not those of the previous calibration.
    """
    is_present = answers != "absent"
    right = answers == "right"
    has_presence = previous is not None and previous.presence is not None
    counts = is_present if has_presence else np.ones_like(is_present)
    if right[counts].all() or not right.any():
        raise ValueError("expected regions that are right and others that are wrong")
    mean, scale = mean_and_scale(features[counts])
    names = names or feature_names(previous)
    prior = np.array([0.0, *(SIMILARITY_WEIGHT if name == "similarity" else 0.0 for name in names)])
    if previous is not None and previous.weight:
        slopes = np.array(
            [previous.weight.get(name, 0.0) / previous.scale.get(name, 1.0) for name in names]
        )
        prior[0] = previous.bias + slopes @ (mean - [previous.mean.get(name, 0.0) for name in names])
        prior[1:] = slopes * scale
    x = np.column_stack([np.ones(counts.sum()), (features[counts] - mean) / scale])
    weights = most_likely(x, right[counts], prior, np.array([BIAS_CERTAINTY, *[CERTAINTY] * len(mean)]))
    fit = LogisticModel(bias=float(weights[0]), weight=weights[1:], mean=mean, scale=scale)
    if not has_presence:
        return ReviewModel(fit, None)
    x = np.column_stack([np.ones(len(odds)), odds])
    prior = np.array([0.0, 1.0])
    precision = np.array([PRESENCE_CERTAINTY, CERTAINTY])
    weights = most_likely(x, is_present, prior, precision)
    if weights[1] < 0.0:  # presence must not fall with its odds
        weights = np.array([*most_likely(x[:, :1], is_present, prior[:1], precision[:1]), 0.0])
    presence = LogisticModel(bias=float(weights[0]), weight=weights[1:], mean=np.zeros(1), scale=np.ones(1))
    return ReviewModel(fit, presence)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewFitFigures:
    """How good a calibration is that was fitted to answers.

    Attributes:
        counts: Numbers of answers, see `ReviewedRegions`.
        reviewers: Name -> answers.
        presence: Whether presence was fitted, too.
        before: Calibration error of the dataset's scores, without what chance adds.
        after: The same of scores by fits to other images.
        replaces: Whether the dataset's scores have a calibration.
        boxes: The learned boxes, see `learn_reviewed_boxes`.
        gain: The fall of the mean squared error of the scores.
    """

    counts: Mapping[str, int]
    reviewers: Mapping[str, int]
    presence: bool
    before: Estimate
    after: Estimate
    replaces: bool
    boxes: LearnedBoxes | None
    gain: Estimate


def write_reviewed_calibration(
    path: Path, out: Path, console: Console, settings: Sequence[str] = ()
) -> ReviewFitFigures:
    """Fit a calibration to the answers beside a dataset, write it to `out`, and return how good it is.

    Heat maps of the reviewed images come from the shards, or are computed again, and so are a
    detector's boxes.

    Raise InputError for fewer than `MIN_ANSWERS` answers, for only right or only wrong answers, and
    for a dataset that cannot be read or that is now cut otherwise. Raise ConfigError if a setting
    cannot be used, if the calibration of the dataset's scores is not found, or if `out` cannot be
    written.
    """
    dataset = open_dataset(path)
    reviewed = read_reviewed_regions(dataset)  # faults of the answers are reported before a model is loaded
    evaluation_set = _reviewed_images(dataset, reviewed, settings)
    basis = (_heat_map_basis if evaluation_set.is_of_heat_maps else _detector_basis)(evaluation_set)
    previous = basis.steps.calibration
    reviewed = _read_new_answers(dataset, previous)
    _check_calibration(path, dataset, basis.steps)
    rows = evaluation_set.sound_rows(basis.remaking, console)
    boxes, judged, evidence = _learn_boxes(evaluation_set, reviewed, rows, basis)
    previous_box = None if previous is None else previous.box
    box = boxes.fit if boxes is not None and boxes.fit.networks else previous_box
    fit, scores = _fit_with_folds(judged, evidence, basis.prior)
    share = evaluation_set.config().regions.expected_absent_share
    presence = _correct_presence(basis.prior, fit.presence, share)
    embeddings = []
    captions = {}
    if evaluation_set.is_of_heat_maps:
        # An answer is about the region of all captions, so nobody knows whether that of fewer ones would be right.
        captions = {"captions": [Captioning.of(record for _, record in rows).rounded]}
    if presence is not None and basis.embedding is not None:
        embeddings = _embeddings_of(evaluation_set, basis.embedding, console)
        # Later runs are compared with these images, not with the images of the previous fit.
        presence = presence.model_copy(update={"corrected_on": ImageStatistics.of(np.stack(embeddings))})
    calibration = Calibration(
        bias=fit.right.bias,
        **fit.right.by_name(list(evidence[0].features)),
        made_with=basis.made_with,
        made_from={
            "reviews": len(reviewed.answers),
            "dataset": dataset.path.name,
            "answers": reviewed.counts,
            "answered": latest_time(chain.from_iterable(reviewed.reviews)),
            "reviewers": reviewed.reviewers,
            "images": len(embeddings),
            **captions,
            **basis.made_from,
        },
        presence=presence,
        cut=None if previous is None else previous.cut,
        box=box,
    )
    figures = ReviewFitFigures(
        counts=reviewed.counts,
        reviewers=reviewed.reviewers,
        presence=fit.presence is not None,
        before=debiased_calibration_error(reviewed.scores, reviewed.is_right, reviewed.field("image_id")),
        after=debiased_calibration_error(scores, judged.is_right, judged.field("image_id")),
        replaces=previous is not None and previous.of_regions,
        boxes=boxes,
        gain=squared_error_gain(judged.scores, scores, judged.is_right, judged.field("image_id")),
    )
    write_file("out", out, calibration.to_json())
    return figures


def _reviewed_images(dataset: Dataset, reviewed: ReviewedRegions, settings: Sequence[str]) -> EvaluationSet:
    """Return the dataset with the images of the reviewed regions, of which no place is known beforehand."""
    reviewed_ids = set(reviewed.field("image_id").tolist())
    images = {
        row["sample_id"]: TruthImage(
            file_name=row["file_name"], width_px=row["width"], height_px=row["height"], targets=()
        )
        for row in dataset.rows(["id", "sample_id", "file_name", "height", "width"])
        if row["id"] in reviewed_ids
    }
    return EvaluationSet(
        dataset=dataset,
        settings=settings,
        truth=GroundTruth(images=images),
        truth_path=dataset.path,
        matches=ImageMatches(images=images, ambiguous=0),
        by="sample_id",
    )


class _Basis(NamedTuple):
    """How the reviewed regions are made, and what is known of their scores before the answers.

    Attributes:
        steps: The steps of the dataset.
        embedding: Those that embed the images of the answers, with which later runs are compared; None if the
            source's presence knows no images.
        remaking: Those that compute what the dataset does not hold; None if it holds everything.
        stage: Makes regions with their evidence.
        prior: The calibration around which the weights lie.
        made_with, made_from: See `Calibration`; the latter lacks the answers.
    """

    steps: AnySteps
    embedding: HeatMapSteps | None
    remaking: AnySteps | None
    stage: AnyRegionsStage
    prior: Calibration | None
    made_with: Json
    made_from: Json


def _heat_map_basis(evaluation_set: EvaluationSet) -> _Basis:
    steps = model_steps(evaluation_set)
    config = evaluation_set.config()
    return _Basis(
        steps=steps,
        embedding=steps,
        remaking=evaluation_set.steps(pixels=config.regions.needs_pixels or config.regions.refine == "sam"),
        stage=RegionsStage(config.regions, steps.calibration),
        prior=steps.calibration,
        made_with=calibration_basis(steps.explainer, config.regions, steps.fingerprint, steps.segmenter),
        made_from={"precisions": [config.model.precision]},
    )


def _detector_basis(evaluation_set: EvaluationSet) -> _Basis:
    steps = evaluation_set.source_steps()
    return _Basis(
        steps=steps,
        embedding=None,
        remaking=steps,
        stage=steps.regions_stage,
        prior=_prior_of(steps.calibration),
        made_with=source_basis(evaluation_set.config().source, steps.fingerprint),
        made_from={},
    )


def _prior_of(previous: Calibration | None) -> Calibration:
    """Return the calibration of a detector's scores before the answers, with the presence of the previous one."""
    if previous is None or previous.of_regions:
        return previous or DETECTOR_SCORES
    return DETECTOR_SCORES.model_copy(update={"presence": previous.presence})


def _learn_boxes(
    evaluation_set: EvaluationSet, reviewed: ReviewedRegions, rows: RowRecords, basis: _Basis
) -> tuple[LearnedBoxes | None, ReviewedRegions, Sequence[Evidence | BoxEvidence]]:
    """Return the boxes that dragged ones teach, and the regions that scores are fitted to, with their evidence."""
    evidence = _evidence_of(reviewed, rows, basis.stage)
    config = evaluation_set.config().regions
    requested = evaluation_set.with_requested_cut().config().regions
    if not evaluation_set.is_of_heat_maps or not requested.learns_boxes:
        return None, reviewed, evidence
    phrases = reviewed_phrases(reviewed, rows)
    boxes = learn_reviewed_boxes(phrases, rows, config, basis.prior)
    if boxes is None or not boxes.fit.networks:
        return boxes, reviewed, evidence
    stages = [RegionsStage(config, basis.prior, box_fit=fold) for fold in boxes.folds]
    return boxes, *judge_learned_boxes(reviewed, phrases, rows, stages)


def _check_calibration(path: Path, dataset: Dataset, steps: AnySteps) -> None:
    if dataset.manifest.get("calibration") not in (None, steps.calibration_digest):
        raise ConfigError(
            f"{path}: its scores were made with another calibration than is found now; name that one with "
            "--set regions.calibration=FILE"
        )


def _read_new_answers(dataset: Dataset, previous: Calibration | None) -> ReviewedRegions:
    """Read the answers that the previous calibration was not fitted to. Raise InputError if there are too few."""
    since = "" if previous is None else previous.made_from.get("answered", "")
    reviewed = read_reviewed_regions(dataset, since)
    if len(reviewed.answers) < MIN_ANSWERS:
        kind = "new answers" if since else "answers"
        review = f"phrasebox inspect {dataset.path} --review"
        raise InputError(
            f"{len(reviewed.answers)} {kind} count: a calibration needs at least {MIN_ANSWERS}: {review}"
        )
    return reviewed


def _evidence_of(
    reviewed: ReviewedRegions, rows: RowRecords, stage: AnyRegionsStage
) -> list[Evidence | BoxEvidence]:
    """Return the evidence of each reviewed region, which is made again."""
    evidence_by_region: dict[tuple[Any, ...], Evidence | BoxEvidence] = {}
    for row, record in rows:
        row_regions = stage.regions_of(record)
        for index, phrase in enumerate(record.phrases):
            for region, part in row_regions[index]:
                box = tuple(np.array(region.box_xywh_px, np.float32).tolist())
                evidence_by_region[row["id"], phrase.text, box] = part
    keys = [
        (region.annotation["image_id"], key.phrase, key.bbox) for key, region in reviewed.regions.items()
    ]
    if missing_keys := [key for key in keys if key not in evidence_by_region]:
        raise InputError(
            f"{len(missing_keys)} of {len(keys)} reviewed regions, such as that of {missing_keys[0][1]!r}, are cut "
            "otherwise with these settings, or their images cannot be read"
        )
    return [evidence_by_region[key] for key in keys]


def _fit_with_folds(
    reviewed: ReviewedRegions, evidence: Sequence[Evidence | BoxEvidence], previous: Calibration | None
) -> tuple[ReviewModel, Floats]:
    """Fit to all answers; return the fit and the score (m,) of each region by a fit to other images."""
    names = list(evidence[0].features)
    features = np.array([[*part.features.values()] for part in evidence])
    presences = reviewed.field("presence").astype(np.float64)  # NaN where it is not known
    odds = logit(np.clip(presences, _CERTAIN, 1 - _CERTAIN))[:, None]
    answers = reviewed.answers

    def predict(in_fold: Bools) -> Floats:
        fold_fit = fit_answers(features[~in_fold], odds[~in_fold], answers[~in_fold], previous, names)
        return fold_fit.scores(features[in_fold], odds[in_fold])

    try:
        fit = fit_answers(features, odds, answers, previous, names)
        scores = predict_out_of_fold(reviewed.field("image_id"), predict)
    except ValueError as error:
        raise InputError(
            f"{len(answers)} answers are too one-sided: {error}, in every fifth of the images: review more regions"
        ) from error
    return fit, scores


def _embeddings_of(evaluation_set: EvaluationSet, steps: HeatMapSteps, console: Console) -> list[Floats32]:
    """Compute the unit embeddings of the reviewed images."""
    phrases = {row["sample_id"]: phrases_of(row["annotations"]) for row in evaluation_set.rows()}
    records = process_input(evaluation_set.reader, [steps.prepare_stage], phrases, console)
    return [signals.embedding for _, signals in signals_of(steps.model_stage, records, console)]


def _correct_presence(
    previous: Calibration | None, fit: LogisticModel | None, absent_share: float
) -> Presence | DetectorPresence | None:
    """Return the corrected presence for the share of absent phrases that the dataset's run expected, None without."""
    if previous is None or previous.presence is None or fit is None:
        return None
    slope = float(fit.weight[0])
    shift = float(logit(previous.absent_share) - logit(absent_share))  # `at_share` in log odds
    weight = {name: slope * value for name, value in previous.presence.weight.items()}
    bias = fit.bias + slope * (previous.presence.bias + shift)
    return previous.presence.model_copy(
        update={"bias": bias, "weight": weight, "absent_share": absent_share}
    )
