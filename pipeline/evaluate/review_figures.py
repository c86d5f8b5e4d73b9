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
from itertools import chain
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
class ReviewedRegions:
    """The regions of a dataset that count, (m,), and people's answers about them.

    Attributes:
        regions: The regions.
        answers: "right", "wrong" or "absent" for each region.
        kinds: Kind of thing of each region.
        weights: Number of the dataset's regions that each region stands for.
        population_scores: Scores of all regions of the dataset.
        reviews: Reviews of each region, also of regions that count for nobody.
        counts: Numbers of regions with the answer right, wrong, absent and unsure; of regions that the dataset does
            not have (elsewhere); and of lines that cannot be read (damaged).
    """

    regions: dict[RegionKey, DatasetRegion]
    answers: NDArray[np.str_]
    kinds: NDArray[np.str_]
    weights: Floats
    population_scores: Floats
    reviews: list[list[Review]]
    counts: dict[str, int]

    def field(self, name: str) -> NDArray[Any]:
        """Return a field of the annotations: score, presence or image_id."""
        return np.array([region.annotation[name] for region in self.regions.values()])

    @property
    def reviewers(self) -> dict[str, int]:
        """Name -> answers."""
        return dict(sorted(Counter(review.reviewer for review in chain.from_iterable(self.reviews)).items()))


def read_reviewed_regions(dataset: Dataset, since: str = "") -> ReviewedRegions:
    """Read the answers beside a dataset, all or those after `since`. Raise InputError if none counts, or for damage."""
    reviews = read_reviews(dataset.path)
    answers = {
        key: answer
        for key, answer in reviews.majority_answers().items()
        if latest_time(reviews.answers[key].values()) > since
    }
    reviewed = find_regions(dataset, answers.keys(), ("score", "presence", "image_id"))
    totals = Counter(answers[key] for key in reviewed)
    counts: dict[str, int] = {answer: totals[answer] for answer in ("right", "wrong", "absent", "unsure")}
    counts |= {"elsewhere": len(answers) - len(reviewed), "damaged": reviews.unreadable_lines}
    regions = {key: region for key, region in reviewed.items() if answers[key] != "unsure"}
    if not regions:
        summary = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        raise InputError(
            f"{dataset.path} has no {'new ' * bool(since)}answers that count{f' ({summary})' if summary else ''}; "
            f"phrasebox inspect {dataset.path} --review collects them"
        )
    population = population_of(dataset)
    places = np.array([population.places[key.annotation_id] for key in regions], np.int64)
    return ReviewedRegions(
        regions=regions,
        answers=np.array([answers[key] for key in regions], np.str_),
        kinds=population.kinds[places],
        weights=population.weights(places),
        population_scores=population.scores,
        reviews=[list(reviews.answers[key].values()) for key in reviewed],
        counts=counts,
    )


def latest_time(reviews: Iterable[Review]) -> str:
    """Return the time of the last answer, in UTC; "" without any."""
    return max((review.time.astimezone(UTC).isoformat() for review in reviews), default="")


def measure_reviews(reviewed: ReviewedRegions) -> dict[str, Any]:
    """Return all figures as plain values; `precision` and `absent` are {value, low, high, n}, where n counts answers.

    `precision` and `absent` are shares of all regions. `thresholds` (from a score on) and `curve` (between two scores)
    have the share of all regions there, their mean score, and their precision. `agreement` comes from
    `measure_agreement`, `calibration_error` from `score_errors`; `seconds` is the median time of an answer.
    """
    right = reviewed.answers == "right"
    weights = reviewed.weights
    scores = reviewed.field("score").astype(np.float64)
    population = reviewed.population_scores
    seconds = [review.seconds for review in chain.from_iterable(reviewed.reviews) if review.seconds is not None]

    def line(low: float, high: float) -> dict[str, Any]:
        in_line = (scores >= low) & (scores <= high)
        inside = (population >= low) & (population <= high)
        score = float(population[inside].mean()) if inside.any() else None
        precision = weighted_share(right[in_line], weights[in_line]).plain()
        return {"low": low, "high": high, "kept": float(inside.mean()), "score": score, "precision": precision}

    return {
        "regions": len(population),
        "counts": reviewed.counts,
        "reviewers": reviewed.reviewers,
        "seconds": float(np.median(seconds)) if seconds else None,
        "agreement": measure_agreement([[str(review.answer) for review in reviews] for reviews in reviewed.reviews]),
        "precision": weighted_share(right, weights).plain(),
        "absent": weighted_share(reviewed.answers == "absent", weights).plain(),
        "by_kind": {
            str(kind): weighted_share(right[reviewed.kinds == kind], weights[reviewed.kinds == kind]).plain()
            for kind in np.unique(reviewed.kinds)
        },
        "thresholds": [line(least, 1.0) for least in THRESHOLDS],
        "curve": [line(scores[places].min(), scores[places].max()) for places in _bins(scores)],
        "calibration_error": score_errors(scores, right, weights),
    }


def weighted_share(is_hit: Bools, weights: Floats) -> Estimate:
    """Return the weighted share of the answers with `chosen`, and its interval."""
    if not len(weights):
        return Estimate()
    share = float(np.average(is_hit, weights=weights))
    n = float(weights.sum() ** 2 / (weights @ weights))
    return replace(wilson_estimate(share, n), n=len(is_hit))


def _bins(scores: Floats) -> list[NDArray[np.int64]]:
    """Return the places of the answers in bins of `PER_BIN`, the lowest scores first."""
    return np.array_split(np.argsort(scores, kind="stable"), max(1, len(scores) // PER_BIN))


def score_errors(scores: Floats, right: Bools, weights: Floats) -> dict[str, float]:
    """Return the weighted mean distance between score and precision over bins of the score.

    Few answers differ from scores even if these are exact. `by_chance` is the mean error of exact scores with these
    answers, and `debiased` the error without it: the root of the difference of the squares.
    """
    bins = _bins(scores)

    def error(outcomes: NDArray[Any]) -> float:
        gaps = scores - outcomes
        return sum(abs(float(weights[places] @ gaps[places])) for places in bins) / float(weights.sum())

    rng = np.random.default_rng(SEED)
    value = error(right)
    chance = float(np.mean([error(rng.random(len(scores)) < scores) for _ in range(DRAWS)]))
    return {"value": value, "by_chance": chance, "debiased": math.sqrt(max(0.0, value**2 - chance**2))}


def measure_agreement(answers: Iterable[Sequence[str]]) -> dict[str, float | int | None]:
    """Return how far people agree over the `regions` that two or more of them answered.

    `share`: share of equal pairs of answers. `alpha`: Krippendorff's for names (Content Analysis, 2004), 1 if all agree
    and 0 by chance; unlike Cohen's kappa it takes any number of people with any number of answers.
    """
    counts = [Counter(group) for group in answers if len(group) > 1]
    sizes = [count.total() for count in counts]
    equal_pairs = [sum(n * (n - 1) for n in count.values()) for count in counts]
    pairs = [size * (size - 1) for size in sizes]
    differing = sum((n - equal) / (size - 1) for n, equal, size in zip(pairs, equal_pairs, sizes, strict=True))
    totals = sum(counts, Counter[str]())
    by_chance = totals.total() ** 2 - sum(count**2 for count in totals.values())
    return {
        "regions": len(counts),
        "share": sum(equal_pairs) / sum(pairs) if counts else None,
        "alpha": 1 - (totals.total() - 1) * differing / by_chance if by_chance else None,
    }
