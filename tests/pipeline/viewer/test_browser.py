"""The viewer as a person uses it, in a real browser."""

import re
import shlex
from operator import itemgetter
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.index import SCORE_EDGES
from phrasebox.pipeline.dataset.marks import read_marks
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.pipeline.export import EXPORTERS, ExportRequest, export_dataset
from tests.build.datasets import Json, manifest_of, rows_of
from tests.build.files import write_json
from tests.pipeline.export.datasets import Maker, finished
from tests.pipeline.viewer.conftest import PATIENCE_MS, Served, pictures_are_there, serving


@pytest.fixture(scope="session")
def rows(viewed: Path) -> list[Json]:
    return rows_of(viewed)


def samples_shown(page: Page) -> list[str | None]:
    return [sample.get_attribute("data-sample") for sample in page.locator(".sample").all()]


def names(rows: list[Json]) -> list[str]:
    return [row["sample_id"] for row in rows]


def test_pages_show_the_samples_in_order(page: Page, shared: Served, rows: list[Json]) -> None:
    addresses: set[str] = set()
    page.on("request", lambda request: addresses.add(request.url.removeprefix(shared.url)))
    page.goto(f"{shared.url}/?per_page=8")
    expect(page.locator("#samples")).to_have_text(str(len(rows)))
    assert samples_shown(page) == names(rows[:8])
    page.get_by_role("link", name="Next →").first.click()
    page.wait_for_url("**page=2")
    assert samples_shown(page) == names(rows[8:])
    pictures_are_there(page)
    expect(page.locator(".picture img").last).to_have_attribute("alt", rows[-1]["captions"][0])
    assert all(address.startswith("/") for address in addresses), "of no other machine"


def test_a_condition_in_sql_and_the_command_that_exports_it(page, shared, rows) -> None:
    page.goto(shared.url)
    page.get_by_label("Score, at least").fill("0.1")
    page.get_by_label("SQL condition").fill("w > h AND region_count >= 2 -- wide things")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**where=*")
    several = [row for row in rows if len(row["annotations"]) >= 2]
    wide = [
        row
        for row in several
        if any(one["bbox"][2] > one["bbox"][3] and one["score"] >= 0.1 for one in row["annotations"])
    ]
    assert samples_shown(page) == names(wide)
    expect(page.locator("#samples")).to_have_text(str(len(wide)))
    page.get_by_text("Export this search").click()
    command = page.locator(".command code")
    condition = "--where 'w > h AND region_count >= 2 -- wide things'"
    for least, told in (("0.75", "0.75 "), ("0", "0.1 ")):
        page.locator("#fold").fill(least)
        expect(command).to_contain_text(f"--out OUT --min-score {told}--max-area 0.6 {condition}")
    page.goto(f"{shared.url}/?phrase=dog")
    page.get_by_text("Export this search").click()
    expect(command).to_contain_text("""--where "contains(phrase, 'dog')\"""")


def covers(region: Json, row: Json) -> float:
    """The share of the image that a region's box covers."""
    return float(region["bbox"][2] * region["bbox"][3] / (row["width"] * row["height"]))


@pytest.mark.slow
def test_it_starts_where_a_third_of_the_smaller_regions_is_shown(
    page: Page, shared: Served, rows: list[Json]
) -> None:
    """And says so; a search by score starts at that score."""
    assert shared.viewer.pages.index.wait(PATIENCE_MS / 1000)
    regions = [(region, row) for row in rows for region in row["annotations"]]
    scores = np.float32([region["score"] for region, row in regions if covers(region, row) <= 0.6])
    shares = {step: float(np.mean(scores >= np.float32(step))) for step in SCORE_EDGES}
    start = max(step for step, share in shares.items() if 3 * share >= 1)
    page.goto(shared.url)
    expect(page.locator("#fold")).to_have_value(f"{start:g}")
    expect(page.locator("#start")).to_contain_text(
        f"without boxes over 60 % of their image, and at a score of {start:.2f}: {100 * shares[start]:.0f} % of the"
    )
    page.goto(f"{shared.url}/?score_min=0.42")
    expect(page.locator("#fold")).to_have_value("0.4")


