"""A choice of regions by score and SQL condition, and a search that makes such conditions.

DuckDB evaluates the condition on the regions of each table, one row for each region, with the
`REGION_COLUMNS`. Most are fields of `annotations` and columns of the row. `area_share` is the
area of the region over that of the image; x, y, w and h are the box in px, and `box_share` is its
area over that of the image; `caption` is the caption with the phrase; `region_count` counts the
image's regions before the choice; `mark` is 'good', 'bad' or null (`phrasebox.pipeline.dataset.folder`).

A condition cannot read anything else: no files, extensions or settings, and no subquery on the
table itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.schema import ANNOTATION, DATASET_SCHEMA
from phrasebox.stages.contract.score_threshold import Threshold
from phrasebox.stages.contract.values import Bools, Integers

_OF_REGION: Final = (
    "phrase",
    "head",
    "score",
    "similarity",
    "presence",
    "area",
    "bbox_of",
    "caption_index",
)
_OF_IMAGE: Final = ("sample_id", "file_name", "width", "height", "phrase_count")

REGION_COLUMNS: Final = pa.schema(
    [
        *((name, ANNOTATION.field(name).type) for name in _OF_REGION),
        ("area_share", pa.float64()),
        ("box_share", pa.float64()),
        *((name, pa.float32()) for name in "xywh"),
        ("caption", pa.string()),
        *((name, DATASET_SCHEMA.field(name).type) for name in _OF_IMAGE),
        ("region_count", pa.int64()),
        ("mark", pa.string()),
    ]
)
"""Columns that a condition may name."""

REGION: Final = "annotations.list.element."  # Prefix of the paths of a region's fields in Parquet

CONDITION_COLUMNS: Final = (
    *_OF_IMAGE,
    "captions",
    *(REGION + name for name in (*_OF_REGION, "bbox")),
)
"""Paths of the columns that a condition may name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A choice of regions.

    Attributes:
        min_score: The least score of a chosen region, 0 .. 1.
        where: SQL condition over `REGION_COLUMNS`; "" chooses all.
        marks: Sample id -> mark, for conditions on `mark`.
        threshold: What the least score keeps, where a precision or a share has chosen it.
    """

    min_score: float = 0.0
    where: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)
    threshold: Threshold | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Paths of the columns that a table must have for this choice."""
        return CONDITION_COLUMNS if self.where.strip() else (f"{REGION}score",)


SIZES: Final = {"up to 10 %": 0.1, "to 30 %": 0.3, "to 60 %": 0.6, "above 60 %": math.inf}
"""Sizes of boxes by their share of the image: name -> the largest `box_share`."""


