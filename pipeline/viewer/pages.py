"""The pages: answers of the index and rows of the shards, rendered by the templates.

The server (`app.py`) and the static gallery (`gallery.py`) use them, and differ in how they name links.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.dataset.folder import Dataset, NumberedRows, open_dataset, read_marks
from pipeline.dataset.index import Index, statistics
from pipeline.dataset.origin import ImageSource
from pipeline.dataset.selection import Search, Selection, Selector
from pipeline.viewer.sample_view import COLUMNS, SampleView, sample_view
from stages.contract.errors import ROW_ERRORS
from stages.contract.schema import DATASET_SCHEMA

LIKELY: Final = 0.5
"""Score from which regions are drawn at first, where scores are probabilities."""

_ARRANGE: Final = frozenset(("sort", "seed", "per_page"))
"""What of a search says how samples are shown, and not which."""

TEMPLATES: Final = Environment(
    loader=PackageLoader("pipeline.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Links:
    """How pages name each other: as addresses of the server (`app.py`). A gallery of files derives its own."""

    live = True
    """Whether a server answers. Then there are filters, marks and heat maps."""

    def page(self, search: Search, page: int) -> str:
        """A page of the grid, counted from 1."""
        return _address("/", {**parameters(search), **({"page": str(page)} if page > 1 else {})})

    def sample(self, search: Search, at: int | None, row: int, image_id: int) -> str:
        """One sample. `at` is its place among those that the search finds, None outside of a search."""
        place = {} if at is None else {"at": str(at)}
        return _address(f"/sample/{image_id}", {**parameters(search), **place, "row": str(row)})

    def image(self, row: int, side_px: int) -> str:
        """The image of a row, with a longer side of at most `side_px`."""
        return f"/rows/{row}/image.jpg?side={side_px}"

    def stats(self, search: Search) -> str:
        """The page of figures."""
        return _address("/stats", parameters(search))

    def static(self, name: str) -> str:
        """A file of `static/`."""
        return f"/static/{name}"


def parameters(search: Search) -> dict[str, str]:
    """What differs from the defaults, as query parameters."""
    return {name: str(value) for name, value in search.model_dump(exclude_defaults=True).items()}


def quoted(text: str) -> str:
    """Text as one word for a shell: in double quotes where it holds single ones and nothing that these let through."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _address(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


