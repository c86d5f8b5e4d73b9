"""From rows to views: captions in parts, groups and colours, and what a damaged row becomes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.viewer.sample_view import COLOURS, COLUMNS, SampleView, caption_parts, sample_view
from stages.contract.masks import encode_mask
from tests.build.datasets import Json

CAPTION = "A man with a café cup 🙂 and two dogs"

Mention = tuple[str, int, int]


def spans(*mentions: Mention) -> list[tuple[int, int, Json]]:
    """Numbers, groups and fields of regions with these phrases and spans; each phrase is a group."""
    groups = list(dict.fromkeys(phrase for phrase, *_ in mentions))
    return [
        (number, groups.index(phrase), {"phrase": phrase, "span": [start, end]})
        for number, (phrase, start, end) in enumerate(mentions)
    ]


def test_phrases_that_are_not_there() -> None:
    """Also within others, and around them."""
    absent = [{"phrase": "cup", "span": [18, 21]}, {"phrase": "the end", "span": [22, 36]}]
    parts = caption_parts(CAPTION, spans(("man with a café cup", 2, 21), ("two dogs", 28, 36)), absent)
    assert [
        (part.text, part.regions, part.absent and part.absent["phrase"], part.ends) for part in parts
    ] == [
        ("A ", (), None, False),
        ("man with a café ", (0,), None, False),
        ("cup", (0,), "cup", True),
        (" ", (), None, False),
        ("🙂 and ", (), "the end", False),
        ("two dogs", (1,), "the end", True),
    ]


SPAN = st.tuples(st.integers(0, 40), st.integers(1, 40)).map(lambda span: (span[0], span[0] + span[1]))


@given(st.lists(SPAN, max_size=6), st.lists(SPAN, max_size=6))
def test_parts_make_the_caption(
    spans_of_regions: list[tuple[int, int]], missing: list[tuple[int, int]]
) -> None:
    """Also where phrases overlap, or where a damaged span leaves the caption."""
    regions = spans(*((f"p{number}", *span) for number, span in enumerate(spans_of_regions)))
    cuts = caption_parts(CAPTION, regions, [{"span": list(span)} for span in missing])
    assert "".join(part.text for part in cuts) == CAPTION
    at = 0
    for part in cuts:
        for place in range(at, at + len(part.text)):
            around = [span for span in spans_of_regions if span[0] <= place < span[1]]
            shortest = min((end - start for start, end in around), default=None)
            lengths = {spans_of_regions[number][1] - spans_of_regions[number][0] for number in part.regions}
            assert lengths == (set() if shortest is None else {shortest})
            assert (part.group is None) == (not around)
            assert (part.absent is None) == (not any(start <= place < end for start, end in missing))
        at += len(part.text)


def annotation(number: int, phrase: str, caption_index: int, **fields: Any) -> Json:
    """A rectangle of 10 x 5 pixels in an image of 80 x 60."""
    mask = np.zeros((60, 80), np.bool_)
    mask[7:12, 10 * number : 10 * number + 10] = True
    rle = encode_mask(mask)
    return {
        "id": 100 + number,
        "phrase": phrase,
        "head": phrase.rsplit(maxsplit=1)[-1],
        "score": 0.5 + number / 100,
        "similarity": 0.25,
        "area": 50.0,
        "bbox": [10.0 * number, 7.0, 10.0, 5.0],
        "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
        "caption_index": caption_index,
        "span": [2, 5],
        **dict.fromkeys(("presence", "group")),
        **fields,
    }


def row_of(*annotations: Json, **fields: Any) -> Json:
    row = {
        "id": 7,
        "sample_id": "s7",
        "file_name": "7.jpg",
        "width": 80,
        "height": 60,
        "captions": ["A man.", "A dog."],
        "annotations": list(annotations),
        "phrase_count": 3,
        "warnings": ["no region for 'cup'"],
        **dict.fromkeys(("error", "error_detail")),
        "absent": [],
    }
    assert tuple(row) == COLUMNS
    return {**row, **fields}


def view_of(*annotations: Json, hit_ids: set[int] | None = None, **fields: Any) -> SampleView:
    return sample_view(row_of(*annotations, **fields), 0, None, hit_ids)


def test_a_view() -> None:
    row = row_of(annotation(0, "man", 0), annotation(1, "dog", 1), annotation(2, "man", 0))
    view = sample_view(row, 3, "good", hit_ids={101})
    assert (view.number, view.row, view.mark) == (3, row, "good")
    parts = [[(part.text, part.regions, part.group) for part in caption] for caption in view.captions]
    assert parts == [
        [("A ", (), None), said, (".", (), None)] for said in (("man", (0, 2), 0), ("dog", (1,), 1))
    ]
    assert [region.is_hit for region in view.regions] == [False, True, False]
    assert [region.group for region in view.regions] == [0, 1, 0], "of the phrase"
    assert [region.number for region in view.regions] == [0, 1, 2]
    assert all(region.leads for region in view.regions), "all regions of a phrase"
    dog = view.regions[1]
    assert (dog.annotation, dog.label, dog.captions) == (row["annotations"][1], "dog 0.51", (1,))
    assert dog.area_share == 50 / 4800
    assert dog.path == "M10 7L10 12L20 12L20 7Z"
    assert view.captions[1][1].colour == dog.colour == 1
    plain = view_of(*row["annotations"])
    assert [region.is_hit for region in plain.regions] == [None] * 3, "no search asks for one"
    assert plain.mark == ""


def test_phrases_of_a_group_share_a_colour_and_the_best_leads() -> None:
    long = "a very long puppy beside others"
    names = (("dog", 5, 0.2), ("man", 7, 0.3), (long, 5, 0.9), ("thing", None, 0.5), ("pup", 5, 0.4))
    entries = [annotation(n, phrase, 0, group=g, score=s) for n, (phrase, g, s) in enumerate(names)]
    view = view_of(*entries)
    leads = [(0, False), (1, True), (0, True), (2, True), (0, False)]
    assert [(region.group, region.leads) for region in view.regions] == leads
    assert [[region.number for region in group] for group in view.groups] == [[2, 4, 0], [1], [3]]
    assert view.regions[2].label == "a very long puppy beside ot… 0.90"
    assert view.object_count is None, "not all of them are known"
    assert view_of(*entries[:3]).object_count == 2
    widths = [region.outline_px for region in view.regions]
    assert sorted(range(5), key=lambda n: widths[n]) == sorted(range(5), key=lambda n: names[n][2])


def test_absent_phrases_are_listed_once() -> None:
    fields = {"phrase": "cat", "head": "cat", "span": [2, 5], "presence": 0.1, "similarity": 0.2}
    view = view_of(annotation(0, "dog", 1), absent=[{**fields, "caption_index": index} for index in (0, 1)])
    assert [entry["phrase"] for entry in view.absent] == ["cat"]
    assert [[part.absent is not None for part in caption] for caption in view.captions] == [
        [False, True, False]
    ] * 2


def test_what_several_captions_say_in_the_same_words_is_drawn_once() -> None:
    first = annotation(0, "man", 0)
    other = annotation(2, "man", 1)
    dog = annotation(3, "dog", 1)
    view = view_of(first, {**first, "id": 101, "caption_index": 1}, other, dog, hit_ids={101})
    drawn = [(region.number, len(region.captions), region.is_hit) for region in view.regions]
    assert drawn == [(0, 2, True), (2, 1, False), (3, 1, False)]
    assert [part.regions for part in view.captions[0] if part.regions] == [(0,)]
    assert {number for part in view.captions[1] for number in part.regions} == {0, 2, 3}


def test_more_phrases_than_colours() -> None:
    """A colour is used again; regions of one phrase share theirs."""
    phrases = [f"dog {number}" for number in range(COLOURS + 3)] * 2
    view = view_of(*(annotation(number % 8, phrase, 1) for number, phrase in enumerate(phrases)))
    colours = [region.colour for region in view.regions]
    assert set(colours) == set(range(COLOURS))
    assert colours[: COLOURS + 3] == colours[COLOURS + 3 :]


@pytest.mark.parametrize("counts", ["", "0é", "3"])
def test_a_damaged_mask_leaves_the_box(counts: str) -> None:
    damaged = annotation(1, "dog", 1, segmentation={"size": [60, 80], "counts": counts})
    first, second = view_of(annotation(0, "man", 0), damaged).regions
    assert first.path
    assert (second.path, second.annotation["bbox"]) == ("", [10, 7, 10, 5])
