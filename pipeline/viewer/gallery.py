"""`phrasebox inspect --html`: the same pages as files, for a sample of a dataset."""

from __future__ import annotations

import shutil
from contextlib import closing
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from pipeline.dataset.selection import Search
from pipeline.viewer.pages import Links, Pages, open_pages
from stages.contract.errors import ConfigError, RowFault
from stages.shared.images.pictures import thumbnail

GRID_SIDE_PX: Final = 640
FULL_SIDE_PX: Final = 1600


class _FileLinks(Links):
    """Names of files in one folder."""

    live = False

    def page(self, search: Search, page: int) -> str:
        return "index.html" if page == 1 else f"page-{page}.html"

    def sample(self, search: Search, at: int | None, row: int, image_id: int) -> str:
        return f"sample-{row}.html"

    def image(self, row: int, side_px: int) -> str:
        return f"images/{row}-{side_px}.jpg"

    def stats(self, search: Search) -> str:
        return "figures.html"

    def static(self, name: str) -> str:
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
    """Write pages of a random choice of the samples that a search finds, into a new folder.

    The figures are those of all samples that it finds. Images that cannot be loaded are left out and counted.

    Args:
        path: The dataset's folder.
        out: Folder to write to.
        console: Where progress and result are printed.
        search: What to choose from; its seed decides the choice.
        samples: The most samples to choose.
        image_root: See `ImageSource`.

    Raises:
        InputError: The folder is not a dataset.
        ConfigError: The condition or the new folder cannot be used.
    """
    search = search.model_copy(update={"sort": "random"})
    pages = open_pages(path, image_root, _FileLinks())
    with closing(pages.index) as index:
        index.check(search)
        _make_folders(out)
        index.build()
        numbers = pages.only = index.page(search, 0, samples)
        for page in range(1, max(1, -(-len(numbers) // search.per_page)) + 1):
            _write(out / pages.links.page(search, page), pages.grid(search, page))
        _write(out / pages.links.stats(search), pages.stats(search))
        missing = 0
        for at, row in track(
            list(enumerate(numbers)), "pages", console=console, transient=True, disable=not console.is_terminal
        ):
            _write(out / pages.links.sample(search, at, row, 0), pages.sample(search, row, at))
            missing += not _write_images(pages, row, out)
    with as_file(files("pipeline.viewer") / "static") as static:
        shutil.copytree(static, out / "static", dirs_exist_ok=True)
    console.print(f"{len(numbers)} samples in {out / 'index.html'}", soft_wrap=True)
    if pages.note:
        console.print(pages.note, soft_wrap=True)
    elif missing:
        console.print(
            f"{missing} images are missing: their rows have an error, or they are not where the run read them "
            "(--images DIR says where they are)",
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


def _write_images(pages: Pages, row: int, out: Path) -> bool:
    """Write a row's image in both sizes. Returns whether it could be loaded."""
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
