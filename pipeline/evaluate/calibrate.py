"""`phrasebox calibrate`: fit the scores of a model and its settings to how often regions are right.

For `regions.rule: fitted` the cut of heat maps is fitted first, to images with known boxes: how
large things usually are, and the weights by which a cut is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pipeline.calibration import calibration_basis
from pipeline.config import sets_any
from pipeline.dataset.origin import is_own
from pipeline.evaluate.estimates import (
    Estimate,
    debiased_calibration_error,
    predict_out_of_fold,
    squared_error_gain,
)
from pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from pipeline.evaluate.metrics import is_right
from pipeline.evaluate.presence import fit_presence
from pipeline.graph import build_steps
from pipeline.logistic import Floats, LogisticFit, fit_logistic, mean_and_scale
from pipeline.paths import check_writable, write_file
from stages.contract.errors import InputError
from stages.contract.records import Record
from stages.regions.config import RegionsConfig
from stages.regions.score import FEATURES, Calibration, Evidence
from stages.regions.stage import RegionsStage
from stages.regions.thresholds import CUT_FEATURES, SHARES, FittedCut, cut_features

FEWEST_REGIONS: Final = 100  # a calibration from fewer regions says more about chance than about the model

RIDGE: Final = 1e-4
"""Penalty on the squared weights of a cut's standardised features, beside a mean over maps of 0 .. 1."""

SHRINK: Final = 3.0  # things of usual size that each head noun is taken to have been seen with beside the real ones

STEPS: Final = 400  # most steps of the optimiser of cuts; some 100 suffice

RowRecords = Sequence[tuple[Mapping[str, Any], Record]]  # rows with their records, see `EvaluationSet.rows_with_maps`


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFigures:
    """How good a fitted calibration is, on images that it was not fitted to.

    Attributes:
        matched: How many images were matched, and how.
        regions: Number of regions that it was fitted to.
        right: Number of them that are right.
        presence: `presence_auc` and `similarity_auc`, if presence was fitted, too.
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
    previous = _replaced_calibration(evaluation_set, presence=presence)
    evaluation_set = evaluation_set.with_requested_rule()
    config = evaluation_set.config()
    steps = evaluation_set.steps(pixels=config.regions.needs_pixels or config.regions.refine == "sam")
    rows = [(row, record) for row, record in evaluation_set.rows_with_maps(steps, console) if record.error is None]
    is_fitted = config.regions.rule == "fitted"
    cut, sizes = fit_cut_to_rows(config.regions, rows, evaluation_set) if is_fitted else (None, None)
    regions = _judge_regions(config.regions, rows, evaluation_set, cut, sizes, has_absent=not presence)
    labels = _labels_of(regions)
    features = np.array([[measure(region.evidence) for measure in FEATURES.values()] for region in regions])
    images = np.array([region.image for region in regions], np.int64)
    fit = fit_logistic(features, labels)
    presence_fit, presence_figures = fit_presence(evaluation_set, console) if presence else (None, {})
    counts = {"regions": len(labels), "right": int(labels.sum())}
    calibration = Calibration(
        bias=fit.bias,
        **fit.by_name(list(FEATURES)),
        made_with=calibration_basis(
            config.explain if steps is None else steps.explainer,
            config.regions,
            evaluation_set.dataset.manifest["model_fingerprint"],
            None if steps is None else steps.segmenter,
        ),
        made_from={
            "truth": truth_path.name,
            "images": len({*images.tolist()}),
            **counts,
            "precisions": [config.model.precision],
        },
        presence=presence_fit,
        cut=cut,
    )
    write_file("out", out, calibration.to_json())
    calibration_error, gain = _score_figures(regions, features, labels, images, previous)
    return CalibrationFigures(
        matched=evaluation_set.matches.counts,
        **counts,
        presence=presence_figures,
        calibration_error=calibration_error,
        replaces=previous is not None,
        gain=gain,
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
    places = np.unique(np.c_[images, labels, features], axis=0, return_index=True)[1]  # captions repeat phrases
    scores = predict_out_of_fold(features, labels, images)[places]
    right = labels[places]
    gain = squared_error_gain(baseline[places], scores, right, images[places])
    return debiased_calibration_error(scores, right, images[places]), gain


def _labels_of(regions: Sequence[JudgedRegion]) -> NDArray[np.bool_]:
    """Return whether each region is right, (n,). Raise InputError if there are too few right or wrong ones."""
    labels = np.array([region.is_right for region in regions], np.bool_)
    if len(labels) < FEWEST_REGIONS or labels.all() or not labels.any():
        raise InputError(
            f"{len(labels)} regions with a known truth, {labels.sum()} of them right: a calibration needs at least "
            f"{FEWEST_REGIONS}, right ones and wrong ones"
        )
    return labels


def _replaced_calibration(evaluation_set: EvaluationSet, *, presence: bool) -> Calibration | None:
    """Return the calibration of the dataset's scores if its regression is about the same phrases, else None.

    presence: whether presence is fitted, so that the regression is about present phrases alone.
    """
    made_with = evaluation_set.dataset.manifest.get("calibration")
    changes = [setting for setting in evaluation_set.settings if not setting.startswith("regions.calibration=")]
    if made_with is None or not is_own(evaluation_set.dataset.run) or sets_any(changes, ("explain", "regions")):
        return None
    steps = build_steps(evaluation_set.config())
    calibration = steps.calibration
    if steps.calibration_digest != made_with or calibration is None or (calibration.presence is not None) != presence:
        return None
    return calibration


class JudgedRegion(NamedTuple):
    """A region of a phrase that the ground truth knows, by the number of its image."""

    image: int
    evidence: Evidence
    is_right: bool


def _judge_regions(
    config: RegionsConfig,
    rows: RowRecords,
    evaluation_set: EvaluationSet,
    cut: FittedCut | None,
    sizes: UsualSizes | None,
    *,
    has_absent: bool,
) -> list[JudgedRegion]:
    """Return all regions of phrases that the ground truth knows.

    has_absent: whether to include phrases that the ground truth knows to be absent.
    """
    regions = []
    for row, record in rows:
        row_cut = cut
        if cut is not None and sizes is not None:
            usual = sizes.of_other_images(row["id"], (phrase.head for phrase in record.phrases))
            row_cut = cut.model_copy(update={"usual": usual})
        row_regions = RegionsStage(config, fitted_cut=row_cut).regions_of(record)
        for query in evaluation_set.queries(row, record.phrases):
            if query.phrase_index is None or (query.target is None and not has_absent):
                continue
            boxes = () if query.target is None else query.target.boxes_xywh_px
            regions += [
                JudgedRegion(query.image, evidence, is_right(painted.box_xywh_px, boxes))
                for painted, evidence in row_regions[query.phrase_index]
            ]
    return regions


class SizedThing(NamedTuple):
    """A named thing of an image; `log_size` is the mean logarithm of its true boxes' shares of the image."""

    image: int
    head: str
    log_size: float


