"""From rows to views: captions in parts, places of labels, colours, and what a damaged row becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.viewer.sample_view import (
    COLOURS,
    COLUMNS,
    LABEL_HALO,
    caption_parts,
    label_places,
    label_width,
    sample_view,
)
from stages.contract.masks import encode_mask
from stages.contract.records import Rle
from stages.dataset.folder import open_dataset
from stages.images.pictures import mask_path

CAPTION = "A man with a café cup 🙂 and two dogs"


def spans(*found: tuple[str, int, int]) -> list[tuple[int, dict[str, Any]]]:
    """Numbers and fields of regions with these phrases and spans."""
    return [(number, {"phrase": phrase, "span": [start, end]}) for number, (phrase, start, end) in enumerate(found)]


def cut(*found: tuple[str, int, int]) -> list[tuple[str, tuple[int, ...], int | None]]:
    """The parts of the caption as plain values."""
    colours: dict[str, int] = {}
    for phrase, *_ in found:
        colours.setdefault(phrase, len(colours))
    return [(part.text, part.regions, part.colour) for part in caption_parts(CAPTION, spans(*found), colours)]


def test_a_caption_without_regions_is_one_part() -> None:
    assert cut() == [(CAPTION, (), None)]
    assert caption_parts("", [], {}) == []


def test_phrases_side_by_side() -> None:
    assert cut(("man", 0, 5), ("two dogs", 28, 36)) == [
        ("A man", (0,), 0),
        (" with a café cup 🙂 and ", (), None),
        ("two dogs", (1,), 1),
    ]


def test_a_phrase_in_another() -> None:
    """The innermost gives the colour; the outer one goes on after it."""
    assert cut(("man with a café cup", 2, 21), ("café", 13, 17), ("cup", 18, 21)) == [
        ("A ", (), None),
        ("man with a ", (0,), 0),
        ("café", (0, 1), 1),
        (" ", (0,), 0),
        ("cup", (0, 2), 2),
        (" 🙂 and two dogs", (), None),
    ]


def test_several_regions_of_one_phrase() -> None:
    assert cut(("two dogs", 28, 36), ("two dogs", 28, 36))[-1] == ("two dogs", (0, 1), 0)


SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 40)).map(lambda span: (span[0], span[0] + span[1])), max_size=6
)


@given(SPANS)
def test_parts_make_the_caption(found: list[tuple[int, int]]) -> None:
    """Also where phrases overlap, or where a damaged span leaves the caption."""
    regions = spans(*((f"p{number}", *span) for number, span in enumerate(found)))
    cuts = caption_parts(CAPTION, regions, {f"p{number}": number for number in range(6)})
    assert "".join(part.text for part in cuts) == CAPTION
    at = 0
    for part in cuts:
        for place in range(at, at + len(part.text)):
            assert part.regions == tuple(n for n, (start, end) in enumerate(found) if start <= place < end)
        lengths = {number: found[number][1] - found[number][0] for number in part.regions}
        assert part.colour is None if not lengths else lengths[part.colour] == min(lengths.values())
        at += len(part.text)


BOXES = st.tuples(st.floats(0, 639), st.floats(0, 479), st.floats(1, 100), st.floats(1, 100))


@given(st.lists(st.tuples(BOXES, st.text("iaw", min_size=5, max_size=20)), max_size=8))
def test_labels_stay_inside_and_beside_each_other(found: list[tuple[tuple[float, ...], str]]) -> None:
    """Eight labels always have room in a picture of 16 lines; their coloured edges included."""
    text_px = 640 / 26
    places = label_places([box for box, _ in found], [label for _, label in found], text_px, (640, 480))
    halo = LABEL_HALO * text_px
    drawn = [(x, y, x + text_px * label_width(label)) for (x, y), (_, label) in zip(places, found, strict=True)]
    for number, (left, base, right) in enumerate(drawn):
        assert left >= halo
        assert right <= 640 - halo + 1e-6
        assert text_px <= base <= 480 - halo
        for start, line, end in drawn[:number]:
            apart = right + 2 * halo <= start or end + 2 * halo <= left
            assert apart or abs(base - line) >= 1.2 * text_px - 1e-6


def test_a_label_stands_in_its_box() -> None:
    assert label_places([(100, 50, 80, 80)], ["dog 0.50"], 20, (640, 480)) == [(105, 70)]
    assert label_places([(100, 479, 80, 1)], ["dog 0.50"], 20, (640, 480)) == [(105, 472)], "at the lower border"
    [(x, y)] = label_places([(639, 0, 1, 1)], ["dog 0.50"], 20, (640, 480))
    assert (x, y) == (pytest.approx(640 - 20 * (label_width("dog 0.50") + LABEL_HALO)), 20)


def test_labels_of_one_place_go_down_then_up() -> None:
    box = (10, 420, 50, 50)
    lines = [y for _, y in label_places([box] * 4, ["dog 0.50"] * 4, 20, (640, 480))]
    assert lines == pytest.approx([440, 464, 416, 392])


def test_a_label_goes_where_there_is_room_between_others() -> None:
    boxes = [(10, y, 50, 50) for y in (0, 24, 80, 100)]
    lines = [y for _, y in label_places([*boxes, (10, 10, 5, 5)], ["dog 0.50"] * 5, 20, (640, 480))]
    assert lines == pytest.approx([20, 44, 100, 124, 68])


@pytest.mark.parametrize("size", [(1, 1), (640, 3), (3, 640), (640, 480)], ids=str)
def test_more_labels_than_room(size: tuple[int, int]) -> None:
    """They lie over one another."""
    places = label_places([(0, 0, 1, 1)] * 100, ["a long phrase 0.50"] * 100, max(size) / 26, size)
    assert len(places) == 100
    assert len(set(places)) < 30


def annotation(number: int, phrase: str, caption_index: int, **fields: Any) -> dict[str, Any]:
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
        **fields,
    }


def row_of(*annotations: dict[str, Any], **fields: Any) -> dict[str, Any]:
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
        "error": None,
        "error_detail": None,
    }
    assert tuple(row) == COLUMNS
    return {**row, **fields}


def test_a_view() -> None:
    row = row_of(annotation(0, "man", 0), annotation(1, "dog", 1), annotation(2, "man", 0))
    one = sample_view(row, 3, "good", found={101}, lines=20)
    assert (one.number, one.row) == (3, row)
    assert (one.mark, one.text_px) == ("good", 4)
    assert [[(part.text, part.regions) for part in caption] for caption in one.captions] == [
        [("A ", ()), ("man", (0, 2)), (".", ())],
        [("A ", ()), ("dog", (1,)), (".", ())],
    ]
    assert [region.found for region in one.regions] == [False, True, False]
    assert [region.colour for region in one.regions] == [0, 1, 0], "of the phrase"
    assert [region.number for region in one.regions] == [0, 1, 2]
    dog = one.regions[1]
    assert (dog.annotation, dog.label) == (row["annotations"][1], "dog 0.51")
    assert dog.area_share == 50 / 4800
    assert dog.path == "M10 7L10 12L20 12L20 7Z"
    assert dog.label_xy_px == (11, pytest.approx(15.8)), "below the first one's"
    assert one.captions[1][1].colour == dog.colour


def test_what_several_captions_say_in_the_same_words_is_drawn_once() -> None:
    again = [annotation(number, "man", caption) for number, caption in ((0, 0), (1, 1), (2, 1))]
    again[1] = {**again[0], "id": 101, "caption_index": 1}
    one = sample_view(row_of(*again, annotation(3, "dog", 1)), 0, None, found={101})
    assert [(region.number, region.times, region.found) for region in one.regions] == [
        (0, 2, True),
        (2, 1, False),
        (3, 1, False),
    ]
    assert [part.regions for part in one.captions[0] if part.regions] == [(0,)]
    assert {number for part in one.captions[1] for number in part.regions} == {0, 2, 3}


def test_without_a_search_all_regions_are_found() -> None:
    one = sample_view(row_of(annotation(0, "man", 0), annotation(1, "dog", 1)), 0, None, None)
    assert [region.found for region in one.regions] == [True, True]
    assert one.mark == ""


def test_more_phrases_than_colours() -> None:
    """A colour is used again; regions of one phrase share theirs."""
    phrases = [f"dog {number}" for number in range(COLOURS + 3)] * 2
    row = row_of(*(annotation(number % 8, phrase, 1) for number, phrase in enumerate(phrases)))
    colours = [region.colour for region in sample_view(row, 0, None, None).regions]
    assert set(colours) == set(range(COLOURS))
    assert colours[: COLOURS + 3] == colours[COLOURS + 3 :]
    assert colours[COLOURS] == colours[0]


def test_long_phrases_are_cut_in_labels_only() -> None:
    phrase = "a very long phrase about many things beside each other"
    region = sample_view(row_of(annotation(0, phrase, 0)), 0, None, None).regions[0]
    assert region.annotation["phrase"] == phrase
    assert region.label == "a very long phrase about ma… 0.50"


@pytest.mark.parametrize(
    ("width", "label"), [(600, "mushroom 0.50"), (180, "mushro… 0.50"), (120, "m… 0.50"), (80, "0.50")]
)
def test_labels_of_narrow_images_are_cut(width: int, label: str) -> None:
    row = row_of(annotation(0, "mushroom", 0), width=width, height=600)
    one = sample_view(row, 0, None, None, lines=30)
    assert one.regions[0].label == label
    left = one.regions[0].label_xy_px[0]
    assert left + label_width(label) * one.text_px <= width


@pytest.mark.parametrize("counts", ["", "0é", "3"])
def test_a_damaged_mask_leaves_the_box(counts: str) -> None:
    damaged = annotation(1, "dog", 1, segmentation={"size": [60, 80], "counts": counts})
    first, second = sample_view(row_of(annotation(0, "man", 0), damaged), 0, None, None).regions
    assert first.path
    assert second.path == ""
    assert second.annotation["bbox"] == [10, 7, 10, 5]


def test_a_row_with_an_error() -> None:
    row = row_of(width=0, height=0, phrase_count=0, warnings=[], error="missing_image")
    row["error_detail"] = "no file 7.jpg"
    one = sample_view(row, 0, "bad", None)
    assert (one.regions, one.mark, one.text_px) == ([], "bad", 0)
    assert [[part.text for part in caption] for caption in one.captions] == [["A man."], ["A dog."]]


def test_rows_of_a_dataset(synthetic_dataset: Path) -> None:
    """Captions come out as they are, and what belongs to a region are its phrase's words."""
    seen = 0
    for number, row in enumerate(open_dataset(synthetic_dataset).rows(COLUMNS)):
        if number % 12:
            continue
        one = sample_view(row, number, None, None)
        assert ["".join(part.text for part in caption) for caption in one.captions] == row["captions"]
        for region, a in zip(one.regions, row["annotations"], strict=True):
            words = "".join(part.text for part in one.captions[a["caption_index"]] if region.number in part.regions)
            assert a["phrase"] in words.lower()
            assert region.path == mask_path(
                Rle(size_hw=tuple(a["segmentation"]["size"]), counts=a["segmentation"]["counts"])
            )
            assert region.path
            seen += 1
    assert seen > 80
