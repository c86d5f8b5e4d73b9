"""Which regions of a dataset people review, and how many others each of them stands for.

A region counts once, however many captions say its phrase. The sample is stratified: regions are sorted by score and
cut into `SHARES` strata, which get equally many reviews. Strata of high scores are smaller, because a filter keeps such
regions. Within a stratum rare kinds of things (sections of `stages/regions/things.txt`) are drawn more often. The
draw is sequential Poisson sampling (Ohlsson, Journal of Official Statistics 14, 1998): every region has a fixed random
number, which is divided by how often it is to be drawn, and the lowest come first. So a larger sample begins with the
smaller one, and half of one is a sample of the same kind. Estimates for the dataset weigh each answer by the inverse of
the probability that its region was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.selection import REGION
from pipeline.logistic import Floats
from stages.regions.groups import things

Ints = NDArray[np.int64]

SHARES: Final = (0.25, 0.25, 0.2, 0.15, 0.15)  # of the regions in each stratum, lowest scores first


@dataclass(frozen=True, kw_only=True)
class Population:
    """All regions of a dataset, as arrays (n,) in the order of the rows."""

    rows: Ints  # number of each region's row
    ids: Ints  # hashes: of the first annotation of each, where captions repeat its phrase
    scores: Floats
    kinds: NDArray[np.str_]  # of the thing that the head noun names, or "other"
    places: Mapping[int, int] = field(default_factory=dict)  # of the regions of all annotations, by their ids

    @cached_property
    def strata(self) -> Ints:
        """The number of each region's stratum."""
        place = np.argsort(np.lexsort((self.ids, self.scores))) / max(1, len(self.ids))
        return np.searchsorted(np.cumsum(SHARES)[:-1], place, side="right")

    @cached_property
    def chances(self) -> Floats:
        """The probability of each region to be the first that is drawn from its stratum."""
        _, kinds = np.unique(self.kinds, return_inverse=True)
        often = 1 / np.sqrt(np.bincount(kinds))[kinds]
        return np.asarray(often / np.bincount(self.strata, often, len(SHARES))[self.strata])

    def drawn(self, count: int, seed: int) -> Ints:
        """Return the places of at most `count` regions, in an order of which every beginning is a sample."""
        odd = np.uint64((2 * seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))  # odd, so that hashes stay random numbers
        random = ((self.ids.astype(np.uint64) * odd) >> np.uint64(11)) / float(1 << 53)
        order = np.lexsort((random / self.chances, self.strata))
        sizes = np.bincount(self.strata, minlength=len(SHARES))
        turn = np.empty(len(order), np.int64)  # when it is its turn in its stratum
        turn[order] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[self.strata[order]]
        return np.lexsort((random, turn))[:count]

    def weights(self, places: Ints) -> Floats:
        """Return how many regions each reviewed one stands for, (m,); those of a stratum stand for all of it."""
        weights = np.empty(len(places))
        for stratum in np.unique(self.strata[places]):
            own, whole = self.strata[places] == stratum, self.chances[self.strata == stratum]
            inverse = 1 / _inclusion(self.chances[places[own]], whole, int(own.sum()))
            weights[own] = inverse * len(whole) / inverse.sum()
        return weights


def _inclusion(chances: Floats, whole: Floats, count: int) -> Floats:
    """The probabilities with which a sample of `count` from a `whole` stratum has regions with these chances."""
    times, certain = 0.0, np.zeros(len(whole), np.bool_)
    while not certain.all():
        times = (count - certain.sum()) / whole[~certain].sum()
        if not (more := ~certain & (times * whole >= 1 - 1e-9)).any():
            break
        certain |= more
    return np.minimum(1.0, times * chances) if not certain.all() else np.ones(len(chances))


def population_of(dataset: Dataset) -> Population:
    """Read the regions of a dataset. Raise InputError if a shard is damaged."""
    parts, first, places = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, str))], 0, dict[int, int]()
    for table in dataset.tables([REGION + name for name in ("id", "score", "head", "phrase", "bbox")], batch_rows=8192):
        annotations = table["annotations"].combine_chunks()
        regions, owners = annotations.flatten(), pc.list_parent_indices(annotations).to_numpy()
        texts, boxes = regions.field("phrase").dictionary_encode().indices, regions.field("bbox").flatten()
        each = np.column_stack([owners, texts.to_numpy(), boxes.to_numpy().reshape(-1, 4)])
        _, once, same = np.unique(each, axis=0, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(once)) + sum(len(part[0]) for part in parts)
        ids, once = regions.field("id").to_numpy(), np.sort(once)
        places |= zip(ids.tolist(), rank[same].tolist(), strict=True)
        heads = regions.field("head").dictionary_encode()
        kinds = np.array([kind_of(head) for head in heads.dictionary.to_pylist()], np.str_)[heads.indices.to_numpy()]
        scores = regions.field("score").to_numpy().astype(np.float64)
        parts.append((first + owners[once], ids[once], scores[once], kinds[once]))
        first += table.num_rows
    rows, ids, scores, kinds = map(np.concatenate, zip(*parts, strict=True))
    return Population(rows=rows, ids=ids, scores=scores, kinds=kinds, places=places)


@cache
def kind_of(head: str) -> str:
    """Return the kind of thing that a head noun names: a section of `things.txt`, or "other"."""
    paths = things().paths.get(things().listed_form(head), ())
    return paths[0][0] if paths else "other"


def sample_for_review(dataset: Dataset, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Return number of row and `id` of at most `count` regions to review, in an order that a larger one continues.

    Raise InputError if a shard is damaged.
    """
    population = population_of(dataset)
    places = population.drawn(count, seed)
    return list(zip(population.rows[places].tolist(), population.ids[places].tolist(), strict=True))
