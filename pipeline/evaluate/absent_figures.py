"""Whether absent phrases are recognised as absent: figures of pairs of image and phrase.

Four values are tested as detectors of presence: the `presence` of the phrase by itself;
`presence_of_group`, as a run shares it among the texts of an object (for an absent phrase, those
of its own image); the cosine; and its z-score over the images.

The other figures are those of SA-Co (facebookresearch/sam3, `sam3/eval/cgf1_eval.py`), on pairs
of image and phrase:

    il_mcc        Matthews' correlation of "the phrase is answered" and "the phrase is there"
    positive_f1   micro F1 of the answers' boxes for phrases that are there, averaged over IoU 0.50, 0.55 .. 0.95
    cgf1          their product

`saco` is that evaluator's own rule: regions with a score of `MIN_ANSWER` or more are the
answer. A presence of `MIN_ANSWER` or more makes all regions of a phrase the answer. The cosine
and its z-score know nothing of presence: their threshold is the one with the best correlation
on these very pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from phrasebox.pipeline.evaluate.absent import HARDER, is_coloured
from phrasebox.pipeline.evaluate.estimates import (
    Estimate,
    Estimates,
    debiased_calibration_error,
    presence_area,
    sum_estimate,
)
from phrasebox.pipeline.evaluate.matching import Answer
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.stages.contract.geometry import Box, box_iou
from phrasebox.stages.contract.values import Bools, Floats

MIN_ANSWER: Final = 0.5  # the least presence, or score, of an answer; 0.5 as in SAM 3's evaluator

THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Json of `regions.min_presence` for which the figures say how much is kept."""

IOUS: Final = tuple(0.5 + 0.05 * step for step in range(10))

WAYS: Final = ("presence", "presence_of_group", "z_score", "similarity")
"""What separates phrases that are there from absent ones: fields of `Pair`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A phrase and an image.

    Attributes:
        image: Number of the image.
        text: Text of the phrase.
        kind: "there", "random", or one of `HARDER`.
        similarity: Cosine of both.
        z_score: Deviations of the cosine from the phrase's mean over all images; NaN until all
            images are computed.
        presence: Probability that the phrase is in the image; None if it is not known.
        presence_of_group: The same, as a run shares it among the texts of an object.
        answers: Regions of a "there" or "random" phrase, whatever its presence; empty for other
            kinds.
        is_written: Whether a run would write the regions: presence reaches `regions.min_presence`.
        boxes_xywh_px: True boxes of the phrase.
        may_be_synonym: Whether an absent phrase may name an object that the captions call by
            another noun.
    """

    image: int
    text: str
    kind: str
    similarity: float
    z_score: float = math.nan
    presence: float | None
    presence_of_group: float | None
    answers: tuple[Answer, ...] = ()
    is_written: bool = True
    boxes_xywh_px: tuple[Box, ...] = ()
    may_be_synonym: bool = False

    @property
    def is_present(self) -> bool:
        """Whether the phrase is in the image."""
        return self.kind == "there"


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceShares:
    """The shares of present and of absent phrases with a presence of `presence` or more."""

    presence: float
    present: float
    absent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentFigures:
    """The figures of absent phrases.

    Attributes:
        pairs: Numbers of pairs by kind.
        by: For each of `WAYS`: ROC areas by kind of absent phrase (`auc`,
            `auc_without_synonyms`, and those of `HARDER`; None without phrases of both kinds),
            `il_mcc`, `positive_f1` and `cgf1`. None where the value of the way is not known.
        saco: `il_mcc`, `positive_f1` and `cgf1` by the evaluator's own rule.
        ece: Calibration error of all regions.
        ece_there: Calibration error of the regions of present phrases.
        shares: Shares for other values of `regions.min_presence`; None where presence is not known.
    """

    pairs: Mapping[str, int]
    by: Mapping[str, Mapping[str, Estimate | None] | None]
    saco: Estimates
    ece: Estimate
    ece_there: Estimate
    shares: Sequence[PresenceShares] | None


def absent_figures(pairs: Sequence[Pair]) -> AbsentFigures:
    """Return all figures of pairs."""
    sample = [pair for pair in pairs if pair.kind in ("there", "random")]
    subsets = {
        "auc": sample,
        "auc_without_synonyms": [pair for pair in sample if not pair.may_be_synonym],
        **{
            f"auc_{kind}": [pair for pair in pairs if pair.is_present or pair.kind == kind]
            for kind in HARDER
        },
    }
    subsets["auc_attribute"] = [pair for pair in subsets["auc_attribute"] if is_coloured(pair.text)]
    answers_by_score = [
        [answer for answer in pair.answers if answer.score >= MIN_ANSWER] for pair in sample
    ]
    return AbsentFigures(
        pairs={
            **{kind: sum(pair.kind == kind for pair in pairs) for kind in ("there", "random", *HARDER)},
            "without_synonyms": sum(not pair.is_present for pair in subsets["auc_without_synonyms"]),
        },
        by={way: _way_figures(way, sample, subsets) for way in WAYS},
        saco=_saco_figures(sample, answers_by_score),
        ece=_score_error(sample),
        ece_there=_score_error([pair for pair in sample if pair.is_present]),
        shares=_written_shares(sample),
    )