class UsualSizes:
    """The usual size of the things that each head noun names, see `FittedCut.usual`; from one or more things."""

    def __init__(self, sized_things: Iterable[SizedThing]) -> None:
        self._of_head: dict[str, dict[int, list[float]]] = {}
        things = list(sized_things)
        mean = fmean(thing.log_size for thing in things)
        for thing in things:
            self._of_head.setdefault(thing.head, {}).setdefault(thing.image, []).append(thing.log_size - mean)

    def by_head(self) -> dict[str, float]:
        """Return the sizes for all heads, rounded: more digits would only fill the file."""
        return {head: round(_shrunken_mean(images.values()), 3) for head, images in sorted(self._of_head.items())}

    def of_other_images(self, image: int, heads: Iterable[str]) -> dict[str, float]:
        """Return the sizes for some heads, from images other than this one."""
        return {
            head: _shrunken_mean(sizes for other, sizes in self._of_head.get(head, {}).items() if other != image)
            for head in heads
        }


def _shrunken_mean(images: Iterable[Sequence[float]]) -> float:
    sizes = [size for image_sizes in images for size in image_sizes]
    return math.fsum(sizes) / (len(sizes) + SHRINK)


GRABCUT_IMAGES: Final = 100
"""The most images, evenly spaced, for which GrabCut cuts maps at all shares, in a tenth of a
second for one size. Box recall on other photographs of train (200 in five folds) is +0.006
(-0.005 to 0.016) with 80 images instead of 160, and -0.012 (-0.026 to -0.001) with 53. A fit to
contours instead has -0.009 (-0.032 to 0.015)."""


