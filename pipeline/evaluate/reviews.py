"""Which regions of a dataset people review, and what their answers say of the whole: `stats --reviews`.

The sample is random, and the same in every process. A region counts once, however many captions
say its phrase. Regions are in the random order of their ids, so that a larger sample begins with
the smaller one, and half of one is a sample of the same kind.

Intervals are Wilson's. Several answers about a region count once, by majority, and those who cannot
say do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC
from functools import cache, cached_property
from itertools import chain, combinations
from statistics import fmean
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.reviews import DatasetRegion, RegionKey, Review, find_regions, read_reviews
from phrasebox.pipeline.dataset.selection import REGION, regions_in
from phrasebox.pipeline.evaluate.estimates import (
    LEVEL,
    THRESHOLDS,
    Estimate,
    Estimates,
    debiased_calibration_error,
)
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.records import GIVEN
from phrasebox.stages.contract.values import Bools, Floats, Integers
from phrasebox.stages.phrases.nouns import noun_lists

PER_BIN: Final = 20  # answers in each bin of the calibration curve

MIN_ANSWERS: Final = 50  # fewer answers say more about chance than about the scores

COLUMNS: Final = tuple(REGION + name for name in ("id", "score", "phrase", "bbox", "bbox_of"))


@dataclass(frozen=True, kw_only=True)
class Population:
    """All regions of a dataset but given boxes, as arrays (n,) in the order of the rows.

    Attributes:
        rows: Number of each region's row.
        ids: Id (a hash) of each region's annotation; of the first one if captions repeat the
            phrase.
        scores: Score of each region.
    """

    rows: Integers
    ids: Integers
    scores: Floats

    def draw(self, count: int, seed: int) -> Integers:
        """Draw at most `count` regions and return their places, so ordered that every beginning is a sample, too."""
        odd = np.uint64(
            (2 * seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
        )  # odd, so that hashes stay random numbers
        return np.argsort(self.ids.astype(np.uint64) * odd, kind="stable")[:count]


def population_of(dataset: Dataset) -> Population:
    """Read the regions of a dataset. Raise InputError if a shard is damaged."""
    columns = [[np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)]]
    first_row = 0
    for table in dataset.tables(COLUMNS, batch_rows=8192):
        regions, owners = regions_in(table)
        is_made = pc.not_equal(regions.field("bbox_of"), GIVEN)
        regions, owners = regions.filter(is_made), owners[is_made.to_numpy(zero_copy_only=False)]
        texts = regions.field("phrase").dictionary_encode().indices
        boxes = regions.field("bbox").flatten()
        keys = np.column_stack([owners, texts.to_numpy(), boxes.to_numpy().reshape(-1, 4)])
        # Captions repeat phrases: a region is the first of its annotations.
        firsts = np.sort(np.unique(keys, axis=0, return_index=True)[1])
        ids, scores = (regions.field(name).to_numpy() for name in ("id", "score"))
        columns.append([first_row + owners[firsts], ids[firsts], scores[firsts].astype(np.float64)])
        first_row += table.num_rows
    rows, ids, scores = map(np.concatenate, zip(*columns, strict=True))
    return Population(rows=rows, ids=ids, scores=scores)


@cache
def kind_of(head: str) -> str:
    """Return the kind of object that a head noun names: a section of `nouns.txt`, or "other"."""
    paths = noun_lists().paths.get(noun_lists().listed_form(head), ())
    return paths[0][0] if paths else "other"


def sample_for_review(population: Population, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Return row number and `id` of at most `count` regions to review; a larger sample begins with a smaller one."""
    places = population.draw(count, seed)
    return list(zip(population.rows[places].tolist(), population.ids[places].tolist(), strict=True))


