"""The pages of the server (`app.py`) and of a gallery of files: answers of the index and rows of the shards."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from pipeline.dataset.folder import Dataset, NumberedRows, open_dataset, read_marks
from pipeline.dataset.index import Index, statistics
from pipeline.dataset.origin import ImageSource
from pipeline.dataset.reviews import MOST_LETTERS, ReviewLog
from pipeline.dataset.selection import Search, Selection, Selector
from pipeline.pictures import thumbnail
from pipeline.terminal import counted, progress_bar
from pipeline.viewer.sample_view import COLUMNS, SampleView, sample_view
from stages.contract.errors import ROW_ERRORS, ConfigError, RowFault
from stages.contract.schema import DATASET_SCHEMA
from stages.write import LIKELY

GRID_SIDE_PX: Final = 640
FULL_SIDE_PX: Final = 1600

_ARRANGE: Final = frozenset(("sort", "seed", "per_page"))  # Fields that order the samples but filter none

TEMPLATES: Final = Environment(
    loader=PackageLoader("pipeline.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Links:
    """Addresses of pages: those of the server (`app.py`), if it is `live`, or of files in one folder."""

    def __init__(self, *, live: bool) -> None:
        self.live = live

    def page(self, search: Search, page: int) -> str:
        """Return the link to a page of the grid, counted from 1."""
        if not self.live:
            return "index.html" if page == 1 else f"page-{page}.html"
        return _address("/", {**parameters(search), **({"page": str(page)} if page > 1 else {})})

    def sample(self, search: Search, at: int | None, row: int, image_id: int) -> str:
        """Return the link to a sample. `at` is its place in the search's results; None without a search."""
        place = {} if at is None else {"at": str(at)}
        address = _address(f"/sample/{image_id}", {**parameters(search), **place, "row": str(row)})
        return address if self.live else f"sample-{row}.html"

    def image(self, row: int, side_px: int) -> str:
        """Return the link to the image of a row, with a longer side of at most `side_px`."""
        return f"/rows/{row}/image.jpg?side={side_px}" if self.live else f"images/{row}-{side_px}.jpg"

    def stats(self, search: Search) -> str:
        """Return the link to the page of figures."""
        return _address("/stats", parameters(search)) if self.live else "figures.html"

    def static(self, name: str) -> str:
        """Return the link to a file of `static/`."""
        return f"/static/{name}" if self.live else f"static/{name}"


def parameters(search: Search) -> dict[str, str]:
    """Return the query parameters for what differs from the defaults."""
    return {name: str(value) for name, value in search.model_dump(exclude_defaults=True).items()}