def fit_cut_to_rows(
    config: RegionsConfig, rows: RowRecords, evaluation_set: EvaluationSet
) -> tuple[FittedCut, UsualSizes]:
    """Fit where maps are cut. Each map is cut at all shares, and the first region of each cut is right or wrong.

    The usual size of a thing comes from other images alone. Raise InputError if no cut is right, or all of them are.
    """
    # A segmenter is prompted with the cut: the best prompt is the best contour.
    refine = "none" if config.refine == "sam" else config.refine
    config = config.model_copy(update={"rule": "fixed", "refine": refine})
    stages = [RegionsStage(config.model_copy(update={"threshold": share})) for share in SHARES]
    maker = stages[0].maker
    step = -(-len(rows) // GRABCUT_IMAGES) if refine == "grabcut" else 1
    things: list[SizedThing] = []
    maps: list[tuple[SizedThing, tuple[str, ...], NDArray[np.uint8]]] = []
    right: list[list[bool]] = []
    for number, (row, record) in enumerate(rows):
        row_surfaces = maker.surfaces_of_phrases(record)
        heads = maker.heads_of(record, maker.groups_of(record))
        is_cut = number % step == 0
        regions_by_share = [stage.regions_of(record) for stage in stages] if is_cut else []
        first_heads = {phrase.text: phrase.head for phrase in reversed(record.phrases)}
        for query in evaluation_set.queries(row, record.phrases):
            index = query.phrase_index
            if query.target is None or index is None or (surface := row_surfaces[index]) is None:
                continue
            boxes = query.target.boxes_xywh_px
            height, width = query.size_hw
            head = first_heads[record.phrases[index].text]
            # A box without an area counts as a pixel.
            log_size = fmean(math.log(max(w * h, 1.0) / (height * width)) for _, _, w, h in boxes)
            things.append(SizedThing(query.image, head, log_size))
            if not is_cut:
                continue
            maps.append((things[-1], heads[index], surface.values.astype(np.uint8)))
            first_regions = [regions[index][:1] for regions in regions_by_share]
            right.append([any(is_right(painted.box_xywh_px, boxes) for painted, _ in first) for first in first_regions])
    if not maps:
        raise InputError("no phrase with a known place to fit regions.rule=fitted to")
    sizes = UsualSizes(things)
    features = []
    for thing, names, levels in maps:
        usual_sizes = sizes.of_other_images(thing.image, names)
        features.append(cut_features(levels, fmean(usual_sizes[name] for name in names)))
    try:
        fit = fit_cut(np.array(features), np.array(right))
    except ValueError as error:
        raise InputError(f"{len(right)} phrases with a known place: {error} to fit regions.rule=fitted to") from error
    return FittedCut(**fit.by_name(CUT_FEATURES), usual=sizes.by_head()), sizes


def fit_cut(features: Floats, right: NDArray[np.bool_]) -> LogisticFit:
    """Return the weights by which most maps are cut so that their region is right.

    The fit maximises the share of right regions if each cut were drawn with the probability
    softmax(worth). This is the expected reward of a policy; unlike a likelihood it gives up
    maps that no cut makes right. L-BFGS starts from zero, in float64, so that the same data
    give the same weights. A bias would change nothing: it is the same for all cuts of a map.

    Args:
        features: (n, cuts, k), of each cut of each map; NaN where nothing lies above a cut.
        right: (n, cuts), whether the region that the cut gives is right.

    Raise ValueError if no cut, or every cut of every map is right.
    """
    import torch  # noqa: PLC0415  it takes seconds to import, and only this function needs it

    is_finite = np.isfinite(features.sum(axis=-1))
    if not right[is_finite].any() or right[is_finite].all():
        raise ValueError("expected right and wrong cuts")
    mean, scale = mean_and_scale(features[is_finite])
    has_cut = is_finite.any(axis=1)
    x = torch.from_numpy(np.where(is_finite[..., None], (features - mean) / scale, 0.0)[has_cut])
    barrier = torch.from_numpy(np.where(is_finite, 0.0, -np.inf)[has_cut])
    reward = torch.from_numpy((right & is_finite).astype(np.float64)[has_cut])
    weight = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        shares = torch.softmax(x @ weight + barrier, dim=1)
        value = RIDGE * (weight @ weight) - (shares * reward).sum(dim=1).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return LogisticFit(bias=0.0, weight=weight.detach().numpy(), mean=mean, scale=scale)
