"""`phrasebox inspect --html`: the same pages as files, for a sample of a dataset."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from pipeline.output.origin import is_own
from pipeline.viewer.pages import PAGE_SAMPLES, Pages, note_on_images
from stages.contract.errors import ConfigError, RowFault
from stages.dataset.folder import NumberedRows, open_dataset, read_marks
from stages.dataset.image_source import ImageSource
from stages.dataset.index import Index
from stages.dataset.search import Search
from stages.images.pictures import thumbnail

GRID_SIDE_PX: Final = 640
FULL_SIDE_PX: Final = 1600


class FileLinks:
    """Names of files in one folder."""

    live = False

    def page(self, search: Search, page: int) -> str:
        """See `Links`."""
        return "index.html" if page == 1 else f"page-{page}.html"

    def sample(self, search: Search, at: int | None, row: int, image_id: int) -> str:
        """See `Links`."""
        return f"sample-{row}.html"

    def image(self, row: int, side_px: int) -> str:
        """See `Links`."""
        return f"images/{row}-{side_px}.jpg"

    def stats(self, search: Search) -> str:
        """See `Links`."""
        return "figures.html"

    def static(self, name: str) -> str:
        """See `Links`."""
        return f"static/{name}"


def write_gallery(
    path: Path,
    out: Path,
    console: Console,
    search: Search,
    *,
    samples: int,
    image_root: str | None = None,
) -> None:
    """Write pages of at most `samples` of the samples that a search finds, drawn at random, into a new folder.

    The figures are those of all that it finds. Pictures that cannot be had are left out and counted.

    Raises InputError for a folder that is no dataset, ConfigError for conditions and folders that cannot be used.
    """
    dataset = open_dataset(path, finished=False)
    search = search.model_copy(update={"sort": "random"})
    images = ImageSource(dataset, image_root, confined=not is_own(dataset.run))
    marks = read_marks(dataset.path)
    with closing(Index(dataset, marks)) as index:
        index.check(search)
        _make_folders(out)
        index.build()
        numbers = index.page(search, 0, samples)
        pages = Pages(
            dataset=dataset, index=index, rows=NumberedRows(dataset), marks=marks, links=FileLinks(), only=numbers
        )
        pages.note = note_on_images(images, dataset)
        for page in range(1, max(1, -(-len(numbers) // PAGE_SAMPLES)) + 1):
            _write(out / pages.links.page(search, page), pages.grid(search, page))
        _write(out / pages.links.stats(search), pages.stats(search))
        missing = 0
        for at, row in track(
            list(enumerate(numbers)), "pages", console=console, transient=True, disable=not console.is_terminal
        ):
            _write(out / pages.links.sample(search, at, row, 0), pages.sample(search, row, at))
            missing += not _write_pictures(pages, images, row, out)
    with as_file(files("pipeline.viewer") / "static") as static:
        shutil.copytree(static, out / "static", dirs_exist_ok=True)
    console.print(f"{len(numbers)} samples in {out / 'index.html'}", soft_wrap=True)
    if pages.note:
        console.print(pages.note, soft_wrap=True)
    elif missing:
        console.print(
            f"{missing} pictures could not be had: rows with an error, or images that are not where the run read them "
            "(--image-root DIR says where they are)",
            soft_wrap=True,
        )


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


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_pictures(pages: Pages, images: ImageSource, row: int, out: Path) -> bool:
    """The two sizes of a row's picture; whether it could be had."""
    columns = ["file_name", "error", *(["image"] if pages.dataset.has_images else [])]
    (values,) = pages.rows.rows_at([row], columns)
    sides: Sequence[int] = (GRID_SIDE_PX, FULL_SIDE_PX)
    try:
        if values["error"] is not None:
            return False
        content = images.load(values)
        for side in sides:
            (out / pages.links.image(row, side)).write_bytes(thumbnail(content, side, images.limits))
    except RowFault:
        return False
    return True
