"""A crowded image in a real browser, by what can be seen: at rest, pointed at, pinned, stepped through, folded away."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.pipeline.viewer.conftest import Served, serving
from tests.pipeline.viewer.crowd import (
    PHRASES,
    REGIONS,
    SCORES,
    labels_to_read,
    labels_without_overlap,
    visible_regions,
    write_crowd,
)

THINGS, _, CAPTIONS = map(list, zip(*PHRASES, strict=True))
LIKELY = [number for number, score in enumerate(SCORES) if score >= 0.5]
BEST = [30 + object_ for object_ in range(10)]  # the region with the highest score of each thing


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(write_crowd(tmp_path_factory.mktemp("crowd") / "dataset")) as running:
        yield running


def opened(page: Page, crowded: Served, search: str = "") -> Locator:
    """The crowd in a page of its own."""
    page.goto(f"{crowded.url}/?per_page=1{search}")
    page.get_by_role("slider").fill("0.5")
    return first(page)


def first(page: Page) -> Locator:
    return page.locator(".sample").first


def phrase(sample: Locator, number: int) -> Locator:
    return sample.locator(f".phrase[data-regions='{number}']")


def point_in(page: Page, sample: Locator, number: int) -> tuple[float, float]:
    """A point amid those at which a region lies above all others, as a hand would find it."""
    x, y = sample.evaluate(
        """(sample, number) => {
            const region = sample.querySelector(`.region[data-region="${number}"]`);
            const box = region.querySelector('.mask').getBoundingClientRect(), found = [];
            for (let y = 1; y < box.height; y += 2) for (let x = 1; x < box.width; x += 2)
                if (document.elementFromPoint(box.x + x, box.y + y)?.closest('.region') === region)
                    found.push([box.x + x, box.y + y]);
            return found[Math.floor(found.length / 2)];
        }""",
        number,
    )
    return x, y


def test_the_captions_are_the_index(page: Page, crowded: Served) -> None:
    sample = opened(page, crowded)
    at_rest = [number for number in BEST if SCORES[number] >= 0.5]
    assert sorted(visible_regions(sample)) == at_rest
    assert labels_without_overlap(sample) == at_rest
    phrase(sample, 3).hover()  # folded away, and not the best of its thing
    assert labels_without_overlap(sample) == [3]
    assert labels_to_read(sample) == ["big man 0.41"]
    page.mouse.move(2, 2)
    assert labels_without_overlap(sample) == at_rest
    page.mouse.move(*point_in(page, sample, 33))  # a thing lights all that is said of it
    assert labels_without_overlap(sample) == [33]
    lit = sample.locator(".phrase.hit").evaluate_all("all => all.map(one => Number(one.dataset.regions))")
    assert sorted(lit) == [number for number in range(REGIONS) if THINGS[number] == 3]
    phrase(sample, 37).click()
    phrase(sample, 23).click(modifiers=["Shift"])
    page.mouse.move(2, 2)
    assert labels_without_overlap(sample) == [23, 37]
    assert labels_to_read(sample) == ["very small and quite remark… 0.61", "red boy 0.79"]
    page.keyboard.press("Escape")
    assert set(visible_regions(sample).values()) == {1}
    expect(sample.locator("s.absent")).to_be_visible()
    expect(sample.locator(".presence")).to_have_text("0.12")


@pytest.mark.slow
def test_folded_regions_of_one_image_are_shown_on_demand(page: Page, crowded: Served) -> None:
    sample = opened(page, crowded)
    folded = [number for number in BEST if SCORES[number] < 0.5]
    sample.get_by_role("button", name=f"{REGIONS - len(LIKELY)} below 0.50").click()
    page.mouse.move(2, 2)
    assert sorted(visible_regions(sample)) == BEST
    page.keyboard.press("f")
    assert sorted(visible_regions(sample)) == [number for number in BEST if number not in folded]
    page.get_by_role("slider").fill("1")
    assert visible_regions(sample) == {}
    note = "one => getComputedStyle(one, '::after').content"
    assert sample.locator(".picture").evaluate(note) == '"No region of this score and size"'
    visible = visible_regions(
        opened(page, crowded, "&phrase=big+cow")
    )  # hits of a search are drawn, though folded away
    assert SCORES[2] < 0.5
    assert [number for number, opacity in visible.items() if opacity == 1] == [2]


def test_phrases_are_stepped_through_with_keys(page: Page, crowded: Served) -> None:
    sample = opened(page, crowded)
    sample.focus()
    told = page.locator("#spoken")
    drawn = {THINGS[number] for number in LIKELY}
    steps = [number for number in range(REGIONS) if THINGS[number] in drawn]
    for number in steps[:2]:
        page.keyboard.press("n")
        assert labels_without_overlap(sample) == [number]
        assert len(labels_to_read(sample)) == 1
        expect(phrase(sample, number)).to_be_focused()
        expect(phrase(sample, number)).to_have_attribute("aria-pressed", "true")
    expect(told).to_have_text(f"phrase 2 of {len(steps)}, score {SCORES[steps[1]]:.2f}")
    page.keyboard.press("p")
    assert labels_without_overlap(sample) == [steps[0]]
    page.keyboard.press("Escape")
    assert labels_without_overlap(sample) == sorted(visible_regions(sample))


def test_views_and_the_score_choose_what_is_drawn(page: Page, crowded: Served) -> None:
    sample = opened(page, crowded)
    page.get_by_label("all", exact=True).check(force=True)
    assert sorted(visible_regions(sample)) == LIKELY
    x, y = point_in(page, sample, 33)
    for number in (33, 23, 13):  # a click on the same place goes to the region below; 3 is folded away
        page.mouse.click(x, y)
        page.mouse.move(2, 2)
        assert labels_without_overlap(sample) == [number]
    page.get_by_role("slider").fill("0")
    assert len(visible_regions(sample)) == REGIONS
    page.get_by_label("this caption", exact=True).check(force=True)
    assert sorted(visible_regions(sample)) == [number for number in range(REGIONS) if CAPTIONS[number] == 0]
    sample.locator(".caption").nth(3).hover(position={"x": 1, "y": 4})
    assert sorted(visible_regions(sample)) == [number for number in range(REGIONS) if CAPTIONS[number] == 3]
    page.reload()  # remembered
    assert sorted(visible_regions(sample)) == [number for number in range(REGIONS) if CAPTIONS[number] == 0]
    page.keyboard.press("v")
    page.keyboard.press("v")
    assert sorted(visible_regions(sample)) == BEST