def _way_figures(
    way: str, sample: Sequence[Pair], subsets: Mapping[str, Sequence[Pair]]
) -> dict[str, Estimate | None] | None:
    values = _values(sample, way)
    if values is None:
        return None
    threshold = MIN_ANSWER if way.startswith("presence") else _best_threshold(values, _labels(sample))
    answers = [
        pair.answers if value >= threshold else () for pair, value in zip(sample, values, strict=True)
    ]
    return {
        **{name: _area(subset, way) for name, subset in subsets.items()},
        **_saco_figures(sample, answers),
    }


def _written_shares(pairs: Sequence[Pair]) -> list[PresenceShares] | None:
    """Return the shares of present and absent phrases that each of `THRESHOLDS` keeps; None without presence."""
    presence = _values(pairs, "presence_of_group")
    if presence is None:
        return None
    is_above = presence[:, None] >= np.array(THRESHOLDS)
    is_present = _labels(pairs)
    shares = (is_above[rows].sum(axis=0) / max(1, int(rows.sum())) for rows in (is_present, ~is_present))
    return [
        PresenceShares(presence=threshold, present=float(present), absent=float(absent))
        for threshold, present, absent in zip(THRESHOLDS, *shares, strict=True)
    ]


def _area(pairs: Sequence[Pair], way: str) -> Estimate | None:
    values = _values(pairs, way)
    is_present = _labels(pairs)
    if values is None or is_present.all() or not is_present.any():
        return None
    return presence_area(values, is_present, np.array([pair.image for pair in pairs], np.int64))


def _labels(pairs: Sequence[Pair]) -> Bools:
    """Return whether each phrase is in its image, (pairs,)."""
    return np.array([pair.is_present for pair in pairs], np.bool_)


def _values(pairs: Sequence[Pair], way: str) -> Floats | None:
    """Return the values of all pairs by a way; None without pairs, or if a value is not known."""
    values = [value for pair in pairs if (value := getattr(pair, way)) is not None]
    return np.array(values, np.float64) if values and len(values) == len(pairs) else None


def _saco_figures(pairs: Sequence[Pair], answers: Sequence[Sequence[Answer]]) -> Estimates:
    """Return `il_mcc`, `positive_f1` and `cgf1` of pairs and the regions that answer them."""
    rows = []
    for pair, regions in zip(pairs, answers, strict=True):
        is_answered = bool(regions)
        boxes = pair.is_present * (len(regions) + len(pair.boxes_xywh_px))
        counts = (pair.is_present and is_answered, pair.is_present, is_answered, 1, boxes)
        rows.append([*counts, *_count_hits(pair, regions)])
    values = np.array(rows, np.float64)
    images = np.array([pair.image for pair in pairs], np.int64)

    def f1(totals: Floats) -> float:
        return float((2 * totals[5:] / totals[4]).mean()) if totals[4] > 0 else math.nan

    figures = {"il_mcc": _mcc, "positive_f1": f1, "cgf1": lambda totals: _mcc(totals) * f1(totals)}
    return {name: sum_estimate(figure, values, images) for name, figure in figures.items()}


def _mcc(totals: Floats) -> float:
    """Return Matthews' correlation from the numbers of phrases: present and answered, present, answered, all."""
    hits, present, answers, n = totals[:4].tolist()
    product = answers * present * (n - present) * (n - answers)
    return (hits * n - present * answers) / math.sqrt(product) if product > 0 else 0.0


def _count_hits(pair: Pair, answers: Sequence[Answer]) -> list[int]:
    """Count the answers that hit a box, for each of `IOUS`. The assignment of boxes has the highest sum of IoU."""
    if not (answers and pair.boxes_xywh_px):
        return [0] * len(IOUS)
    ious = np.array(
        [[box_iou(answer.box_xywh_px, box) for box in pair.boxes_xywh_px] for answer in answers]
    )
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415  it takes half a second to import

    hits = ious[linear_sum_assignment(-ious)]
    return [int((hits >= least).sum()) for least in IOUS]


def _best_threshold(values: Floats, is_present: Bools) -> float:
    """Return the value with the best correlation, if phrases are answered from it on."""
    candidates = np.unique(np.quantile(values, np.linspace(0, 1, 101)))
    correlations = []
    for threshold in candidates:
        is_answered = values >= threshold
        counts = [(is_present & is_answered).sum(), is_present.sum(), is_answered.sum(), values.size]
        correlations.append(_mcc(np.array(counts, np.float64)))
    return float(candidates[np.argmax(correlations)])


def _score_error(pairs: Sequence[Pair]) -> Estimate:
    """Return the calibration error of the scores of the regions that a run would write."""
    regions = [(pair, answer) for pair in pairs if pair.is_written for answer in pair.answers]
    scores = np.array([answer.score for _, answer in regions], np.float64)
    right = np.array(
        [is_right(answer.box_xywh_px, pair.boxes_xywh_px) for pair, answer in regions], np.bool_
    )
    images = np.array([pair.image for pair, _ in regions], np.int64)
    return debiased_calibration_error(scores, right, images)
