"""The page of `phrasebox compare` in a real browser; here, because the tests of pages share one."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.research.compare.comparison import Comparison, compare_explainers
from phrasebox.pipeline.research.compare.page import picture_questions, write_page
from phrasebox.pipeline.research.compare.pictures import Source
from tests.build.files import read_lines
from tests.pipeline.commands.evaluated import QUIET, config_of
from tests.pipeline.viewer.conftest import HOSTILE, pictures_are_there
from tests.stages.model.saved import save_model

EXPLAINERS = ["grad_eclip", "rollout", "maskclip"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("compared")
    write_scenes(folder, 4, 12)
    rows = read_lines(folder / "captions.jsonl")
    rows[0] |= {"caption": HOSTILE, "id": "<img src=x onerror='window.hacked = 3'>"}
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    _, model = save_model(folder)
    source = Source(name="</style><b>x", config=config_of(folder, model=model), truth=None)
    return compare_explainers(source, ",".join(EXPLAINERS), QUIET, curve_images=1)


def test_people_see_every_map_and_sort_by_disagreement(
    page: Page, comparison: Comparison, tmp_path: Path
) -> None:
    out = tmp_path / "maps.html"
    write_page(comparison, out)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(out.as_uri())
    articles = page.locator("article")
    questions = picture_questions(comparison)
    assert articles.count() == len(questions) == 4
    assert articles.first.locator("figcaption b").all_inner_texts() == EXPLAINERS
    pictures_are_there(page)

    def shown() -> list[float]:
        values = (article.get_attribute("data-disagreement") for article in articles.all())
        return [float(value or "nan") for value in values]

    wanted = sorted((round(one.disagreement, 6) for one in questions), reverse=True)
    assert shown() == wanted
    page.get_by_label("Order").select_option("agreement")
    assert shown() == wanted[::-1]
    page.get_by_label("Find").fill(questions[2].name.upper())
    expect(page.locator("article:visible")).to_have_count(1)
    expect(page.locator("#count")).to_have_text("1 of 4 pictures")
    # Nothing of the captions runs, and nothing is fetched.
    assert page.evaluate("window.hacked === undefined")
    assert [url for url in addresses if not url.startswith(("data:", "file:"))] == []
    assert page.locator("h2").inner_text() == "</style><b>x"
    cells = page.locator("tbody").first.locator("tr").nth(1)  # of the table of figures
    assert cells.locator("th").inner_text() == "rollout"
    figures = comparison.rows[1].figures
    assert f"{figures['insertion_rise'].value:.3f}" in cells.locator("td").all_inner_texts()
