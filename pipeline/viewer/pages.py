"""The pages of the server (`app.py`): answers of the index and rows of the shards, as HTML."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from phrasebox.pipeline.dataset.folder import NumberedRows, open_any_dataset
from phrasebox.pipeline.dataset.index import SCORE_EDGES, Index
from phrasebox.pipeline.dataset.marks import read_marks
from phrasebox.pipeline.dataset.origin import ImageSource
from phrasebox.pipeline.dataset.reviews import MOST_LETTERS, ReviewLog
from phrasebox.pipeline.dataset.selection import Search
from phrasebox.pipeline.dataset.statistics import statistics
from phrasebox.pipeline.viewer.sample_view import COLOURS, COLUMNS, LARGEST_SHARE, SampleView, sample_view
from phrasebox.stages.contract.errors import ROW_ERRORS
from phrasebox.stages.contract.score_threshold import USEFUL_SHARE

NO_FILTER: Final = Search()
_ARRANGE: Final = frozenset(("sort", "seed", "per_page"))  # Fields that order the samples but filter none

TEMPLATES: Final = Environment(
    loader=PackageLoader("phrasebox.pipeline.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def parameters(search: Search) -> dict[str, str]:
    """Return the query parameters for what differs from the defaults."""
    return {name: str(value) for name, value in search.model_dump(exclude_defaults=True).items()}


def quote_for_shell(text: str) -> str:
    """Quote a text as one word of a shell command; double quotes only enclose what a shell does not expand in them."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def grid_address(search: Search, page: int) -> str:
    """Return the address of a page of the grid, counted from 1."""
    return _address("/", {**parameters(search), **({"page": str(page)} if page > 1 else {})})


def sample_address(search: Search, at: int, row: int, image_id: int) -> str:
    """Return the address of a sample; `at` is its place in the search's results."""
    return _address(f"/sample/{image_id}", {**parameters(search), "at": str(at), "row": str(row)})


def stats_address(search: Search) -> str:
    """Return the address of the page of figures."""
    return _address("/stats", parameters(search))


def image_address(row: int, side_px: int) -> str:
    """Return the address of the image of a row, with a longer side of at most `side_px`."""
    return f"/rows/{row}/image.jpg?side={side_px}"


TEMPLATES.globals |= {
    "colours": COLOURS,
    "largest_share": LARGEST_SHARE,
    "grid_address": grid_address,
    "stats_address": stats_address,
    "image_address": image_address,
}


