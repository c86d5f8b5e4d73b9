"""Review in a real browser: keys, touch, two people, a server that is killed, corrections, and exports after them."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.reviews import RegionKey, Review, append_review, read_reviews
from phrasebox.pipeline.viewer.review import ReviewRequest
from tests.build.datasets import Json, rows_of
from tests.build.files import read_lines
from tests.pipeline.export.datasets import Maker, exported, finished
from tests.pipeline.viewer.conftest import HOSTILE, PATIENCE_MS, Served, serving
from tests.pipeline.viewer.test_serve import started


def lines(dataset: Path) -> list[Json]:
    file = dataset / "reviews.jsonl"
    return read_lines(file) if file.exists() else []


def regions_of(dataset: Path) -> dict[int, Json]:
    return {one["id"]: {**one, "row": row} for row in rows_of(dataset) for one in row["annotations"]}


def opened(page: Page, url: str, name: str = "ann") -> Page:
    """The review, by somebody of this name."""
    page.add_init_script(f"localStorage.setItem('phrasebox-reviewer', {json.dumps(name)})")
    page.goto(f"{url}/review")
    expect(page.locator("#asking")).to_be_visible()
    return page


def shown(page: Page) -> tuple[str, str]:
    return page.locator("#phrase").inner_text(), page.locator("#drawing .shown .box").last.get_attribute(
        "x"
    ) or ""


def press(page: Page, key: str, dataset: Path) -> Json:
    """What a key has written, once the page has gone on."""
    before = len(lines(dataset))
    at_rest(page)
    page.keyboard.press(key)
    for _ in range(PATIENCE_MS // 20):
        if len(lines(dataset)) > before:
            break
        page.wait_for_timeout(20)
    at_rest(page)
    written = lines(dataset)
    assert len(written) == before + 1
    return written[-1]


def at_rest(page: Page) -> None:
    """The page shows a region and takes keys."""
    expect(page.locator("#asking[aria-busy=true]")).to_have_count(0)


@contextmanager
def another(browser: Browser, **options: Any) -> Iterator[Page]:
    """A browser of somebody else."""
    with browser.new_context(viewport={"width": 1300, "height": 900}, **options) as context:
        context.set_default_timeout(PATIENCE_MS)
        yield context.new_page()


def test_a_key_answers_and_undo_takes_it_back(page: Page, served: Served, dataset: Path) -> None:
    regions = regions_of(dataset)
    elsewhere = {**RegionKey.of(next(iter(regions.values())))._asdict(), "bbox": (1, 1, 3, 3)}
    append_review(dataset, Review(**elsewhere, reviewer="ann", answer="right"))
    opened(page, served.url)
    expect(page.locator("#notes")).to_contain_text("no answers that count (1 elsewhere)")
    expect(page.locator("#undo")).to_be_disabled()
    order: list[int] = []
    for key, value in (("r", "right"), ("w", "wrong"), ("a", "absent"), ("c", "unsure"), ("r", "right")):
        phrase, x = shown(page)
        line = press(page, key, dataset)
        region = regions[line["annotation_id"]]
        assert (line["answer"], line["reviewer"], line["phrase"]) == (value, "ann", region["phrase"])
        assert (line["bbox"], float(x)) == (region["bbox"], region["bbox"][0])
        assert phrase == region["row"]["captions"][region["caption_index"]][slice(*region["span"])]
        order.append(line["annotation_id"])
    assert len(set(order)) == 5
    expect(page.locator("#precision")).to_contain_text("right, of all regions")
    expect(page.locator("#curve circle")).to_have_count(1)
    for name in reversed(order[-2:]):
        undone = press(page, "u", dataset)
        assert (undone["annotation_id"], undone["answer"]) == (name, "undone")
    page.reload()  # what was said is there, and so is the way back
    expect(page.locator("#progress")).to_contain_text(f"3 of {len(regions)} by you")
    assert press(page, "Backspace", dataset)["annotation_id"] == order[2]


@pytest.mark.slow
def test_a_second_undo_waits_while_the_first_is_saved(page: Page, served: Served, dataset: Path) -> None:
    opened(page, served.url)
    answered = [press(page, key, dataset)["annotation_id"] for key in "rwc"]
    for key in "n1":  # on the other pages they step through phrases and show boxes
        page.keyboard.press(key)
    held: list[Route] = []
    page.route("**/review", lambda route: held.append(route) if not held else route.continue_())
    page.keyboard.press("u")
    while not held:
        page.wait_for_timeout(10)
    page.keyboard.press("u")
    page.keyboard.press("r")  # about a region that nobody has seen
    held[0].continue_()
    expect(page.locator("#progress")).to_contain_text("1 of")
    at_rest(page)
    undone = [line["annotation_id"] for line in lines(dataset)[3:] if line["answer"] == "undone"]
    assert undone == answered[:0:-1]
    assert len(lines(dataset)) == 5


@pytest.mark.slow
def test_two_people_at_a_time(page: Page, browser: Browser, served: Served, dataset: Path) -> None:
    """One of them has a phone, with targets for a thumb. Hostile words are words, and there is an end."""
    total = len(regions_of(dataset))
    name = "bob <b>"
    opened(page, served.url, "ann")
    with another(browser, has_touch=True, is_mobile=True) as other:
        other.set_viewport_size({"width": 390, "height": 844})
        opened(other, served.url, name)
        buttons = other.locator(".answers button")
        for box in (one.bounding_box() for one in buttons.all()):
            assert box["height"] >= 48
            assert box["width"] >= 150
            assert box["y"] + box["height"] <= 844
        for number in range(1, 9):  # more than lie between the places where they begin
            press(page, "r", dataset)
            if number > 1:  # each page hears of the other's answers soon after its own
                expect(page.locator("#progress")).to_contain_text(f"{name} {number - 1}")
            at_rest(other)
            buttons.nth(1).tap()
            expect(other.locator("#progress")).to_contain_text(f"{number} of {total} by you")
            expect(other.locator("#progress")).to_contain_text(f"ann {number}")
    page.reload()
    expect(page.locator("#progress")).to_contain_text(f"{name} 8")
    assert len(read_reviews(dataset).answers) == 16, "nobody answers what the other has answered"
    captions = set()
    expect(page.locator("#asking")).to_be_visible()
    while not page.locator("#done").is_visible():
        captions.add(page.locator("#caption").inner_text())
        press(page, "r", dataset)
    assert HOSTILE in captions
    assert page.evaluate("window.hacked") is None
    expect(page.locator("#done code").last).to_contain_text(
        f"phrasebox calibrate {dataset} --reviews --out"
    )
    reviews = read_reviews(dataset)
    assert len(reviews.answers) == total
    assert list(reviews.majority_answers().values()).count("unsure") == 8
    page.get_by_role("button", name="Look at my answers again").click()
    expect(page.locator(".answers [aria-pressed=true]")).to_have_count(1)


@pytest.mark.slow
def test_the_figures_follow_each_answer_and_say_so_until_they_do(
    page: Page, served: Served, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are read for the first answer alone, so that the figures of the others cost little."""
    reads: list[str] = []
    session = served.viewer.review_session
    tables = Dataset.tables
    monkeypatch.setattr(
        Dataset, "tables", lambda *values, **more: reads.append("") or tables(*values, **more)
    )
    opened(page, served.url)
    note = page.locator("#notes")
    press(page, "r", dataset)
    expect(page.locator("#precision")).to_contain_text("1 answer")
    expect(note).not_to_contain_text("latest answers")
    assert reads
    reads.clear()
    with session._lock:  # as if another request computed
        press(page, "w", dataset)
        page.wait_for_timeout(700)  # the page asks again meanwhile
        expect(note).to_contain_text("These figures do not count the latest answers yet.")
        expect(page.locator("#precision")).to_contain_text("1 answer")
        expect(page.locator("#progress")).to_contain_text("2 of")
    expect(page.locator("#precision")).to_contain_text("2 answers")
    expect(note).not_to_contain_text("latest answers")
    assert reads == []


