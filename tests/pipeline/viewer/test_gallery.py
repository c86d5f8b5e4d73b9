"""`phrasebox inspect --html`: pages as files."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from rich.console import Console

from pipeline.dataset.selection import Search
from pipeline.viewer.pages import write_gallery
from stages.contract.errors import ConfigError
from tests.pipeline.viewer.conftest import SCENES, pictures_are_there, rows_of

QUIET = Console(quiet=True)


def test_the_gallery_works_from_the_disk(page: Page, viewed: Path, tmp_path: Path) -> None:
    write_gallery(viewed, tmp_path / "gallery", QUIET, Search(per_page=8), samples=1000)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto((tmp_path / "gallery" / "index.html").as_uri())
    assert page.locator(".sample").count() == 8
    expect(page.locator("#samples")).to_have_text(str(SCENES))
    page.get_by_role("link", name="Next →").first.click()
    assert page.locator(".sample").count() == SCENES - 8
    page.locator(".sample:not(.failed) a.open").first.click()
    pictures_are_there(page)
    page.locator(".phrase").first.hover()
    assert page.locator(".region.hit").count() > 0
    page.get_by_role("link", name="Figures").click()
    expect(page.locator("h1")).to_contain_text(f"{SCENES} images")
    assert page.evaluate("window.hacked") is None
    assert all(address.startswith("file://") for address in addresses)


def test_conditions_and_seeds_choose_the_samples(viewed: Path, tmp_path: Path) -> None:
    def shown(name: str, search: Search, samples: int = 3) -> set[str]:
        write_gallery(viewed, tmp_path / name, QUIET, search, samples=samples)
        return {path.name for path in (tmp_path / name).glob("sample-*.html")}

    first = shown("first", Search())
    assert len(first) == 3
    assert shown("again", Search()) == first
    assert shown("other", Search(seed=1)) != first
    sure = [any(one["score"] >= 0.8 for one in row["annotations"]) for row in rows_of(viewed)]
    wanted = {f"sample-{number}.html" for number, is_sure in enumerate(sure) if is_sure}
    assert wanted
    assert shown("sure", Search(score_min=0.8), samples=1000) == wanted


def test_only_a_new_or_empty_folder_is_written_to(viewed: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("mine")
    for out, search, words in (
        (mine, Search(), "mine is not empty; give a new folder"),
        (mine / "index.html", Search(), r"index\.html is a file; give a new folder"),
        (tmp_path / "new", Search(where="nonsense("), "not an SQL condition"),
    ):
        with pytest.raises(ConfigError, match=words):
            write_gallery(viewed, out, QUIET, search, samples=2)
    assert [path.read_text() for path in mine.iterdir()] == ["mine"]
    assert not (tmp_path / "new").exists()