class Selector:
    """Apply a selection to tables.

    It holds a DuckDB connection, so make one for each process and thread.

    Raise ConfigError if `where` is not an SQL condition over `REGION_COLUMNS`.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        if selection.where.strip():
            self._connection = connect_sandboxed(threads=1)
            # Read but not run: a condition without columns may never end.
            self._filter(
                self._connection.from_arrow(REGION_COLUMNS.empty_table()),
                lambda hits: hits.explain(),
            )

    def choose(self, table: Any) -> Any:
        """Return the table with only the chosen regions in `annotations`; every row stays.

        The table needs `Selection.columns`. Raise ConfigError if the condition fails on a value.
        """
        if self.selection.min_score <= 0 and not self.selection.where.strip():
            return table
        return keep_regions(table, self._mask(table))

    def regions(self, table: Any, schema: Any) -> Any:
        """Return the chosen regions of a table as rows with the columns of a `region_schema`.

        The table needs `CONDITION_COLUMNS`, and the selection a condition.
        """
        regions, _ = regions_in(table)
        flat = self._flat(table).to_arrow_table()
        columns = [
            flat[name] if name in REGION_COLUMNS.names else regions.field(name) for name in schema.names
        ]
        return pa.table(columns, schema=schema).filter(pa.array(self._mask(table)))

    def _mask(self, table: Any) -> Bools:
        """Which regions are chosen: bool (regions,)."""
        scores = regions_in(table)[0].field("score")
        is_chosen: Bools = np.ones(len(scores), np.bool_)
        if self.selection.min_score > 0:
            # In the precision of the column: 0.8 is another number in float32.
            is_chosen = scores.to_numpy() >= np.float32(self.selection.min_score)
        if self.selection.where.strip():
            hits = self._filter(self._flat(table), lambda hits: hits.project("region_number").fetchnumpy())
            is_chosen &= np.isin(np.arange(len(scores)), hits["region_number"])
        return is_chosen

    def _flat(self, table: Any) -> Any:
        """The regions in rows of their own: `REGION_COLUMNS`, and `region_number`."""
        counts = pc.fill_null(pc.list_value_length(table["annotations"]), 0).to_numpy()
        marks = [self.selection.marks.get(sample_id) for sample_id in table["sample_id"].to_pylist()]
        table = table.select(["annotations", "captions", *_OF_IMAGE])
        table = table.append_column("mark", pa.array(marks, pa.string()))
        table = table.append_column("first", pa.array(np.cumsum(counts) - counts))
        return self._connection.from_arrow(table).project(_UNNESTED).project(_FLAT)

    def _filter(self, flat: Any, evaluate: Callable[[Any], Any]) -> Any:
        try:
            # A relation has neither a name that a subquery could use nor room for a second
            # statement.
            return evaluate(flat.filter(self.selection.where))
        except duckdb.Error as error:
            columns = ", ".join(REGION_COLUMNS.names)
            text = first_line(error)
            hint = "; put text in single quotes, as in head = 'dog'" if "Referenced column" in text else ""
            raise ConfigError(
                f"not an SQL condition: {text}{hint} (columns: {columns})", key="where"
            ) from error


def keep_regions(table: Any, is_kept: Bools) -> Any:
    """Return a table of rows with only some of its regions in `annotations`.

    is_kept: Whether each is one of them, in the order of `regions_in`.
    """
    regions, owners = regions_in(table)
    counts = np.bincount(owners[is_kept], minlength=table.num_rows)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    place = table.column_names.index("annotations")
    field = table.schema.field(place)
    lists = pa.ListArray.from_arrays(offsets, regions.filter(pa.array(is_kept)), type=field.type)
    return table.set_column(place, field, lists)


def regions_in(table: Any) -> tuple[Any, Integers]:
    """Return the regions of a table's rows one after the other, as an Arrow array, and the place of each one's row."""
    annotations = table["annotations"].combine_chunks()
    return annotations.flatten(), pc.list_parent_indices(annotations).to_numpy()


_UNNESTED: Final = f"""
    first + unnest(range(len(annotations))) AS region_number, unnest(annotations) AS a, captions,
    len(annotations) AS region_count, mark, {", ".join(_OF_IMAGE)}
"""

_FLAT: Final = f"""
    {", ".join(f"a.{name} AS {name}" for name in _OF_REGION)},
    a.area::DOUBLE / (width::DOUBLE * height) AS area_share,
    a.bbox[3]::DOUBLE * a.bbox[4] / (width::DOUBLE * height) AS box_share,
    a.bbox[1] AS x, a.bbox[2] AS y, a.bbox[3] AS w, a.bbox[4] AS h, captions[a.caption_index + 1] AS caption,
    {", ".join(_OF_IMAGE)}, region_count, mark, region_number
"""


def region_schema(names: Sequence[str]) -> Any:
    """Return the Arrow schema of regions in rows of their own.

    Raise ConfigError for a name that is neither of `REGION_COLUMNS` nor a field of the schema's
    annotation.
    """
    kinds = {field.name: field.type for field in (*ANNOTATION, *REGION_COLUMNS)}
    if unknown := [name for name in names if name not in kinds]:
        raise ConfigError(f"there is no {unknown[0]!r}; one of {', '.join(sorted(kinds))}", key="columns")
    return pa.schema([(name, kinds[name]) for name in names])


def connect_sandboxed(database: str = ":memory:", **config: Any) -> Any:
    """Return a DuckDB connection that opens only its database and loads nothing."""
    connection = duckdb.connect(database, config={"enable_external_access": False, **config})
    connection.execute("SET python_enable_replacements = false; SET lock_configuration = true")
    return connection


def first_line(error: Exception) -> str:
    """Return DuckDB's message without its pointer into the query."""
    return str(error).strip().partition("\n")[0]


