"""Dense numbers for the categories of a choice of regions: torch detectors index by them, CLIPSelf ranks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from stages.dataset.folder import Dataset
from stages.dataset.selection import REGION, Selector
from stages.write.tally import Tally, category_rows

Naming = Literal["phrase", "head"]
"""Whether the categories are the phrases, or only their head nouns: thousands instead of hundred thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A category.

    index  0, 1, 2, ... in the order of the names; formats that count from 1 add it
    head   its most frequent head noun, COCO's supercategory
    count  regions
    """

    index: int
    name: str
    head: str
    count: int


class Categories:
    """Categories by name. Holds one entry a category and none a region."""

    def __init__(self, counts: Counter[tuple[str, str]], naming: Naming) -> None:
        """counts: as `count_categories` counts."""
        rows = sorted((name, head, count) for _, name, head, count in category_rows(Tally(categories=counts)))
        self._naming = naming
        self._rows = rows
        self._index = {name: index for index, (name, _, _) in enumerate(rows)}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Category]:
        for index, (name, head, count) in enumerate(self._rows):
            yield Category(index=index, name=name, head=head, count=count)

    def index_of(self, region: Mapping[str, Any]) -> int:
        """Index of the category of a region of the choice, from its `phrase` and `head`."""
        return self._index[region[self._naming]]

    def name_of(self, region: Mapping[str, Any]) -> str:
        """Name of the category of a region."""
        name: str = region[self._naming]
        return name


def count_categories(dataset: Dataset, selector: Selector, naming: Naming) -> Counter[tuple[str, str]]:
    """(category, head) -> number of chosen regions, from the columns that the choice needs and no others."""
    columns = dict.fromkeys([f"{REGION}phrase", f"{REGION}head", *selector.selection.columns])
    counts: Counter[tuple[str, str]] = Counter()
    for table in dataset.tables(list(columns), batch_rows=4096):
        regions = selector.choose(table)["annotations"].combine_chunks().flatten()
        named = pa.table({"name": regions.field(naming), "head": regions.field("head")})
        grouped = named.group_by(["name", "head"]).aggregate([([], "count_all")]).to_pydict()
        for name, head, count in zip(grouped["name"], grouped["head"], grouped["count_all"], strict=True):
            counts[(name, head)] += count
    return counts
