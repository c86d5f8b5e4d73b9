"""Which regions of a dataset people review, and how many others each of them stands for.

A stratified sample: the regions in the order of their scores make `SHARES` strata, of which each gets as many reviews.
The highest scores are few and decide what a filter by score keeps, so their strata are smaller. Within a stratum rare
kinds of things (people, animals, clothing, ...: `stages/regions/things.txt`) are drawn more often, by the root of their
share. The draw is sequential Poisson sampling (Ohlsson, Journal of Official Statistics 14, 1998): every region has a
fixed random number, which is divided by how often it is to be drawn, and the lowest come first. So a larger sample
begins with the smaller one, whoever stops early has a sample of the same kind, and rows that are added later change
little. Estimates for the whole dataset weigh each answer by the inverse of the probability that its region was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.selection import REGION
from stages.regions.groups import things

SHARES: Final = (0.25, 0.25, 0.2, 0.15, 0.15)  # of the regions in each stratum, lowest scores first

_COLUMNS: Final = tuple(f"{REGION}{name}" for name in ("id", "score", "head"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewRegion:
    """A region to review: the number of its row in the dataset, and `id` of its annotation."""

    row: int
    id: int


@dataclass(frozen=True, kw_only=True)
class Population:
    """All regions of a dataset, as arrays (n,) in the order of the rows."""

    rows: NDArray[np.int64]  # number of each region's row
    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    kinds: NDArray[np.str_]  # the kind of thing that its head noun names, or "other"

    @property
    def strata(self) -> NDArray[np.int64]:
        """Return the number of each region's stratum, by its place in the order of the scores."""
        place = np.empty(len(self.ids))
        place[np.lexsort((self.ids, self.scores))] = (np.arange(len(self.ids)) + 0.5) / max(1, len(self.ids))
        return np.searchsorted(np.cumsum(SHARES)[:-1], place, side="right")

    @property
    def chances(self) -> NDArray[np.float64]:
        """Return the probability of each region to be the next one that is drawn from its stratum."""
        strata, (_, kinds) = self.strata, np.unique(self.kinds, return_inverse=True)
        size = 1 / np.sqrt(np.bincount(kinds))[kinds]
        chances: NDArray[np.float64] = size / np.bincount(strata, size, len(SHARES))[strata]
        return chances

    def drawn(self, count: int, seed: int) -> NDArray[np.int64]:
        """Return the places of at most `count` regions, in an order of which every beginning is a sample."""
        strata = self.strata
        # Ids are hashes, so that a multiplication by an odd number makes random numbers of them.
        odd = np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) % (1 << 64) | 1)
        random = ((self.ids.astype(np.uint64) * odd) >> np.uint64(11)) / float(1 << 53)
        order = np.lexsort((random / self.chances, strata))
        turn = np.empty(len(order), np.int64)  # the number of each region in its stratum's own order
        first = np.cumsum(np.bincount(strata, minlength=len(SHARES))) - np.bincount(strata, minlength=len(SHARES))
        turn[order] = np.arange(len(order)) - first[strata[order]]
        return np.lexsort((random, turn))[:count]

    def weights(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how many regions each of the reviewed ones stands for, (m,); those of a stratum stand for all of it.

        A stratum without reviewed regions is not stood for.
        """
        strata = self.strata
        own = strata[places]
        reviewed = np.bincount(own, minlength=len(SHARES))
        weights = 1 / np.minimum(1.0, reviewed[own] * self.chances[places])
        whole = np.bincount(strata, minlength=len(SHARES)) / np.maximum(np.bincount(own, weights, len(SHARES)), 1e-12)
        weighed: NDArray[np.float64] = weights * whole[own]
        return weighed


def population_of(dataset: Dataset) -> Population:
    """Read the light columns of all regions. Raise InputError if a shard is damaged."""
    rows, ids, scores, heads, first = [], [], [], [], 0
    for table in dataset.tables(_COLUMNS, batch_rows=8192):
        annotations = table["annotations"].combine_chunks()
        regions = annotations.flatten()
        rows.append(first + pc.list_parent_indices(annotations).to_numpy())
        ids.append(regions.field("id").to_numpy())
        scores.append(regions.field("score").to_numpy().astype(np.float64))
        heads += regions.field("head").to_pylist()
        first += table.num_rows
    kinds = {head: kind_of(head) for head in set(heads)}
    return Population(
        rows=np.concatenate([np.zeros(0, np.int64), *rows]),
        ids=np.concatenate([np.zeros(0, np.int64), *ids]),
        scores=np.concatenate([np.zeros(0), *scores]),
        kinds=np.array([kinds[head] for head in heads], np.str_),
    )


def kind_of(head: str) -> str:
    """Return the kind of thing that a head noun names: a section of `things.txt`, or "other"."""
    paths = things().paths.get(things().known(head), ())
    return paths[0][0] if paths else "other"


def sample_for_review(dataset: Dataset, count: int, seed: int = 0) -> Sequence[ReviewRegion]:
    """Return at most `count` regions in the order in which to review them; see the module.

    The same dataset and seed give the same order, which a larger `count` only continues. Raise InputError if a shard is
    damaged.
    """
    population = population_of(dataset)
    places = population.drawn(count, seed)
    pairs = zip(population.rows[places].tolist(), population.ids[places].tolist(), strict=True)
    return [ReviewRegion(row=row, id=number) for row, number in pairs]