Status = Literal[
    "regions", "no_regions", "no_phrases", "failed"
]  # `no_regions`: phrases, but no region for any
Sort = Literal["dataset", "score_high", "score_low", "regions", "random"]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

MOST_PER_PAGE: Final = 96  # Most samples that a page shows


class Search(BaseModel, extra="forbid", frozen=True):
    """Conditions on regions and samples, which must all hold, and the order of the results.

    A sample is found if at least one of its regions fulfils the conditions on regions. Without
    such conditions, samples without regions are found too.
    """

    phrase: str = Field("", description="Part of the phrase; case does not matter.")
    head: str = Field("", description="The head noun.")
    score_min: Share | None = None
    score_max: Share | None = None
    area_min: Share | None = Field(None, description="Least area of the region, as a share of the image.")
    area_max: Share | None = None
    where: str = Field("", description="SQL condition, see `phrasebox.pipeline.dataset.selection`.")
    regions_min: Count | None = Field(None, description="Least number of regions in the image.")
    regions_max: Count | None = None
    mark: Literal["", "good", "bad", "none", "any"] = Field(
        "", description="People's mark; `none`: samples without one."
    )
    status: Literal["", Status] = ""
    reason: str = Field(
        "", description="Reason of the error, a key of `phrasebox.stages.contract.errors.ROW_ERRORS`."
    )
    sort: Sort = Field(
        "dataset",
        description="`score_high` and `score_low`: by the best score of the regions found.",
    )
    seed: Count = Field(0, description="Seed of the random order.")
    per_page: int = Field(24, ge=1, le=MOST_PER_PAGE, description="Samples on a page.")

    def region_condition(self) -> str:
        """Return SQL over the columns of a region; "" if every region counts."""
        parts = []
        if self.phrase.strip():
            parts.append(f"contains(phrase, {literal(' '.join(self.phrase.casefold().split()))})")
        if self.head.strip():
            parts.append(f"head = {literal(self.head.strip().casefold())}")
        parts += _between("score", self.score_min, self.score_max)
        parts += _between("area_share", self.area_min, self.area_max)
        return join_conditions(parts, self.where)

    def sample_condition(self) -> str:
        """Return SQL over `region_count` and `mark`; "" if every sample counts."""
        marks = {"": [], "none": ["mark IS NULL"], "any": ["mark IS NOT NULL"]}
        mark_conditions = marks.get(self.mark, [f"mark = {literal(self.mark)}"])
        return " AND ".join(
            [*_between("region_count", self.regions_min, self.regions_max), *mark_conditions]
        )

    def condition(self) -> str:
        """Return both conditions in one, as `phrasebox export --where` takes it."""
        region = self.region_condition()
        sample = self.sample_condition()
        if region and sample and self.where.strip():
            region = f"(\n{region}\n)"  # on lines of its own, so that a comment at its end does not hide the rest
        return " AND ".join(filter(None, (region, sample)))


def join_conditions(parts: Sequence[str], where: str) -> str:
    """Return SQL conditions and a user's in one; `where` may hold comments."""
    if not where.strip():
        return " AND ".join(parts)
    return " AND ".join([*parts, f"(\n{where.strip()}\n)"]) if parts else where.strip()


def literal(text: str) -> str:
    """Return a text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _between(name: str, low: float | None, high: float | None) -> list[str]:
    return [f"{name} {sign} {edge!r}" for sign, edge in ((">=", low), ("<=", high)) if edge is not None]
