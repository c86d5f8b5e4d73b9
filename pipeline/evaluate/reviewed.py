"""What people's answers about a sample of regions say of the whole dataset: `phrasebox stats --reviews`.

Each answer weighs as many regions as its region stands for (`review_sample`). Intervals are Wilson's with the effective
number of answers, (sum of weights)^2 / sum of squared weights (Kish, Survey Sampling, 1965). Several answers about a
region count once, by majority, and those who cannot say do not count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.reviews import DatasetRegion, RegionKey, Review, find_regions, read_reviews
from pipeline.evaluate.estimates import SEED, THRESHOLDS, Estimate, wilson_estimate
from pipeline.evaluate.review_sample import population_of
from pipeline.logistic import Floats
from stages.contract.errors import InputError

PER_BIN: Final = 20  # answers in each bin of the calibration curve

DRAWS: Final = 500  # that say how large the calibration error would be by chance

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """The regions of a dataset that count, (m,), and what people said of them.

    `counts` are those of the answers by region: right, wrong, absent, unsure; elsewhere, about regions that the dataset
    does not have; damaged, lines that cannot be read.
    """

    regions: dict[RegionKey, DatasetRegion]
    said: NDArray[np.str_]  # "right", "wrong" or "absent"
    kinds: NDArray[np.str_]
    weights: Floats  # how many regions of the dataset each stands for
    everything: Floats  # the scores of all regions of the dataset
    reviews: list[list[Review]]  # of each region, also of those that nobody can judge
    counts: dict[str, int]

    def field(self, name: str) -> NDArray[Any]:
        """Return a field of the annotations: score, presence or image_id."""
        return np.array([found.annotation[name] for found in self.regions.values()])

    @property
    def reviewers(self) -> dict[str, int]:
        """Name -> answers."""
        return dict(sorted(Counter(review.reviewer for own in self.reviews for review in own).items()))


def reviewed_regions(dataset: Dataset, since: str = "") -> Reviewed:
    """Read the answers beside a dataset, or those `since` a time. Raise InputError if none counts, or for damage."""
    reviews = read_reviews(dataset.path)
    merged = {
        key: said for key, said in reviews.majority_answers().items() if latest(reviews.answers[key].values()) > since
    }
    found = find_regions(dataset, merged.keys(), ("score", "presence", "image_id"))
    said = Counter(merged[key] for key in found)
    counts: dict[str, int] = {answer: said[answer] for answer in ("right", "wrong", "absent", "unsure")}
    counts |= {"elsewhere": len(merged) - len(found), "damaged": reviews.unreadable_lines}
    regions = {key: region for key, region in found.items() if merged[key] != "unsure"}
    if not regions:
        known = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        new, ask = "new " * bool(since), f"phrasebox inspect {dataset.path} --review collects them"
        raise InputError(f"{dataset.path} has no {new}answers that count{f' ({known})' if known else ''}; {ask}")
    population = population_of(dataset)
    places = np.array([population.places[key.annotation_id] for key in regions], np.int64)
    return Reviewed(
        regions=regions,
        said=np.array([merged[key] for key in regions], np.str_),
        kinds=population.kinds[places],
        weights=population.weights(places),
        everything=population.scores,
        reviews=[list(reviews.answers[key].values()) for key in found],
        counts=counts,
    )


def latest(reviews: Iterable[Review]) -> str:
    """Return when the last answer was given, in UTC."""
    return max((review.time.astimezone(UTC).isoformat() for review in reviews), default="")


def review_figures(reviewed: Reviewed) -> dict[str, Any]:
    """Return all figures as plain values; `precision` and `absent` are {value, low, high, n}, where n counts answers.

    The shares are of all regions, and `thresholds` and `curve` of those from a score on or between two scores: the
    share of all regions there, their mean score, and their precision. `agreement` is that of `agreement`,
    `calibration_error` that of `calibration_of`; `seconds`, the median of an answer.
    """
    right, weights, scores = reviewed.said == "right", reviewed.weights, reviewed.field("score").astype(np.float64)
    everything = reviewed.everything
    seconds = [review.seconds for own in reviewed.reviews for review in own if review.seconds is not None]

    def line(low: float, high: float) -> dict[str, Any]:
        own, inside = (scores >= low) & (scores <= high), (everything >= low) & (everything <= high)
        score = float(everything[inside].mean()) if inside.any() else None
        precision = share_of(right[own], weights[own]).plain()
        return {"low": low, "high": high, "kept": float(inside.mean()), "score": score, "precision": precision}

    return {
        "regions": len(everything),
        "counts": reviewed.counts,
        "reviewers": reviewed.reviewers,
        "seconds": float(np.median(seconds)) if seconds else None,
        "agreement": agreement([[str(review.answer) for review in own] for own in reviewed.reviews]),
        "precision": share_of(right, weights).plain(),
        "absent": share_of(reviewed.said == "absent", weights).plain(),
        "by_kind": {
            str(kind): share_of(right[own], weights[own]).plain()
            for kind in np.unique(reviewed.kinds)
            for own in [reviewed.kinds == kind]
        },
        "thresholds": [line(least, 1.0) for least in THRESHOLDS],
        "curve": [line(scores[own].min(), scores[own].max()) for own in _bins(scores)],
        "calibration_error": calibration_of(scores, right, weights),
    }


def share_of(chosen: Bools, weights: Floats) -> Estimate:
    """Return the weighted share of the chosen answers with its interval."""
    if not len(weights):
        return Estimate()
    share, n = float(np.average(chosen, weights=weights)), float(weights.sum() ** 2 / (weights @ weights))
    return replace(wilson_estimate(share, n), n=len(chosen))


def _bins(scores: Floats) -> list[NDArray[np.int64]]:
    """The places of the answers in bins of `PER_BIN`, the lowest scores first."""
    return np.array_split(np.argsort(scores, kind="stable"), max(1, len(scores) // PER_BIN))


def calibration_of(scores: Floats, right: Bools, weights: Floats) -> dict[str, float]:
    """Return the weighted mean distance between score and precision over bins of the score.

    Few answers differ from scores even if these are exact. `by_chance` is the mean error of exact scores with these
    answers, and `debiased` the error without it: the root of the difference of the squares.
    """
    bins = _bins(scores)

    def error(outcomes: NDArray[Any]) -> float:
        return sum(abs(float(weights[own] @ (scores[own] - outcomes[own]))) for own in bins) / float(weights.sum())

    rng = np.random.default_rng(SEED)
    value, chance = error(right), float(np.mean([error(rng.random(len(scores)) < scores) for _ in range(DRAWS)]))
    return {"value": value, "by_chance": chance, "debiased": math.sqrt(max(0.0, value**2 - chance**2))}


def agreement(answers: Iterable[Sequence[str]]) -> dict[str, float | int | None]:
    """Return how far people agree over the `regions` that two or more of them answered.

    `share`: of the pairs of answers that are the same. `alpha`: Krippendorff's for names (Content Analysis, 2004), 1
    where all agree and 0 by chance; unlike Cohen's kappa it takes any number of people, who answered some regions each.
    """
    several = [Counter(own) for own in answers if len(own) > 1]
    totals = sum(several, Counter[str]())
    pairs = [(own.total() * (own.total() - 1), sum(n * (n - 1) for n in own.values()), own.total()) for own in several]
    differing = sum((both - same) / (size - 1) for both, same, size in pairs)
    by_chance = totals.total() ** 2 - sum(count**2 for count in totals.values())
    return {
        "regions": len(several),
        "share": sum(same for _, same, _ in pairs) / sum(both for both, *_ in pairs) if pairs else None,
        "alpha": 1 - (totals.total() - 1) * differing / by_chance if by_chance else None,
    }