def quote_for_shell(text: str) -> str:
    """Quote a text as one word of a shell command; double quotes only enclose what a shell does not expand in them."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _address(path: str, query: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


@dataclass(slots=True, kw_only=True)
class Pages:
    """The pages of one dataset as HTML. A search that is not an SQL condition raises ConfigError.

    Attributes:
        dataset: The dataset.
        images: Its images.
        index: The search over it.
        rows: Its rows by number.
        marks: Mark by sample id.
        log: The reviews of its regions.
        links: The addresses of the pages.
        numbers: The rows of a gallery, in order; None for the rows that a search finds.
    """

    dataset: Dataset
    images: ImageSource
    index: Index
    rows: NumberedRows
    marks: dict[str, str]
    log: ReviewLog
    links: Links
    numbers: Sequence[int] | None = None

    @property
    def note(self) -> str:
        """Two lines for the head of every page: why no image is shown, and what to type; "" if images are shown."""
        if self.dataset.has_images or self.images.refused_root is None:
            return ""
        options = f"{shlex.quote(str(self.dataset.path))} --images {shlex.quote(self.images.refused_root)}"
        return (
            "You did not make this dataset on this machine, and it names a folder outside its own, so its images "
            f"are not shown. If that folder is right, type:\nphrasebox inspect {options}"
        )

    def views(self, search: Search, numbers: Sequence[int]) -> list[SampleView]:
        """Return the views of rows by number."""
        rows = self.rows.rows_at(numbers, COLUMNS)
        hit_ids = None
        if condition := search.region_condition():
            schema = pa.schema([DATASET_SCHEMA.field(name) for name in COLUMNS])
            selector = Selector(Selection(where=condition, marks=self.marks))
            region_lists = selector.choose(pa.Table.from_pylist(rows, schema))["annotations"].to_pylist()
            hit_ids = {region["id"] for regions in region_lists for region in regions}
        corrections = self.log.current().corrections
        return [
            sample_view(row, number, self.marks.get(row["sample_id"]), hit_ids, corrections)
            for number, row in zip(numbers, rows, strict=False)
        ]

    def grid(self, search: Search, page: int) -> str:
        """Render a page of the grid of images, counted from 1."""
        offset = (page - 1) * search.per_page
        samples: int | None
        regions = None
        counts = None
        if self.numbers is not None:
            samples = len(self.numbers)
        elif search == Search() and not self.index.ready:
            samples = self.dataset.manifest.get("counts", {}).get("written")
        else:
            samples, regions = self.index.count(search)
            counts = self.index.count_by_score(search)
        views = self.views(search, self._numbers(search, offset, search.per_page))
        pages = None if samples is None else max(1, -(-samples // search.per_page))
        goes_on = bool(views) if pages is None else page < pages
        places = enumerate(views, offset)
        return self._render(
            "grid.html",
            search,
            shown=[(view, self.links.sample(search, at, view.number, view.row["id"])) for at, view in places],
            samples=samples,
            regions=regions,
            counts=counts,
            first=offset + 1 if views else 0,
            last=offset + len(views),
            page=page,
            pages=pages,
            before=self.links.page(search, page - 1) if page > 1 else "",
            after=self.links.page(search, page + 1) if goes_on else "",
            command=self._command(search),
            problem="",
        )

    def search_problem(self, search: Search, problem: str) -> str:
        """Render the filters as the user typed them, with a problem at the SQL condition and without images."""
        missing = dict.fromkeys(("regions", "counts", "pages", "command"))
        numbers = dict.fromkeys(("samples", "first", "last", "page"), 0)
        return self._render("grid.html", search, shown=[], before="", after="", problem=problem, **missing, **numbers)

    def _numbers(self, search: Search, offset: int, limit: int) -> Sequence[int]:
        if self.numbers is not None:
            return self.numbers[offset : offset + limit]
        if search == Search() and not self.index.ready:  # the first page need not wait for the index
            return list(range(offset, offset + limit))
        return self.index.page(search, offset, limit)

    def sample(self, search: Search, number: int, at: int | None) -> str:
        """Render one sample in full size. `at` is its place in the search's results, for links to its neighbours."""
        (view,) = self.views(search, [number])
        links: dict[int, str] = {}
        if at is not None:
            first = max(0, at - 1)
            numbers = self._numbers(search, first, at + 2 - first)
            rows = self.rows.rows_at(numbers, ["id"])
            for place, (row, values) in enumerate(zip(numbers, rows, strict=False), first):
                links[place] = self.links.sample(search, place, row, values["id"])
        place, page = (0, 1) if at is None else (at, at // search.per_page + 1)
        return self._render(
            "sample.html",
            search,
            view=view,
            before=links.get(place - 1, ""),
            after=links.get(place + 1, ""),
            back=self.links.page(search, page),
        )

    def review(self) -> str:
        """Render the page of review; its script loads everything else from the server."""
        path = shlex.quote(str(self.dataset.path))
        return self._render("review.html", Search(), most_letters=MOST_LETTERS, path=path)

    def stats(self, search: Search) -> str:
        """Render the page of figures."""
        return self._render("stats.html", search, figures=statistics(self.index, search))

    def message(self, title: str, text: str, search: Search | None = None, *, refresh: bool = False) -> str:
        """Render a page with a message. With `refresh`, the browser loads the page again after a second."""
        return self._render("message.html", search or Search(), title=title, text=text, refresh=refresh)

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
            # Regions below it are folded away at first: if scores only rank, none are.
            least_score=LIKELY if self.dataset.manifest.get("calibration") else 0.0,
            name=self.dataset.path.name,
            links=self.links,
            search=search,
            here=template.removesuffix(".html"),
            reasons=sorted(ROW_ERRORS),
            filtered=bool(parameters(search).keys() - _ARRANGE),
            **values,
        )


