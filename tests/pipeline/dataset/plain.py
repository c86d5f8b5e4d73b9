"""What searches find, once more in plain Python over the rows: what DuckDB's answers are compared with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phrasebox.pipeline.dataset.selection import Search
from tests.build.datasets import Json

Row = Mapping[str, Any]
Region = Json

CONDITIONS: dict[str, Callable[[Region], bool]] = {
    "w > h": lambda r: r["w"] > r["h"],
    "phrase LIKE '%man%'": lambda r: "man" in r["phrase"],
    "area_share < 0.01 AND area > 50": lambda r: r["area_share"] < 0.01 and r["area"] > 50,
    "caption ILIKE '% beside %' -- side by side": lambda r: " beside " in r["caption"].lower(),
    "similarity\n  BETWEEN 0.2 AND 0.24\n": lambda r: (
        np.float32(0.2) <= r["similarity"] <= np.float32(0.24)
    ),
    "ends_with(sample_id, '7') OR starts_with(file_name, '00001/')": lambda r: (
        r["sample_id"].endswith("7") or r["file_name"].startswith("00001/")
    ),
    "phrase_count <> region_count": lambda r: r["phrase_count"] != r["region_count"],
    "mark = 'good'": lambda r: r["mark"] == "good",
    "score > 2": lambda _: False,
}
"""Conditions and what they mean."""


def marks_of(rows: Iterable[Row]) -> dict[str, str]:
    """Every third sample is marked, and two that are not there."""
    names = [row["sample_id"] for row in rows]
    return {
        **dict.fromkeys(names[::6], "good"),
        **dict.fromkeys(names[3::6], "bad"),
        "gone": "good",
        "it's": "bad",
    }


_FIELDS = (
    "id",
    "phrase",
    "head",
    "score",
    "similarity",
    "presence",
    "area",
    "bbox_of",
    "caption_index",
    "bbox",
    "group",
)


def regions_of(row: Row, marks: Mapping[str, str]) -> list[Region]:
    """The regions of a row with the columns that conditions know, `id`, `bbox` and `group`."""
    of_row = {name: row[name] for name in ("sample_id", "file_name", "width", "height", "phrase_count")}
    of_row |= {"region_count": len(row["annotations"]), "mark": marks.get(row["sample_id"])}
    return [
        {
            **{name: a[name] for name in _FIELDS},
            **dict(zip("xywh", a["bbox"], strict=True)),
            "area_share": a["area"] / (row["width"] * row["height"]),
            "box_share": a["bbox"][2] * a["bbox"][3] / (row["width"] * row["height"]),
            "caption": row["captions"][a["caption_index"]],
            **of_row,
        }
        for a in row["annotations"]
    ]


def status_of(row: Row) -> str:
    """See `phrasebox.pipeline.dataset.selection.Search.status`."""
    if row["error"] is not None:
        return "failed"
    if row["annotations"]:
        return "regions"
    return "no_regions" if row["phrase_count"] else "no_phrases"


@dataclass(frozen=True)
class Hit:
    """A row that a search finds, and its regions that fulfil the conditions."""

    number: int
    row: Row
    regions: list[Region]

    @property
    def best(self) -> float | None:
        """Their highest score."""
        return max((region["score"] for region in self.regions), default=None)


def find(rows: Sequence[Row], marks: Mapping[str, str], search: Search) -> list[Hit]:
    """All that a search finds, in the dataset's order."""
    bounds = (search.score_min, search.score_max, search.area_min, search.area_max)
    picky = any((search.phrase, search.head, search.where, *(bound is not None for bound in bounds)))
    hits = []
    for number, row in enumerate(rows):
        regions = [region for region in regions_of(row, marks) if _fits(region, search)]
        if _row_fits(row, marks.get(row["sample_id"]), search) and (regions or not picky):
            hits.append(Hit(number, row, regions))
    return hits


def _fits(region: Region, search: Search) -> bool:
    return (
        " ".join(search.phrase.casefold().split()) in region["phrase"]
        and (not search.head.strip() or search.head.strip().casefold() == region["head"])
        and _between(region["score"], search.score_min, search.score_max, np.float32)
        and _between(region["area_share"], search.area_min, search.area_max, float)
        and (not search.where or CONDITIONS[search.where](region))
    )


def _row_fits(row: Row, mark: str | None, search: Search) -> bool:
    return (
        _between(len(row["annotations"]), search.regions_min, search.regions_max, int)
        and {"": True, "none": mark is None, "any": mark is not None}.get(search.mark, search.mark == mark)
        and search.status in ("", status_of(row))
        and search.reason in ("", row["error"])
    )


def _between(value: Any, low: Any, high: Any, kind: Callable[[Any], Any]) -> bool:
    return (low is None or value >= kind(low)) and (high is None or value <= kind(high))
