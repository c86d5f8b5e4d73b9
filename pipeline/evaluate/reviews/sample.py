"""Which regions of a dataset people review: a sample at random, the same in every process.

A region counts once, however many captions say its phrase. Regions are in the random order of
their ids, so that a larger sample begins with the smaller one, and half of one is a sample of
the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.selection import REGION, regions_in
from stages.contract.values import Floats, Integers
from stages.regions.things import things

COLUMNS: Final = tuple(REGION + name for name in ("id", "score", "head", "phrase", "bbox"))


@dataclass(frozen=True, kw_only=True)
class Population:
    """All regions of a dataset, as arrays (n,) in the order of the rows.

    Attributes:
        rows: Number of each region's row.
        ids: Id (a hash) of each region's annotation; of the first one if captions repeat the
            phrase.
        scores: Score of each region.
        kinds: Kind of the thing that the head noun names, or "other".
        places: Id of an annotation -> place of its region in these arrays.
    """

    rows: Integers
    ids: Integers
    scores: Floats
    kinds: NDArray[np.str_]
    places: Mapping[int, int] = field(default_factory=dict)

    def draw(self, count: int, seed: int) -> Integers:
        """Draw at most `count` regions and return their places, so ordered that every beginning is a sample, too."""
        odd = np.uint64(
            (2 * seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
        )  # odd, so that hashes stay random numbers
        return np.argsort(self.ids.astype(np.uint64) * odd, kind="stable")[:count]


def population_of(dataset: Dataset) -> Population:
    """Read the regions of a dataset. Raise InputError if a shard is damaged."""
    parts = [
        Population(rows=np.zeros(0, int), ids=np.zeros(0, int), scores=np.zeros(0), kinds=np.zeros(0, str))
    ]
    places: dict[int, int] = {}
    row = 0
    count = 0
    for table in dataset.tables(COLUMNS, batch_rows=8192):
        part = _regions_of(table, row)
        places |= {id_: count + place for id_, place in part.places.items()}
        parts.append(part)
        row += table.num_rows
        count += len(part.ids)
    return Population(
        rows=np.concatenate([part.rows for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        places=places,
    )


def _regions_of(table: pa.Table, first_row: int) -> Population:
    """Return the regions of some rows; first_row: number of the first of them."""
    regions, owners = regions_in(table)
    texts = regions.field("phrase").dictionary_encode().indices
    boxes = regions.field("bbox").flatten()
    keys = np.column_stack([owners, texts.to_numpy(), boxes.to_numpy().reshape(-1, 4)])
    # Captions repeat phrases: a region is the first of its annotations.
    _, firsts, region_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    ranks = np.argsort(np.argsort(firsts))
    firsts = np.sort(firsts)
    ids = regions.field("id").to_numpy()
    heads = regions.field("head").dictionary_encode()
    kinds_of_heads = np.array([kind_of(head) for head in heads.dictionary.to_pylist()], np.str_)
    kinds = kinds_of_heads[heads.indices.to_numpy()]
    return Population(
        rows=first_row + owners[firsts],
        ids=ids[firsts],
        scores=regions.field("score").to_numpy().astype(np.float64)[firsts],
        kinds=kinds[firsts],
        places=dict(zip(ids.tolist(), ranks[region_of].tolist(), strict=True)),
    )


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
