"""What the pages show: answers of the index and rows of the shards, rendered by the templates.

Used by the server (`app.py`) and by the static gallery (`gallery.py`), which differ in how they name links.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.viewer.cards import COLUMNS, Card, card
from stages.contract.errors import ROW_ERRORS
from stages.contract.schema import DATASET_SCHEMA
from stages.dataset.folder import Dataset, NumberedRows
from stages.dataset.image_source import ImageSource
from stages.dataset.index import Index
from stages.dataset.search import Search
from stages.dataset.selection import Selection, Selector
from stages.dataset.statistics import statistics

PAGE_SAMPLES: Final = 24

TEMPLATES: Final = Environment(
    loader=PackageLoader("pipeline.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Links(Protocol):
    """How pages name each other: as a server's addresses, or as files."""

    live: bool
    """Whether a server answers: then there are filters, marks and heat maps."""

    def page(self, search: Search, page: int) -> str:
        """The grid."""
        ...

    def sample(self, search: Search, at: int | None, row: int, image_id: int) -> str:
        """One sample; at: its place among those found, None outside of a search."""
        ...

    def image(self, row: int, side_px: int) -> str:
        """Its picture, at most so large."""
        ...

    def stats(self, search: Search) -> str:
        """The page of figures."""
        ...

    def static(self, name: str) -> str:
        """A file of `static/`."""
        ...


def parameters(search: Search) -> dict[str, str]:
    """What differs from the defaults, as query parameters."""
    return {name: str(value) for name, value in search.model_dump(exclude_defaults=True).items()}


class ServerLinks:
    """Addresses of `app.py`."""

    live = True

    def page(self, search: Search, page: int) -> str:
        """See `Links`."""
        return _address("/", {**parameters(search), **({"page": str(page)} if page > 1 else {})})

    def sample(self, search: Search, at: int | None, row: int, image_id: int) -> str:
        """See `Links`."""
        place = {} if at is None else {"at": str(at)}
        return _address(f"/sample/{image_id}", {**parameters(search), **place, "row": str(row)})

    def image(self, row: int, side_px: int) -> str:
        """See `Links`."""
        return f"/rows/{row}/image.jpg?side={side_px}"

    def stats(self, search: Search) -> str:
        """See `Links`."""
        return _address("/stats", parameters(search))

    def static(self, name: str) -> str:
        """See `Links`."""
        return f"/static/{name}"


def _address(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def note_on_images(images: ImageSource, dataset: Dataset) -> str:
    """Why the images are not shown, and what to type; "" if they are, or the reason stands with each of them."""
    if dataset.has_images or images.refused_root is None:
        return ""
    command = f"phrasebox inspect {shlex.quote(str(dataset.path))} --image-root {shlex.quote(images.refused_root)}"
    return (
        "You have not made this dataset on this machine, and it names a folder outside of its own, so its images are "
        f"not shown. If that folder is right: {command}"
    )


@dataclass(slots=True, kw_only=True)
class Pages:
    """Renders the pages of one dataset. Raises ConfigError for a search that is no SQL condition."""

    dataset: Dataset
    index: Index
    rows: NumberedRows
    marks: dict[str, str]
    links: Links
    only: Sequence[int] | None = None
    """Rows of a static gallery, in order, instead of those that a search finds."""
    note: str = ""
    """A line above every page."""

    def cards(self, search: Search, numbers: Sequence[int], *, lines: int = 26) -> list[Card]:
        """Cards of rows by number. lines: see `cards.card`."""
        rows = self.rows.rows_at(numbers, COLUMNS)
        condition = search.region_condition()
        found = None if not condition else self._found(condition, rows)
        return [
            card(row, number, self.marks.get(row["sample_id"]), found, lines=lines)
            for number, row in zip(numbers, rows, strict=False)
        ]

    def _found(self, condition: str, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        schema = pa.schema([DATASET_SCHEMA.field(name) for name in COLUMNS])
        chosen = Selector(Selection(where=condition, marks=self.marks)).choose(pa.Table.from_pylist(list(rows), schema))
        return {region["id"] for regions in chosen["annotations"].to_pylist() for region in regions}

    def grid(self, search: Search, page: int) -> str:
        """The page of pictures; `page` counts from 1."""
        offset = (page - 1) * PAGE_SAMPLES
        samples: int | None
        regions: int | None = None
        if self.only is not None:
            samples = len(self.only)
        elif search == Search() and not self.index.ready:
            samples = self.dataset.manifest.get("counts", {}).get("written")
        else:
            count = self.index.count(search)
            samples, regions = count.samples, count.regions
        numbers = self._numbers(search, offset, PAGE_SAMPLES)
        cards = self.cards(search, numbers)
        pages = None if samples is None else max(1, -(-samples // PAGE_SAMPLES))
        return self._render(
            "grid.html",
            search,
            cards=[
                (one, self.links.sample(search, offset + place, one.row, one.id)) for place, one in enumerate(cards)
            ],
            samples=samples,
            regions=regions,
            first=offset + 1 if cards else 0,
            last=offset + len(cards),
            page=page,
            pages=pages,
            before=self.links.page(search, page - 1) if page > 1 else "",
            after=self.links.page(search, page + 1) if (pages is None and cards) or (pages and page < pages) else "",
            command=self._command(search),
        )

    def _numbers(self, search: Search, offset: int, limit: int) -> Sequence[int]:
        """Of the rows found, in order."""
        if self.only is not None:
            return self.only[offset : offset + limit]
        if search == Search() and not self.index.ready:  # the first page need not wait for the index
            return list(range(offset, offset + limit))
        return self.index.page(search, offset, limit)

    def sample(self, search: Search, number: int, at: int | None) -> str:
        """One sample in full size. at: its place in the search, for the neighbours' links."""
        (one,) = self.cards(search, [number], lines=36)
        before, after = self._neighbours(search, at)
        return self._render(
            "sample.html",
            search,
            one=one,
            before=before,
            after=after,
            back=self.links.page(search, 1 if at is None else at // PAGE_SAMPLES + 1),
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
        """A page that says one thing. again: it asks again after a second."""
        return self._render("message.html", search or Search(), title=title, text=text, again=again)

    def _command(self, search: Search) -> str:
        """The command that exports what is shown; "" where regions cannot say it."""
        condition = search.condition()
        if not condition or search.status not in ("", "regions"):
            return ""
        where = condition if "--" in condition else condition.replace("\n", " ").strip()
        dataset = shlex.quote(str(self.dataset.path))
        return f"phrasebox export {dataset} --format coco --out OUT --where {shlex.quote(where)}"

    def _render(self, template: str, search: Search, **values: Any) -> str:
        return TEMPLATES.get_template(template).render(
            dataset=self.dataset,
            note=self.note,
            name=self.dataset.path.name,
            links=self.links,
            search=search,
            here=template.removesuffix(".html"),
            reasons=sorted(ROW_ERRORS),
            filtered=bool(parameters(search)),
            **values,
        )