def test_an_export_writes_what_the_page_counts(
    page: Page, served: Served, dataset: Path, tmp_path: Path
) -> None:
    """With a score in the filter and another on the slider, with and without large boxes."""
    phrase = max(
        (region for row in rows_of(dataset) for region in row["annotations"]), key=itemgetter("score")
    )["phrase"]
    where = f"phrase <> '{phrase}'"
    page.goto(f"{served.url}/?{urlencode({'score_min': 0.3, 'where': where})}")
    page.get_by_text("Export this search").click()
    switch = page.get_by_label("hide boxes over 60 %")
    for slider, score, max_area in (("0.8", 0.8, 0.6), ("0.1", 0.3, 0.6), ("0.15", 0.3, 1.0)):
        page.locator("#fold").fill(slider)
        switch.set_checked(max_area < 1)
        command = shlex.split(page.locator(".command code").inner_text())
        size = ["--max-area", f"{max_area}"] if max_area < 1 else []
        assert command[-4 - len(size) :] == ["--min-score", f"{score}", *size, "--where", where]
        request = ExportRequest(
            exporter=EXPORTERS["coco"],
            out=tmp_path / slider,
            min_score=score,
            max_area=max_area,
            where=where,
            per="phrase",
        )
        count = sum(export_dataset(open_dataset(dataset), request).regions.values())
        expect(page.locator("#regions")).to_have_text(str(count))
        expect(page.locator(".command .counted")).to_have_text(str(count))
        assert count