def test_a_caption_is_never_cut_within_a_line(page: Page, served: Served) -> None:
    """On a phone, and so that all answers are on the screen."""
    page.set_viewport_size({"width": 372, "height": 760})
    opened(page, served.url)
    at_rest(page)
    caption = page.locator("#caption")
    for times, least in ((1, 0), (3, 0), (40, 100)):
        cut = caption.evaluate(
            """(one, times) => {
                one.lastChild.textContent = " with a dog and some more words".repeat(times);
                const height = one.clientHeight;
                return [one.scrollHeight - height, height / parseFloat(getComputedStyle(one).lineHeight)];
            }""",
            times,
        )
        assert cut[0] >= least
        assert cut[1] == pytest.approx(round(cut[1]), abs=0.06)
        inside = page.locator(".asked").evaluate("one => one.scrollHeight <= one.clientHeight + 1")
        assert inside
        for button in page.locator(".answers button").all():
            box = button.bounding_box()
            assert times > 3 or box["y"] + box["height"] <= 760


def test_a_server_that_is_killed_has_lost_nothing(browser: Browser, dataset: Path) -> None:
    with another(browser) as page, started(str(dataset), "--review") as (process, address):
        assert address.endswith("/review")
        opened(page, address.removesuffix("/review"))
        at_rest(page)
        page.keyboard.press("r")
        expect(page.locator("#progress")).to_contain_text("1 of")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [line["answer"] for line in lines(dataset)] == ["right"]
        at_rest(page)
        page.keyboard.press("w")
        expect(page.locator("#problem")).to_contain_text("not saved")
        expect(page.locator("#progress")).to_contain_text("1 of")
    file = dataset / "reviews.jsonl"
    file.write_bytes(file.read_bytes() + b'{"annotation_id": 12')  # it might have died within a line
    with another(browser) as page, serving(dataset) as again:
        opened(page, again.url)
        expect(page.locator("#progress")).to_contain_text("1 of")
        expect(page.locator("#notes")).to_contain_text("1 lines of the reviews cannot be read")


