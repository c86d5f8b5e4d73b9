"""From rows to views: captions in parts, groups and colours, and what a damaged row becomes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phrasebox.pipeline.viewer.sample_view import COLUMNS, caption_parts, sample_view
from tests.build.datasets import Json, rows_of
from tests.pipeline.export.datasets import Maker, finished

CAPTION = "A man with a café cup 🙂 and two dogs"

Mention = tuple[str, int, int]


def spans(*mentions: Mention) -> list[tuple[int, int, Json]]:
    """Numbers, groups and fields of regions with these phrases and spans; each phrase is a group."""
    groups = list(dict.fromkeys(phrase for phrase, *_ in mentions))
    return [
        (number, groups.index(phrase), {"phrase": phrase, "span": [start, end]})
        for number, (phrase, start, end) in enumerate(mentions)
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
            lengths = [end - start for start, end in spans_of_regions if start <= place < end]
            drawn = {spans_of_regions[number][1] - spans_of_regions[number][0] for number in part.regions}
            assert drawn == ({min(lengths)} if lengths else set())
            assert (part.group is None) == (not lengths)
            assert (part.absent is None) == (not any(start <= place < end for start, end in missing))
            assert part.absent is None or part.ends == (part.absent["span"][1] == at + len(part.text))
        at += len(part.text)


@pytest.fixture
def row(tmp_path: Path) -> Json:
    """Two captions say the cat that is not there, and the dog, which is drawn once."""
    place = {"group": None, "score": 0.5}
    captions = ("A man, a dog, no cat", "A dog, no cat")
    record = Maker().record(
        "s7",
        captions,
        ("man", (0, 7, 10, 5), 0, place),
        ("dog", (10, 7, 9, 5), 0, place),
        ("dog", (10, 7, 9, 5), 1, place),
        ("man", (20, 7, 8, 5), 0, place),
        absent=[("cat", 0), ("cat", 1)],
    )
    (values,) = rows_of(finished(tmp_path / "dataset", [record]))
    return {name: values[name] for name in COLUMNS}


def test_a_view(row: Json) -> None:
    dogs = [entry["id"] for entry in row["annotations"][1:3]]
    view = sample_view(row, 3, "good", hit_ids={dogs[1]})
    assert (view.number, view.row, view.mark) == (3, row, "good")
    parts = [
        [(part.text, part.regions, part.group) for part in caption if part.regions]
        for caption in view.captions
    ]
    assert parts == [[("man", (0, 3), 0), ("dog", (1,), 1)], [("dog", (1,), 1)]]
    assert [entry["phrase"] for entry in view.absent] == ["cat"]
    drawn = [(region.number, region.group, region.is_hit) for region in view.regions]
    assert drawn == [(0, 0, False), (1, 1, True), (3, 0, False)]
    assert all(region.leads for region in view.regions), "all regions of a phrase"
    dog = view.regions[1]
    assert (dog.annotation, dog.label, dog.captions) == (row["annotations"][1], "dog 0.50", (0, 1))
    assert dog.area_share == 45 / 1200
    assert dog.path == "M10 7L10 12L19 12L19 7Z"
    plain = sample_view(row, 3, None, None)
    assert [region.is_hit for region in plain.regions] == [None] * 3, "no search asks for one"
    assert plain.mark == ""


def test_phrases_of_a_group_share_a_colour_and_the_best_leads(row: Json) -> None:
    long = "a very long puppy beside others"
    names = (("dog", 5, 0.2), ("man", 7, 0.3), (long, 5, 0.9), ("thing", None, 0.5))
    entries = [
        {**entry, "bbox": [number, 0, 9, 9], "phrase": phrase, "group": group, "score": score}
        for number, (entry, (phrase, group, score)) in enumerate(
            zip(row["annotations"], names, strict=True)
        )
    ]
    view = sample_view({**row, "annotations": entries}, 0, None, None)
    regions = sorted(view.regions, key=lambda region: region.number)
    assert [(region.group, region.leads) for region in regions] == [
        (0, False),
        (1, True),
        (0, True),
        (2, True),
    ]
    assert [[region.number for region in group] for group in view.groups] == [[2, 0], [1], [3]]
    assert regions[2].label == "a very long puppy beside ot… 0.90"
    assert view.object_count is None, "not all of them are known"
    assert sample_view({**row, "annotations": entries[:3]}, 0, None, None).object_count == 2
    widths = [region.outline_px for region in regions]
    assert sorted(range(4), key=lambda n: widths[n]) == [0, 1, 3, 2]


@pytest.mark.parametrize("counts", ["", "0é", "3"])
def test_a_damaged_mask_leaves_the_box(counts: str, row: Json) -> None:
    row["annotations"][0]["segmentation"]["counts"] = counts
    regions = {region.number: region for region in sample_view(row, 0, None, None).regions}
    assert regions[1].path
    assert (regions[0].path, regions[0].annotation["bbox"]) == ("", [0, 7, 10, 5])