def _address(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


class Pages:
    """The pages of the dataset in a folder as HTML. A search that is not an SQL condition raises ConfigError.

    The index is empty at first, and the caller closes it. Raise InputError if the folder is not a
    dataset.

    Attributes:
        dataset: The dataset.
        images: Its images.
        index: The search over it.
        rows: Its rows by number.
        marks: Mark by sample id.
        log: The reviews of its regions.
    """

    def __init__(self, path: Path, image_root: str | None) -> None:
        self.dataset = open_any_dataset(path)
        self.images = ImageSource(self.dataset, image_root)
        self.marks = read_marks(self.dataset.path)
        self.index = Index(self.dataset, self.marks)
        self.rows = NumberedRows(self.dataset)
        self.log = ReviewLog(self.dataset.path)
        self._start: tuple[float, float] | None = None

    @property
    def note(self) -> str:
        """Two lines for the head of every page: why no image is shown, and what to type; "" if images are shown."""
        if self.dataset.has_images or self.images.refused_root is None:
            return ""
        options = f"{shlex.quote(str(self.dataset.path))} --images {shlex.quote(self.images.refused_root)}"
        return (
            "You did not make this dataset on this machine, so the folder of images that it "
            f"names is not read. If that folder is right, type:\nphrasebox inspect {options}"
        )

    def views(self, search: Search, numbers: Sequence[int]) -> list[SampleView]:
        """Return the views of rows by number."""
        rows = self.rows.rows_at(numbers, COLUMNS)
        hit_ids = self.index.hit_ids(search, numbers) if search.region_condition() else None
        corrections = self.log.current().corrections
        return [
            sample_view(row, number, self.marks.get(row["sample_id"]), hit_ids, corrections)
            for number, row in zip(numbers, rows, strict=False)
        ]

    def grid(self, search: Search, page: int) -> str:
        """Render a page of the grid of images, counted from 1."""
        offset = (page - 1) * search.per_page
        samples: int | None
        counts: list[tuple[int, ...]] | None = None
        if search == NO_FILTER and not self.index.ready:
            samples = self.dataset.manifest.get("counts", {}).get("written")
        else:
            samples = self.index.count(search)
            counts = [self.index.count_by_score(search, share) for share in (math.inf, LARGEST_SHARE)]
        views = self.views(search, self._numbers(search, offset, search.per_page))
        pages = None if samples is None else max(1, -(-samples // search.per_page))
        goes_on = bool(views) if pages is None else page < pages
        places = enumerate(views, offset)
        return self._render(
            "grid.html",
            search,
            shown=[(view, sample_address(search, at, view.number, view.row["id"])) for at, view in places],
            samples=samples,
            counts=counts,
            first=offset + 1 if views else 0,
            last=offset + len(views),
            page=page,
            pages=pages,
            before=grid_address(search, page - 1) if page > 1 else "",
            after=grid_address(search, page + 1) if goes_on else "",
            command=self._command(search),
            start=self.start,
            problem="",
        )

    def search_problem(self, search: Search, problem: str) -> str:
        """Render the filters as the user typed them, with a problem at the SQL condition and without images."""
        missing = dict.fromkeys(("counts", "pages", "command", "start"))
        numbers = dict.fromkeys(("samples", "first", "last", "page"), 0)
        return self._render(
            "grid.html",
            search,
            shown=[],
            before="",
            after="",
            problem=problem,
            **missing,
            **numbers,
        )

    def _numbers(self, search: Search, offset: int, limit: int) -> Sequence[int]:
        if search == NO_FILTER and not self.index.ready:  # the first page need not wait for the index
            return list(range(offset, offset + limit))
        return self.index.page(search, offset, limit)

    def sample(self, search: Search, number: int, at: int | None) -> str:
        """Render one sample in full size.

        `at` is its place in the search's results, for links to its neighbours.
        """
        (view,) = self.views(search, [number])
        links: dict[int, str] = {}
        if at is not None:
            first = max(0, at - 1)
            numbers = self._numbers(search, first, at + 2 - first)
            rows = self.rows.rows_at(numbers, ["id"])
            for place, (row, values) in enumerate(zip(numbers, rows, strict=False), first):
                links[place] = sample_address(search, place, row, values["id"])
        place, page = (0, 1) if at is None else (at, at // search.per_page + 1)
        return self._render(
            "sample.html",
            search,
            view=view,
            before=links.get(place - 1, ""),
            after=links.get(place + 1, ""),
            back=grid_address(search, page),
        )

    def review(self) -> str:
        """Render the page of review; its script loads everything else from the server."""
        path = shlex.quote(str(self.dataset.path))
        return self._render("review.html", NO_FILTER, most_letters=MOST_LETTERS, path=path)

    def stats(self, search: Search) -> str:
        """Render the page of figures."""
        return self._render("stats.html", search, figures=statistics(self.index, search))

    def message(self, title: str, text: str, search: Search = NO_FILTER) -> str:
        """Render a page with a message."""
        return self._render("message.html", search, title=title, text=text, refresh=False)

    def progress(self, search: Search) -> str:
        """Render a page that says how many shards have been read; the browser loads it again after a second."""
        shards = f"{self.index.shards_read:,} of {len(self.dataset.shards):,} have been read"
        text = f"Filters, orders and figures need all shards. {shards}."
        return self._render("message.html", search, title="Reading the shards", text=text, refresh=True)

    @property
    def start(self) -> tuple[float, float] | None:
        """The score at which the slider starts, and the share of the regions that have it or more.

        It is the highest step with at least `USEFUL_SHARE` of the regions up to `LARGEST_SHARE`;
        None without such regions, and until all shards have been read.
        """
        if self._start is None and self.index.ready:
            counts = self.index.count_by_score(NO_FILTER, LARGEST_SHARE)
            steps = zip(SCORE_EDGES, counts, strict=True)
            shares = [
                (edge, count / counts[0])
                for edge, count in steps
                if count and count >= USEFUL_SHARE * counts[0]
            ]
            self._start = max(shares, default=None)
        return self._start

    def _least_score(self, search: Search) -> float:
        """The score below which regions are folded away at first: what a search asks for is not."""
        if search.score_min is not None:
            return max(edge for edge in SCORE_EDGES if edge <= search.score_min)
        return self.start[0] if self.start else 0.0

    def _command(self, search: Search) -> tuple[str, str] | None:
        """The command that exports a search, in two parts around the least score; None if no condition expresses it."""
        if not search.condition() or search.status not in ("", "regions"):
            return None
        condition = search.model_copy(update={"score_min": None}).condition()
        where = condition if "--" in condition else condition.replace("\n", " ").strip()
        dataset = shlex.quote(str(self.dataset.path))
        option = f" --where {quote_for_shell(where)}" if where else ""
        return f"phrasebox export {dataset} --format coco --out OUT", option

    def _render(self, template: str, search: Search, **values: Any) -> str:
        return TEMPLATES.get_template(template).render(
            dataset=self.dataset,
            note=self.note,
            least_score=self._least_score(search),
            name=self.dataset.path.name,
            search=search,
            here=template.removesuffix(".html"),
            reasons=sorted(ROW_ERRORS),
            filtered=bool(parameters(search).keys() - _ARRANGE),
            **values,
        )