def drag(page: Page, part: str, dx: float, dy: float) -> None:
    box = page.locator(part).bounding_box()
    x = box["x"] + box["width"] / 2
    y = box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()


def sweep(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag across the image; places are shares of it."""
    x, y, w, h = page.locator("#drawing").evaluate(
        "one => { const { a, e, f } = one.getScreenCTM(), { width, height } = one.viewBox.baseVal;"
        "return [e, f, a * width, a * height]; }"
    )
    page.mouse.move(x + start[0] * w, y + start[1] * h)
    page.mouse.down()
    page.mouse.move(x + end[0] * w, y + end[1] * h, steps=3)
    page.mouse.up()


def corrections(dataset: Path) -> dict[int, tuple[str, Any]]:
    """Annotation id -> the action that counts, and its box."""
    return {
        key.annotation_id: (one.action, one.box_xywh_px)
        for key, one in read_reviews(dataset).corrections.items()
    }


def test_a_region_is_deleted_and_a_right_box_dragged_in_the_review(
    page: Page, served: Served, dataset: Path
) -> None:
    opened(page, served.url)
    at_rest(page)
    page.keyboard.press("d")
    expect(page.locator("#correction")).to_have_text("Deleted: exports leave it out.")
    press(page, "w", dataset)
    at_rest(page)
    region = shown(page)
    page.keyboard.press("m")
    sweep(page, (0.5, 0.5), (0.505, 0.6))  # a slip, and nothing is stored
    page.keyboard.press("Escape")
    expect(page.locator("#move")).to_be_visible()
    assert shown(page) == region
    assert len(lines(dataset)) == 2
    page.keyboard.press("d")
    expect(page.locator("#correction")).to_contain_text("Deleted")
    at_rest(page)
    page.keyboard.press("m")
    sweep(page, (0.75, 0.25), (0.5, 1.5))  # from any corner, and no farther than the image
    expect(page.locator("#progress")).to_contain_text("2 of")
    at_rest(page)
    assert shown(page) != region, "the next one comes"
    line = lines(dataset)[-1]
    width, height = (
        regions_of(dataset)[line["annotation_id"]]["row"][side] for side in ("width", "height")
    )
    assert (line["answer"], line["action"]) == ("wrong", "box")
    assert line["box_xywh_px"] == pytest.approx(
        [0.5 * width, 0.25 * height, 0.25 * width, 0.75 * height], abs=1.01
    )
    assert [action for action, _ in corrections(dataset).values()] == ["delete", "box"]
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#correction")).to_have_text(
        "The dashed box is the right one: exports take it, with a score of 1."
    )
    at_rest(page)
    page.keyboard.press("u")
    expect(page.locator("#correction")).to_have_text("Deleted: exports leave it out.")


def test_a_sample_is_corrected_on_its_page(page: Page, served: Served, dataset: Path) -> None:
    """Two captions say the same phrase: its region is drawn once, so both go."""
    rows = rows_of(dataset)
    likely = [{region["phrase"] for region in row["annotations"] if region["score"] > 0.3} for row in rows]
    number = next(k for k, phrases in enumerate(likely) if len(phrases) > 1)
    row = rows[number]
    page.goto(f"{served.url}/sample/{row['id']}?row={number}")
    page.keyboard.press("n")
    first = page.locator(".phrase:not(.low)").first
    status = page.locator("#status")
    region = row["annotations"][int(first.get_attribute("data-regions") or "")]
    same = {
        each["id"]
        for each in row["annotations"]
        if all(each[key] == region[key] for key in ("phrase", "bbox"))
    }
    regions = f"{len(same)} region{'s' if len(same) > 1 else ''}"
    page.keyboard.press("d")
    expect(page.locator("tr.deleted")).to_contain_text(region["phrase"])
    expect(status).to_contain_text(f"{regions} deleted: “{region['phrase']}”")
    assert corrections(dataset).keys() == same
    status.get_by_role("button", name="Undo").click()
    expect(status).to_have_text(f"{regions} restored")
    for key in "ddu":  # each waits for the one before
        page.keyboard.press(key)
    expect(status).to_have_text(f"{regions} deleted: “{region['phrase']}”")
    page.keyboard.press("u")
    expect(page.locator("tr.deleted")).to_have_count(0)
    page.keyboard.press("Escape")
    page.locator(".phrase").last.click()
    page.keyboard.press("m")
    drag(page, ".editor .edge:not(.halo)", 5, 7)
    drag(page, ".editor .edge:not(.halo)", -5000, -5000)  # it stays in the image
    page.keyboard.press("Enter")
    expect(status).to_contain_text("moved")
    corrected = page.locator(".region.corrected").first
    last = row["annotations"][int(corrected.get_attribute("data-region") or "")]
    assert corrections(dataset)[last["id"]] == ("box", (0, 0, *last["bbox"][2:]))
    expect(page.locator("tr", has_text="box corrected: a score of 1 in exports").first).to_be_visible()
    page.goto(f"{served.url}/?where=w>0")  # in the grid, too
    expect(page.locator(".region.corrected").first).to_be_attached()


@pytest.fixture
def named_twice(tmp_path: Path) -> Path:
    """A dataset with one object that two captions call by other names, and a dog with the same box."""
    mentions = [(name, index, (2, 2, 9, 9), 0, 0.5) for index, name in enumerate(("boy", "kid"))]
    row = Maker().grouped("a", ("a boy", "a kid", "a dog"), *mentions, ("dog", 2, (2, 2, 9, 9), 1, 0.5))
    return finished(tmp_path / "dataset", [row])


def deleted(dataset: Path) -> set[str]:
    return {key.phrase for key in read_reviews(dataset).corrections}


def exported_boxes(dataset: Path, out: Path) -> int:
    """The number of regions of an export."""
    return sum(exported("coco", dataset, out)[1].regions.values())


def test_an_object_is_deleted_with_all_its_names_and_undo_restores_them(
    browser: Browser, named_twice: Path, tmp_path: Path
) -> None:
    """Exports hold its box under no name; where all regions are drawn, one is deleted."""
    assert exported_boxes(named_twice, tmp_path / "before") == 2
    with (
        another(browser) as page,
        serving(named_twice) as served,
    ):  # it has no image, which the console names
        page.goto(f"{served.url}/sample/{rows_of(named_twice)[0]['id']}?row=0")
        status = page.locator("#status")
        page.keyboard.press("n")
        expect(page.locator("#delete")).to_contain_text("delete object")
        page.keyboard.press("d")
        expect(status).to_contain_text("2 regions deleted: “boy”, “kid”")
        assert deleted(named_twice) == {"boy", "kid"}
        assert exported_boxes(named_twice, tmp_path / "without") == 1
        status.get_by_role("button", name="Undo").click()
        expect(status).to_have_text("2 regions restored")
        assert deleted(named_twice) == set()
        page.get_by_text("all", exact=True).click()
        page.keyboard.press("n")
        expect(page.locator("#delete")).to_contain_text("delete region")
        page.keyboard.press("d")
        expect(status).to_contain_text("1 region deleted: “boy”")
        assert deleted(named_twice) == {"boy"}
        page.get_by_text("per object", exact=True).click()
        page.keyboard.press("n")
        page.keyboard.press("d")  # the boy is restored; the kid was there
        expect(page.locator("tr.deleted")).to_have_count(0)
        opened(page, served.url)
        while page.locator("#phrase").inner_text() == "dog":
            page.keyboard.press("ArrowRight")
            at_rest(page)
        names = [page.locator("#phrase").inner_text()]
        names += {"boy", "kid"} - set(names)
        page.keyboard.press("d")
        expect(status).to_have_text(f"deleted: “{names[0]}”, “{names[1]}”. Undo restores them")
        expect(page.locator("#correction")).to_have_text(
            f"Deleted, also as “{names[1]}”: exports leave it out."
        )
        assert deleted(named_twice) == {"boy", "kid"}
        at_rest(page)
        page.keyboard.press("u")
        expect(page.locator("#correction")).to_be_hidden()
        assert deleted(named_twice) == set()


def test_names_of_an_object_share_a_corrected_box_and_one_region_can_be_deleted_alone(
    named_twice: Path,
) -> None:
    dataset = named_twice
    (boy,) = (key for key, region in regions_of(dataset).items() if region["phrase"] == "boy")
    box = {"action": "box", "box_xywh_px": (1, 1, 9, 9)}
    with serving(dataset, build=False) as served:
        for action, phrases in (
            (box, {"boy", "kid"}),
            ({"action": "undone"}, set()),
            ({"action": "delete"}, {"boy"}),
        ):
            values = {"row": 0, "annotation_id": boy, "reviewer": "ann", **action}
            assert served.viewer.review_session.store(ReviewRequest.model_validate(values))
            assert {key.phrase for key in read_reviews(dataset).corrections} == phrases