@dataclass(slots=True, kw_only=True)
class Pages:
    """Renders the pages of one dataset. A search that is not an SQL condition raises ConfigError."""

    dataset: Dataset
    images: ImageSource
    index: Index
    rows: NumberedRows
    marks: dict[str, str]
    links: Links
    only: Sequence[int] | None = None
    """Rows of a static gallery, in order, instead of those that a search finds."""

    @property
    def note(self) -> str:
        """Two lines above every page: why no image is shown, and what to type."""
        if self.dataset.has_images or self.images.refused_root is None:
            return ""
        options = f"{shlex.quote(str(self.dataset.path))} --images {shlex.quote(self.images.refused_root)}"
        return (
            "You did not make this dataset on this machine, and it names a folder outside its own, so its images "
            f"are not shown. If that folder is right, type:\nphrasebox inspect {options}"
        )

    @property
    def least_score(self) -> float:
        """Score below which regions are folded away at first: where scores only rank, none are."""
        return LIKELY if self.dataset.manifest.get("calibration") else 0.0

    def views(self, search: Search, numbers: Sequence[int]) -> list[SampleView]:
        """Views of rows by number."""
        rows = self.rows.rows_at(numbers, COLUMNS)
        condition = search.region_condition()
        found = None if not condition else self._found(condition, rows)
        return [
            sample_view(row, number, self.marks.get(row["sample_id"]), found)
            for number, row in zip(numbers, rows, strict=False)
        ]

    def _found(self, condition: str, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        schema = pa.schema([DATASET_SCHEMA.field(name) for name in COLUMNS])
        chosen = Selector(Selection(where=condition, marks=self.marks)).choose(pa.Table.from_pylist(list(rows), schema))
        return {region["id"] for regions in chosen["annotations"].to_pylist() for region in regions}

    def grid(self, search: Search, page: int) -> str:
        """A page of the grid of images, counted from 1."""
        offset = (page - 1) * search.per_page
        samples: int | None
        regions: int | None = None
        if self.only is not None:
            samples = len(self.only)
        elif search == Search() and not self.index.ready:
            samples = self.dataset.manifest.get("counts", {}).get("written")
        else:
            count = self.index.count(search)
            samples, regions = count.samples, count.regions
        numbers = self._numbers(search, offset, search.per_page)
        views = self.views(search, numbers)
        pages = None if samples is None else max(1, -(-samples // search.per_page))
        return self._render(
            "grid.html",
            search,
            shown=[
                (one, self.links.sample(search, offset + place, one.number, one.row["id"]))
                for place, one in enumerate(views)
            ],
            samples=samples,
            regions=regions,
            first=offset + 1 if views else 0,
            last=offset + len(views),
            page=page,
            pages=pages,
            before=self.links.page(search, page - 1) if page > 1 else "",
            after=self.links.page(search, page + 1) if (pages is None and views) or (pages and page < pages) else "",
            command=self._command(search),
        )

    def _numbers(self, search: Search, offset: int, limit: int) -> Sequence[int]:
        """Numbers of the rows that are found, in order."""
        if self.only is not None:
            return self.only[offset : offset + limit]
        if search == Search() and not self.index.ready:  # the first page need not wait for the index
            return list(range(offset, offset + limit))
        return self.index.page(search, offset, limit)

    def sample(self, search: Search, number: int, at: int | None) -> str:
        """One sample in full size. `at` is its place in the search, for the links to its neighbours."""
        (one,) = self.views(search, [number])
        before, after = self._neighbours(search, at)
        return self._render(
            "sample.html",
            search,
            one=one,
            before=before,
            after=after,
            back=self.links.page(search, 1 if at is None else at // search.per_page + 1),
        )

    def _neighbours(self, search: Search, at: int | None) -> tuple[str, str]:
        if at is None:
            return "", ""
        first = max(0, at - 1)
        around = self._numbers(search, first, at + 2 - first)
        rows = dict(zip(around, self.rows.rows_at(around, ["id"]), strict=False))
        links = {first + place: number for place, number in enumerate(around) if number in rows}
        return tuple(  # type: ignore[return-value]  # two of them
            self.links.sample(search, place, links[place], rows[links[place]]["id"]) if place in links else ""
            for place in (at - 1, at + 1)
        )

    def stats(self, search: Search) -> str:
        """The page of figures."""
        return self._render("stats.html", search, figures=statistics(self.index, search))

    def message(self, title: str, text: str, search: Search | None = None, *, again: bool = False) -> str:
        """A page with a message. With `again` the browser asks again after a second."""
        return self._render("message.html", search or Search(), title=title, text=text, again=again)

    def _command(self, search: Search) -> tuple[str, str] | None:
        """The command that exports what is shown, before and after the least score, which the page knows.

        None if a condition on regions cannot express it.
        """
        condition = search.condition()
        if not condition or search.status not in ("", "regions"):
            return None
        where = condition if "--" in condition else condition.replace("\n", " ").strip()
        dataset = shlex.quote(str(self.dataset.path))
        return f"phrasebox export {dataset} --format coco --out OUT", f"--where {quoted(where)}"

    def _render(self, template: str, search: Search, **values: Any) -> str:
        return TEMPLATES.get_template(template).render(
            dataset=self.dataset,
            note=self.note,
            least_score=self.least_score,
            name=self.dataset.path.name,
            links=self.links,
            search=search,
            here=template.removesuffix(".html"),
            reasons=sorted(ROW_ERRORS),
            filtered=bool(parameters(search).keys() - _ARRANGE),
            **values,
        )


def open_pages(path: Path, image_root: str | None, links: Links) -> Pages:
    """The pages of the dataset in a folder. Their index is empty, and the caller closes it.

    Raises:
        InputError: The folder is not a dataset, or `image_root` is not a folder.
    """
    dataset = open_dataset(path, finished=False)
    images = ImageSource(dataset, image_root)
    marks = read_marks(dataset.path)
    return Pages(
        dataset=dataset,
        images=images,
        index=Index(dataset, marks),
        rows=NumberedRows(dataset),
        marks=marks,
        links=links,
    )
