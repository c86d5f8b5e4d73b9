"""Which regions of a dataset people review: a sample at random, the same in every process.

A region counts once, however many captions say its phrase. Regions are in the random order of
their ids, so that a larger sample begins with the smaller one, and half of one is a sample of
the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from pipeline.dataset.folder import Dataset
from pipeline.dataset.selection import REGION, regions_in
from stages.contract.values import Floats, Integers
from stages.regions.things import things

COLUMNS: Final = tuple(REGION + name for name in ("id", "score", "phrase", "bbox"))


@dataclass(frozen=True, kw_only=True)
class Population:
    """All regions of a dataset, as arrays (n,) in the order of the rows.

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