@pytest.mark.slow
def test_a_condition_that_is_wrong_is_told_at_its_field(context: BrowserContext, shared: Served) -> None:
    """And nothing that was typed is lost. The console names the answer's status, so the other tests' watch is off."""
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{shared.url}/?sort=regions&phrase=red&score_min=0.3&where=nonsense(")
    field = page.get_by_label("SQL condition")
    field.fill('head = "dog"')
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#where-problem")).to_contain_text("put text in single quotes")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_have_value('head = "dog"')
    expect(page.get_by_label("Phrase contains")).to_have_value("red")
    expect(page.get_by_label("Score, at least")).to_have_value("0.3")
    expect(page.locator("[name=sort]")).to_have_value("regions")
    expect(page.locator("#where-problem")).to_be_visible()
    expect(page.locator(".sample, .pager span")).to_have_count(0)


def test_marks_are_stored_undone_and_found_again(page: Page, served: Served, dataset: Path) -> None:
    page.goto(served.url)
    first, second, third = samples_shown(page)[:3]
    samples = page.locator(".sample")
    status = page.locator("#status")
    samples.nth(0).focus()
    for key in "gxjxb":  # the first has another mark before
        page.keyboard.press(key)
    expect(status).to_contain_text("2 marked bad")
    assert read_marks(dataset) == {first: "bad", second: "bad"}
    status.get_by_role("button", name="Undo").click()
    expect(status).to_have_text("mark undone")
    assert read_marks(dataset) == {first: "good"}
    for key in "uu":  # the second finds nothing left
        page.keyboard.press(key)
    expect(status).to_have_text("nothing to undo")
    samples.nth(2).focus()
    for key in "bjg":
        page.keyboard.press(key)
    expect(samples.nth(3)).to_have_attribute("data-mark", "good")
    page.keyboard.press("g")  # once more takes it away
    expect(samples.nth(3)).to_have_attribute("data-mark", "")
    with serving(dataset) as again:  # another server, another day
        page.goto(f"{again.url}/?mark=any")
        assert samples_shown(page) == [third]


def test_images_that_moved_keep_their_place_and_say_so(
    context: BrowserContext, viewed: Path, tmp_path: Path
) -> None:
    """In a page without the other tests' watch over its console, which names every picture that is not there."""
    with serving(viewed, image_root=tmp_path) as started:
        page = context.new_page()
        page.goto(started.url)
        sample = page.locator(".sample:has(.picture)").first
        expect(sample.locator(".missed p")).to_contain_text(
            "does not exist below the image root (phrasebox inspect --images DIR says"
        )
        size = sample.locator("svg").bounding_box()
        assert abs(size["width"] / size["height"] - 1) < 0.01, "drawn scenes are square"
        assert size["height"] > 200


def test_nothing_in_a_caption_or_name_runs(page: Page, shared: Served, rows: list[Json]) -> None:
    pages = [f"/sample/{rows[number]['id']}" for number in (0, 3, 7)]
    for address in ("/stats", *pages, "/?per_page=8"):
        page.goto(shared.url + address)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main script, main b, main i, main img:not(.picture img)").count() == 0
    expect(page.locator(".caption").first).to_contain_text("<script>window.hacked = 1</script>")
    policy = page.request.get(shared.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_what_is_drawn_can_be_chosen_and_is_remembered(page: Page, shared: Served) -> None:
    page.goto(f"{shared.url}/?status=regions&per_page=4")
    shown = ".region.lead:not(.folded)"
    sample = page.locator(f".sample:has({shown})").first
    region = sample.locator(shown).first
    box = region.locator(".box")
    mask = region.locator(".mask")
    number = region.get_attribute("data-region")
    label = sample.locator(f".label[data-region='{number}']")
    opacity = "one => getComputedStyle(one).strokeOpacity"
    expect(box).to_be_visible()
    expect(label).to_have_text(re.compile(r"^[a-z].* 0\.\d\d$"))
    expect(label).to_be_visible()
    assert mask.evaluate(opacity) == "0"
    for key in "123":
        page.keyboard.press(key)
    page.reload()
    expect(box).to_be_hidden()
    expect(label).to_be_hidden()
    assert mask.evaluate(opacity) == "1"
    page.keyboard.press("2")
    assert mask.evaluate(opacity) == "0"
    sample.locator(f".phrase[data-regions~='{number}']").first.hover()
    expect(box).to_be_visible()
    assert mask.evaluate(opacity) == "1"
    expect(label).to_be_hidden()


LABELS = """all => all.filter((one) => one.checkVisibility()).map((one) => {
    const { left, top, right, bottom } = one.getBoundingClientRect();
    return [left, top, right, bottom];
})"""


@pytest.mark.parametrize("width", [1300, 372])
def test_names_and_scores_stand_in_the_picture_and_beside_one_another(
    page: Page, shared: Served, width: int
) -> None:
    """Each drawn region has its label; all of them are drawn here, so that they are many."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{shared.url}/?sort=regions&per_page=4")
    page.get_by_label("hide boxes over 60 %").uncheck()
    page.get_by_title("The regions of all phrases").click()
    page.locator("#fold").fill("0")
    most = 0
    for sample in page.locator(".sample:has(.region)").all():
        sample.scroll_into_view_if_needed()
        picture = sample.locator(".picture").bounding_box()
        labels = sample.locator(".label").evaluate_all(LABELS)
        assert len(labels) == sample.locator(".region").count()
        most = max(most, len(labels))
        for place, (left, top, right, bottom) in enumerate(labels):
            assert left >= picture["x"] - 1
            assert right <= picture["x"] + picture["width"] + 1
            assert top >= picture["y"] - 4, "fonts are higher than their letters"
            assert bottom <= picture["y"] + picture["height"] + 4
            for other in labels[:place]:
                beside = other[2] <= left or right <= other[0]
                assert beside or min(bottom, other[3]) - max(top, other[1]) < 4
        boxes = sample.locator(".region .box").evaluate_all(
            "all => all.map((one) => one.getAttribute('width') * one.getAttribute('height'))"
        )
        assert boxes == sorted(boxes, reverse=True), "small boxes lie on top"
    assert most > 2
    page.locator(".sample:has(.region) .phrase").first.hover()
    first = page.locator(".sample:has(.region)").first
    shown = first.locator(".label").evaluate_all(LABELS)
    assert len(shown) == first.locator(".region.hit").count() == 1, "what is pointed at alone"


@pytest.mark.slow
def test_a_switch_hides_boxes_that_cover_most_of_the_image(context: BrowserContext, tmp_path: Path) -> None:
    """It is on at first, says how many it hides, and is remembered; a search shows what it asks for."""
    make = Maker().record
    snow = ("the snow", (0, 0, 40, 19))
    dog = ("a dog", (2, 2, 9, 9))
    records = [make("a", "a dog in the snow", dog, snow), make("b", "the snow", snow)]
    dataset = finished(tmp_path / "dataset", records)
    page = context.new_page()  # there are no images, which the console would name
    with serving(dataset) as served:
        page.goto(served.url)
        switch = page.get_by_label("hide boxes over 60 %")
        expect(switch).to_be_checked()
        expect(page.locator("#found")).to_contain_text("1 of 3 regions, 2 larger hidden")
        expect(page.locator("#start")).to_contain_text("without boxes over 60 % of their image")
        expect(page.locator(".region:visible, .label:visible")).to_have_count(2)  # the dog and its label
        expect(page.locator(".sample.bare")).to_have_attribute("data-sample", "b")
        expect(page.locator(".phrase.low")).to_have_text(["the snow", "the snow"])
        expect(page.locator(".unfold").first).to_have_text("1 larger")
        page.locator(".unfold").first.click()
        expect(page.locator(".region.large:visible")).to_have_count(1)
        switch.uncheck()
        expect(page.locator("#regions")).to_have_text("3")
        expect(page.locator("#larger")).to_be_hidden()
        page.reload()
        expect(switch).not_to_be_checked()
        expect(page.locator(".region.large:visible")).to_have_count(2)
        switch.check()
        page.goto(f"{served.url}/?where=box_share>0.6")
        expect(page.locator(".region.sought:visible")).to_have_count(2)


def test_the_heat_map_of_the_pinned_phrase_is_shown(browser: Browser, shared: Served) -> None:
    """On a phone, where nobody can point at the phrase once more."""
    with browser.new_context(
        viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    ) as context:
        page = context.new_page()
        page.goto(f"{shared.url}/?status=regions&per_page=4")
        pinned, other = page.locator(".sample:has(.phrase:not(.low))").all()[:2]
        pinned.locator(".phrase:not(.low)").first.tap()
        page.get_by_label("heat map").tap()
        expect(pinned).to_have_class(re.compile("heated"))
        expect(pinned.locator(".heat")).to_have_attribute("href", re.compile(r"/heat/\d+\.png"))
        expect(other).not_to_have_class(re.compile("heated"))
        page.get_by_label("heat map").tap()
        expect(pinned).not_to_have_class(re.compile("heated"))


@pytest.mark.slow
def test_pages_fit_a_phone_in_dark_and_light(page: Page, shared: Served, rows: list[Json]) -> None:
    page.set_viewport_size({"width": 380, "height": 700})
    papers = set()
    for scheme, address in (
        ("dark", f"/sample/{rows[0]['id']}"),
        ("light", "/stats"),
        ("dark", "/review"),
        ("light", "/"),
    ):
        page.emulate_media(color_scheme=scheme)
        page.goto(shared.url + address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        expect(page.locator("header .name")).to_be_visible()
    assert len(papers) == 2
    page.set_viewport_size({"width": 372, "height": 700})
    for part in (
        page.locator("header").locator("input[type=range], input[type=checkbox], .views label").all()
    ):
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 372, "no part lies beside the screen"
    expect(page.locator("#filters")).to_be_hidden()
    page.get_by_text("Filters", exact=True).click()
    expect(page.get_by_label("Phrase contains")).to_be_visible()


def test_keys_lead_through_the_samples(page: Page, shared: Served) -> None:
    page.goto(f"{shared.url}/?sort=random&seed=5&per_page=6")
    order = samples_shown(page)
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url("**/sample/**")
    expect(page.locator(".sample")).to_have_attribute("data-sample", f"{order[1]}")
    page.wait_for_load_state()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".sample")).to_have_attribute("data-sample", f"{order[2]}")
    page.wait_for_load_state()
    page.keyboard.press("Escape")
    page.wait_for_url("**/?*seed=5*")
    assert samples_shown(page) == order
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.get_by_label("Phrase contains")).to_be_focused()


@pytest.mark.slow
def test_an_unfinished_dataset_is_shown_while_its_shards_are_read(page: Page, dataset: Path) -> None:
    run = manifest_of(dataset)["run"]
    write_json(dataset / ".phrasebox" / "run.json", sign(run))
    (dataset / "dataset.json").unlink()
    with serving(dataset, build=False) as started:
        page.goto(started.url)
        expect(page.locator(".notice")).to_contain_text("has not finished")
        assert samples_shown(page) == names(rows_of(dataset))
        page.goto(f"{started.url}/?head=car")
        expect(page.get_by_role("heading", name="Reading the shards")).to_be_visible()
        started.viewer.pages.index.build()
        page.wait_for_selector("#found")  # by itself