class LocatedRegions:
    """Regions of a finished dataset by key, and the scores of all of them: what is read from its shards is kept.

    Raise InputError if a shard is damaged.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._by_key: dict[RegionKey, DatasetRegion | None] = {}

    @cached_property
    def population(self) -> Population:
        """All regions."""
        return population_of(self.dataset)

    def find(self, keys: Set[RegionKey]) -> dict[RegionKey, DatasetRegion]:
        """Return the regions with some keys, with score, presence, image_id and head.

        Keys of no region, and of given boxes, are left out.
        """
        if missing := keys - self._by_key.keys():
            fields = ("score", "presence", "image_id", "head", "bbox_of")
            regions = find_regions(self.dataset, missing, fields)
            made = {key: region for key, region in regions.items() if region.annotation["bbox_of"] != GIVEN}
            self._by_key |= {**made, **dict.fromkeys(missing - made.keys())}
        return {key: region for key, region in self._by_key.items() if region is not None and key in keys}


@dataclass(frozen=True, kw_only=True)
class ReviewedRegions:
    """The regions of a dataset that count, (m,), and people's answers about them.

    Attributes:
        regions: The regions.
        answers: "right", "wrong" or "absent" for each region.
        boxes: Where the phrase of each region is: a box that somebody moved, or that of a right
            region; None if nobody knows.
        population_scores: Scores of all regions of the dataset.
        reviews: Reviews of each region, also of regions that count for nobody.
        counts: Numbers of regions with the answer right, wrong, absent and unsure; of regions
            that the dataset does not have (elsewhere); and of lines that cannot be read
            (damaged).
    """

    regions: dict[RegionKey, DatasetRegion]
    answers: NDArray[np.str_]
    boxes: list[Box | None]
    population_scores: Floats
    reviews: list[list[Review]]
    counts: dict[str, int]

    def field(self, name: str) -> NDArray[Any]:
        """Return a field of the annotations: score, presence, image_id or head."""
        return np.array([region.annotation[name] for region in self.regions.values()])

    @property
    def scores(self) -> Floats:
        """The scores of the regions, (m,)."""
        return self.field("score").astype(np.float64)

    @property
    def is_right(self) -> Bools:
        """Whether the regions are right, (m,)."""
        return np.asarray(self.answers == "right", np.bool_)

    @property
    def reviewers(self) -> dict[str, int]:
        """Name -> answers."""
        return dict(
            sorted(Counter(review.reviewer for review in chain.from_iterable(self.reviews)).items())
        )


def read_reviewed_regions(
    dataset: Dataset, since: str = "", located: LocatedRegions | None = None
) -> ReviewedRegions:
    """Read the answers beside a dataset, all or those after `since`. Raise InputError if none counts, or for damage.

    `located` keeps what the shards say for the next call.
    """
    located = located or LocatedRegions(dataset)
    reviews = read_reviews(dataset.path)
    answers = {
        key: answer
        for key, answer in reviews.majority_answers().items()
        if latest_time(reviews.answers[key].values()) > since
    }
    reviewed = located.find(answers.keys())
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
    return ReviewedRegions(
        regions=regions,
        answers=np.array([answers[key] for key in regions], np.str_),
        boxes=[_place_of(key, answers[key], reviews.corrections.get(key)) for key in regions],
        population_scores=located.population.scores,
        reviews=[list(reviews.answers[key].values()) for key in reviewed],
        counts=counts,
    )


def _place_of(key: RegionKey, answer: str, correction: Review | None) -> Box | None:
    """Return where the phrase of a region is, see `ReviewedRegions`."""
    if correction is not None:
        return correction.box_xywh_px
    return key.bbox if answer == "right" else None


def latest_time(reviews: Iterable[Review]) -> str:
    """Return the time of the last answer, in UTC; "" without any."""
    return max((review.time.astimezone(UTC).isoformat() for review in reviews), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRange:
    """Regions with a score from `low` to `high`: their share of all, their mean score, and their precision."""

    low: float
    high: float
    share: float
    score: float | None
    precision: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The share of equal pairs of answers over the `regions` that two or more people answered; None without any."""

    regions: int
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewFigures:
    """What people's answers say of the whole dataset.

    Attributes:
        regions: Number of the dataset's regions.
        counts: Numbers of answers, see `ReviewedRegions`.
        reviewers: Name -> answers.
        agreement: How far people agree.
        precision: Share of regions that are right; n counts answers.
        absent: Share of regions whose phrase is not in the image.
        by_kind: Precision by kind of object.
        thresholds: Regions from several scores on.
        curve: Regions between two scores.
        calibration_error: Error of the scores, without what chance adds; NaN for fewer answers than
            `MIN_ANSWERS`, where the error of exact scores would be far from 0.
    """

    regions: int
    counts: Mapping[str, int]
    reviewers: Mapping[str, int]
    agreement: Agreement
    precision: Estimate
    absent: Estimate
    by_kind: Estimates
    thresholds: Sequence[ScoreRange]
    curve: Sequence[ScoreRange]
    calibration_error: Estimate


def measure_reviews(reviewed: ReviewedRegions) -> ReviewFigures:
    """Return all figures of people's answers."""
    right = reviewed.is_right
    scores = reviewed.scores
    population = reviewed.population_scores
    kinds = np.array([kind_of(head) for head in reviewed.field("head").tolist()])

    def score_range(low: float, high: float) -> ScoreRange:
        inside = (population >= low) & (population <= high)
        return ScoreRange(
            low=low,
            high=high,
            share=float(inside.mean()),
            score=float(population[inside].mean()) if inside.any() else None,
            precision=share_estimate(right[(scores >= low) & (scores <= high)]),
        )

    return ReviewFigures(
        regions=len(population),
        counts=reviewed.counts,
        reviewers=reviewed.reviewers,
        agreement=measure_agreement(
            [[str(review.answer) for review in reviews] for reviews in reviewed.reviews]
        ),
        precision=share_estimate(right),
        absent=share_estimate(reviewed.answers == "absent"),
        by_kind={str(kind): share_estimate(right[kinds == kind]) for kind in np.unique(kinds)},
        thresholds=[score_range(least, 1.0) for least in THRESHOLDS],
        curve=[
            score_range(float(part.min()), float(part.max()))
            for part in (scores[bin_] for bin_ in _bins(scores))
        ],
        calibration_error=Estimate(n=len(right))
        if len(right) < MIN_ANSWERS
        else debiased_calibration_error(scores, right, reviewed.field("image_id")),
    )


def share_estimate(is_hit: Bools) -> Estimate:
    """Return the share of hits (n,) with Wilson's interval."""
    if not is_hit.size:
        return Estimate()
    from scipy.stats import binomtest  # noqa: PLC0415  it takes half a second to import

    interval = binomtest(int(is_hit.sum()), is_hit.size).proportion_ci(LEVEL, "wilson")
    return Estimate(value=float(is_hit.mean()), low=interval.low, high=interval.high, n=is_hit.size)


def _bins(scores: Floats) -> list[Integers]:
    """Return the places of the answers in bins of `PER_BIN`, the lowest scores first."""
    return np.array_split(np.argsort(scores, kind="stable"), max(1, len(scores) // PER_BIN))


def measure_agreement(answers: Iterable[Sequence[str]]) -> Agreement:
    """Return how far people agree; answers: those of all people, for each region."""
    pairs = [list(combinations(group, 2)) for group in answers if len(group) > 1]
    return Agreement(
        regions=len(pairs),
        share=fmean(a == b for group in pairs for a, b in group) if pairs else None,
    )