def open_pages(path: Path, image_root: str | None, *, live: bool) -> Pages:
    """Return the pages of the dataset in a folder. Their index is empty, and the caller closes it. Raise InputError."""
    dataset = open_dataset(path, must_be_finished=False)
    images = ImageSource(dataset, image_root)
    marks = read_marks(dataset.path)
    index = Index(dataset, marks)
    rows = NumberedRows(dataset)
    log = ReviewLog(dataset.path)
    links = Links(live=live)
    return Pages(dataset=dataset, images=images, index=index, rows=rows, marks=marks, log=log, links=links)


def write_gallery(
    path: Path, out: Path, console: Console, search: Search, *, samples: int, image_root: str | None = None
) -> None:
    """Write pages of at most `samples` samples of a search, drawn by its seed, into a new folder.

    The page of figures counts all samples of the search. Images that cannot be loaded are left out and counted. Raise
    InputError if the folder is not a dataset, ConfigError if the condition or the new folder cannot be used.
    """
    search = search.model_copy(update={"sort": "random"})
    pages = open_pages(path, image_root, live=False)

    def write(name: str, text: str) -> None:
        (out / name).write_text(text, encoding="utf-8")

    with closing(pages.index) as index:
        index.check(search)
        _make_folders(out)
        index.build()
        numbers = pages.numbers = index.page(search, 0, samples)
        for page in range(1, max(1, -(-len(numbers) // search.per_page)) + 1):
            write(pages.links.page(search, page), pages.grid(search, page))
        write(pages.links.stats(search), pages.stats(search))
        failures = 0
        with progress_bar(console, "pages", len(numbers)) as advance:
            for at, row in enumerate(numbers):
                write(pages.links.sample(search, at, row, 0), pages.sample(search, row, at))
                failures += not _write_images(pages, row, out)
                advance(at + 1)
    with as_file(files("pipeline.viewer") / "static") as static:
        shutil.copytree(static, out / "static", dirs_exist_ok=True)
    console.print(f"{counted(len(numbers), 'sample')} in {out / 'index.html'}", soft_wrap=True)
    missing_images = (
        f"{failures} images are missing: their rows have an error, or they are not where the run read them "
        "(--images DIR says where they are)"
    )
    if pages.note or failures:
        console.print(pages.note or missing_images, soft_wrap=True)


def _make_folders(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(f"--html: {out} is not empty; give a new folder")
        (out / "images").mkdir()
    except FileExistsError as error:
        raise ConfigError(f"--html: {out} is a file; give a new folder") from error
    except OSError as error:
        raise ConfigError(f"--html: cannot write to {out}: {error.strerror}") from error


def _write_images(pages: Pages, row: int, out: Path) -> bool:
    """Write a row's image in both sizes. Return whether it could be loaded."""
    columns = ["file_name", "error", *(["image"] if pages.dataset.has_images else [])]
    (values,) = pages.rows.rows_at([row], columns)
    if values["error"] is not None:
        return False
    try:
        content = pages.images.load(values)
        for side in (GRID_SIDE_PX, FULL_SIDE_PX):
            (out / pages.links.image(row, side)).write_bytes(thumbnail(content, side, pages.images.limits))
    except RowFault:
        return False
    return True
