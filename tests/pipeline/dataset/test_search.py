"""Searches as SQL: texts stay texts, and what is exported is what is shown."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.selection import Search, Selection, Selector
from tests.build.datasets import Json
from tests.pipeline.dataset.plain import CONDITIONS, find, marks_of

TEXTS = (
    "dog",
    "MAN",
    " red   car ",
    "it's",
    "a -- b",
    "/* c",
    "'",
    "''); DROP TABLE regions; --",
    "%",
    "piñata",
    "\\",
)


def test_a_comment_hides_no_condition() -> None:
    assert (
        Search(where="w > h OR true -- all", mark="bad").condition()
        == "(\nw > h OR true -- all\n) AND mark = 'bad'"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"score_min": 1.5},
        {"area_max": -0.1},
        {"regions_min": -1},
        {"mark": "great"},
        {"sort": "x"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_what_is_no_search(values: Json) -> None:
    with pytest.raises(ValidationError):
        Search.model_validate(values)


SHARES = st.none() | st.integers(0, 10_000).map(lambda number: number / 10_000)
COUNTS = st.none() | st.integers(0, 6)
SEARCHES = st.builds(
    Search,
    phrase=st.sampled_from(("", "", *TEXTS)),
    head=st.sampled_from(("", "", "", "dog", "Woman", "it's")),
    score_min=SHARES,
    score_max=SHARES,
    area_min=SHARES,
    area_max=SHARES,
    where=st.sampled_from(("", *CONDITIONS)),
    regions_min=COUNTS,
    regions_max=COUNTS,
    mark=st.sampled_from(("", "", "good", "bad", "none", "any")),
)


@pytest.mark.slow
@settings(max_examples=15)
@example(search=Search(phrase="man", mark="none", where="w > h"))
@example(search=Search(head="dog", regions_min=2, where="caption ILIKE '% beside %' -- side by side"))
@given(search=SEARCHES)
def test_any_search_exports_what_it_shows(search: Search, index: Index, whole: Any, rows: Any) -> None:
    """The exported regions are those shown and those of plain Python."""
    marks = marks_of(rows)
    answer = Selector(Selection(where=search.condition(), marks=marks)).choose(whole)
    exported = [(row, a) for row, found in enumerate(answer["annotations"].to_pylist()) for a in found]
    shown = index.ask(search, "SELECT row, phrase, score, x, y, w, h FROM hit_regions")
    assert Counter((row, a["phrase"], a["score"], *a["bbox"]) for row, a in exported) == Counter(shown)
    expected = [(one.number, region["id"]) for one in find(rows, marks, search) for region in one.regions]
    assert [(row, a["id"]) for row, a in exported] == expected
