"""Which regions of a dataset people review, and how many regions each of them stands for.

A region counts once, however many captions say its phrase. The sample is stratified: regions are sorted by score and
cut into `SHARES` strata, which get equally many reviews. Strata of high scores are smaller, because a filter keeps such
regions. Within a stratum rare kinds of things (sections of `stages/regions/things.txt`) are drawn more often. The
draw is sequential Poisson sampling (Ohlsson, Journal of Official Statistics 14, 1998): every region has a fixed random
number, divided by its probability to be drawn, and the lowest come first. So a larger sample begins with the smaller
one, and half of one is a sample of the same kind. Estimates for the dataset weigh each answer by the inverse of the
probability that its region was drawn.
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
    """All regions of a dataset, as arrays (n,) in the order of the rows.

    Attributes:
        rows: Number of each region's row.
        ids: Id (a hash) of each region's annotation; of the first one if captions repeat the phrase.
        scores: Score of each region.
        kinds: Kind of the thing that the head noun names, or "other".
        places: Id of an annotation -> place of its region in these arrays.
    """

    rows: Ints
    ids: Ints
    scores: Floats
    kinds: NDArray[np.str_]
    places: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def strata(self) -> Ints:
        """The number of each region's stratum."""
        place = np.argsort(np.lexsort((self.ids, self.scores))) / max(1, len(self.ids))
        return np.searchsorted(np.cumsum(SHARES)[:-1], place, side="right")

    @cached_property
    def chances(self) -> Floats:
        """The probability of each region to be the first that is drawn from its stratum."""
        _, kinds = np.unique(self.kinds, return_inverse=True)
        frequency = 1 / np.sqrt(np.bincount(kinds))[kinds]
        return np.asarray(frequency / np.bincount(self.strata, frequency, len(SHARES))[self.strata])

    def draw(self, count: int, seed: int) -> Ints:
        """Draw at most `count` regions and return their places, so ordered that every beginning is a sample, too."""
        odd = np.uint64((2 * seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))  # odd, so that hashes stay random numbers
        random = ((self.ids.astype(np.uint64) * odd) >> np.uint64(11)) / float(1 << 53)
        order = np.lexsort((random / self.chances, self.strata))
        sizes = np.bincount(self.strata, minlength=len(SHARES))
        turn = np.empty(len(order), np.int64)  # when it is its turn in its stratum
        turn[order] = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[self.strata[order]]
        return np.lexsort((random, turn))[:count]

    def weights(self, places: Ints) -> Floats:
        """Return the number of regions that each reviewed region stands for, (m,); their sum is the whole stratum."""
        weights = np.empty(len(places))
        for stratum in np.unique(self.strata[places]):
            in_stratum = self.strata[places] == stratum
            stratum_chances = self.chances[self.strata == stratum]
            inverse = 1 / _inclusion_chances(self.chances[places[in_stratum]], stratum_chances, int(in_stratum.sum()))
            weights[in_stratum] = inverse * len(stratum_chances) / inverse.sum()
        return weights


def _inclusion_chances(chances: Floats, stratum: Floats, count: int) -> Floats:
    """Return the probability that a sample of `count` from a stratum has a region, for regions with these chances."""
    scale = 0.0
    is_certain = np.zeros(len(stratum), np.bool_)
    while not is_certain.all():
        scale = (count - is_certain.sum()) / stratum[~is_certain].sum()
        if not (becomes_certain := ~is_certain & (scale * stratum >= 1 - 1e-9)).any():
            break
        is_certain |= becomes_certain
    return np.minimum(1.0, scale * chances) if not is_certain.all() else np.ones(len(chances))


def population_of(dataset: Dataset) -> Population:
    """Read the regions of a dataset. Raise InputError if a shard is damaged."""
    parts = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, str))]
    places: dict[int, int] = {}
    first_row = 0
    for table in dataset.tables([REGION + name for name in ("id", "score", "head", "phrase", "bbox")], batch_rows=8192):
        annotations = table["annotations"].combine_chunks()
        owners = pc.list_parent_indices(annotations).to_numpy()
        regions = annotations.flatten()
        texts = regions.field("phrase").dictionary_encode().indices
        boxes = regions.field("bbox").flatten()
        keys = np.column_stack([owners, texts.to_numpy(), boxes.to_numpy().reshape(-1, 4)])
        # Captions repeat phrases: a region is the first of its annotations.
        _, firsts, region_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        ranks = np.argsort(np.argsort(firsts)) + sum(len(part[0]) for part in parts)
        firsts = np.sort(firsts)
        ids = regions.field("id").to_numpy()
        places |= zip(ids.tolist(), ranks[region_of].tolist(), strict=True)
        heads = regions.field("head").dictionary_encode()
        kinds = np.array([kind_of(head) for head in heads.dictionary.to_pylist()], np.str_)[heads.indices.to_numpy()]
        scores = regions.field("score").to_numpy().astype(np.float64)
        parts.append((first_row + owners[firsts], ids[firsts], scores[firsts], kinds[firsts]))
        first_row += table.num_rows
    rows, ids, scores, kinds = map(np.concatenate, zip(*parts, strict=True))
    return Population(rows=rows, ids=ids, scores=scores, kinds=kinds, places=places)


@cache
def kind_of(head: str) -> str:
    """Return the kind of thing that a head noun names: a section of `things.txt`, or "other"."""
    paths = things().paths.get(things().listed_form(head), ())
    return paths[0][0] if paths else "other"


def sample_for_review(dataset: Dataset, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Return row number and `id` of at most `count` regions to review; a larger sample begins with a smaller one.

    Raise InputError if a shard is damaged.
    """
    population = population_of(dataset)
    places = population.draw(count, seed)
    return list(zip(population.rows[places].tolist(), population.ids[places].tolist(), strict=True))
