"""No number of the documentation is typed by hand: tables are those of the JSON, and sentences state what is in it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.figures import pages
from tests.build.files import write_json

OTHER = {
    "docs/how-to/fine-tune.md": {},
    "README.md": {"95": "level of intervals", "0.5": "IoU", "2.0": "licence", "3.11": "Python"},
}
"""Text -> its numbers that are no figures of a page, each with what it is."""

KEYS = {"id", "step", "command", "commit", "n", "split", "model", "settings", "columns", "rows"}


@pytest.mark.parametrize("page", pages.pages())
def test_tables_are_those_of_the_json(page: str) -> None:
    text = (pages.MEASURED / f"{page}.md").read_text("utf-8")
    known = pages.contents(page)
    assert pages.rendered(page, text) == text, (
        "`python -m benchmarks.figures` writes the tables into the pages"
    )
    assert [found[1] for found in pages.MARKED.finditer(text)] == [table["id"] for table in known["tables"]]
    for table in known["tables"]:
        assert table.keys() == KEYS
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert pages.as_json(known) == (pages.MEASURED / f"{page}.json").read_text("utf-8")


@pytest.mark.parametrize("page", pages.pages())
def test_sentences_state_figures_of_the_json(page: str) -> None:
    text = (pages.MEASURED / f"{page}.md").read_text("utf-8")
    other = pages.contents(page)["other"]
    assert pages.unknown(text, [page], other) == []
    assert other.keys() <= set(pages.figures_of(text)), "an exception that nothing needs"


@pytest.mark.parametrize("page", pages.pages())
def test_steps_make_all_figures(page: str) -> None:
    known = pages.contents(page)
    for entry in (*known["tables"], *known["said"]):
        assert entry["step"], f"typed by hand: {entry.get('id', entry.get('about'))}"
        assert entry["command"], "each figure has a command"
        assert entry["commit"], "each figure has the commit that it was measured at"


@pytest.mark.parametrize("name", OTHER)
def test_other_pages_state_figures_of_the_pages(name: str) -> None:
    text = (pages.ROOT / name).read_text("utf-8")
    assert len(pages.figures_of(text)) > 3
    assert pages.unknown(text, pages.pages(), OTHER[name]) == []
    # Most shares of three decimals stand on some page: a paragraph or list names those that have its own.
    for part in re.split(r"\n\s*\n", text):
        if any(len(figure.partition(".")[2]) == 3 for figure in pages.figures_of(part)):
            own = set(re.findall(r"benchmarks/(\w+)\.md", part)) | set(
                re.findall(r"<!-- figures: (\w+)", part)
            )
            assert own, f"no page: {part}"
            assert pages.unknown(part, sorted(own), OTHER[name]) == []
    assert OTHER[name].keys() <= set(pages.figures_of(text)), "an exception that nothing needs"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Box recall is 0.853 (0.833-0.874).", ["0.853", "0.833", "0.874"]),
        (
            "It loses 0.033 (-0.071 to -0.008), or 19 to 22 % of 1,000.",
            ["0.033", "0.071", "0.008", "19", "22"],
        ),
        ("5.4 % of `regions.smooth_patches: 1.5`, see [there](a-0.3.md)", ["5.4"]),
        ("<!-- table: x -->\n| 0.3 |\n<!-- end -->\n0.4 of version 1.2.3", ["0.4"]),
    ],
)
def test_figures_are_found_in_sentences(text: str, found: list[str]) -> None:
    assert pages.figures_of(text) == found


@pytest.fixture
def page(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page of one table with every form of a cell."""
    table = dict.fromkeys(("step", "command", "split", "model", "settings")) | {
        "id": "a",
        "commit": "1234567",
        "n": "3 phrases",
        "columns": ["", "recall", "gain", ["kept", "{:.0f} %"]],
        "rows": [
            [
                "**ours**",
                {"value": 0.5, "low": 0.4, "high": 0.61, "bold": True},
                {"value": 0.1, "mark": "+"},
                92,
            ],
            ["theirs", [0.25, None], {"value": -0.1, "low": -0.2, "high": 0.0}, None],
            ["neither", {"value": 0.3, "worst": 0.7}, "text", {"value": None}],
        ],
    }
    monkeypatch.setattr(pages, "MEASURED", tmp_path)
    write_json(tmp_path / "p.json", {"tables": [table], "said": [], "other": {}})
    (tmp_path / "p.md").write_text("# P\n\n<!-- table: a -->\n<!-- end -->\n", encoding="utf-8")
    return "p"


def test_a_table_shows_values_intervals_marks_and_its_origin(page: str) -> None:
    pages.render()
    assert (pages.MEASURED / "p.md").read_text("utf-8").splitlines()[2:] == [
        "<!-- table: a -->",
        "|  | recall | gain | kept |",
        "|---|---|---|---|",
        "| **ours** | **0.500 (0.400-0.610)** | 0.100+ | 92 % |",
        "| theirs | 0.250 /  | -0.100 (-0.200 to 0.000) |  |",
        "| neither | 0.300 (0.700) | text |  |",
        "",
        "3 phrases · commit 1234567",
        "<!-- end -->",
    ]


def test_a_figure_is_known_as_it_is_rounded(page: str) -> None:
    assert pages.unknown("0.61, 0.6, 92 %, 50 % and 0.62, 93 %; 7.5", [page], {"7.5": "a version"}) == [
        "0.62",
        "93",
    ]


def test_what_is_made_anew_replaces_what_was_known(page: str) -> None:
    new = pages.contents(page)["tables"][0] | {"rows": [["ours", 0.7, 0.2, 90]]}
    pages.put(
        page, tables=[new, new | {"id": "b"}], sentences=[{"about": "a difference", "values": [0.04]}]
    )
    known = pages.contents(page)
    assert [(table["id"], table["rows"][0][1]) for table in known["tables"]] == [("a", 0.7), ("b", 0.7)]
    assert pages.unknown("0.70, 0.04 and 0.61", [page], {}) == ["0.61"]
