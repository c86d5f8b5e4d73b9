"""Boxes that came with the input, laid over the regions of heat maps, on cases counted by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phrasebox.stages.contract.errors import InputError, RowError
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import Absent, HeatMap, ImageRef, Phrase, Record, Sample
from phrasebox.stages.sources.box_matching import fit_of, heat_lift
from phrasebox.stages.sources.box_overlay import BoxOverlay
from phrasebox.stages.sources.boxes import NO_IMAGE_OF_THAT_NAME, BoxSourceConfig
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.build.records import HEIGHT, WIDTH, region
from tests.messages import expect_error

CAPTIONS = ("a man and a boy with two dogs", "the guy has a hat")
WORDS = (
    ("man", 0, "man"),
    ("boy", 0, "boy"),
    ("two dogs", 0, "dog"),
    ("guy", 1, "guy"),
    ("hat", 1, "hat"),
)
MAN, BOY, DOGS, GUY, HAT = range(5)
NAMES = ("person", "dog", "hat", "cat")

LEFT = (1.5, 2.25, 12.0, 20.5)
RIGHT = (24.0, 2.0, 12.0, 20.0)
IN_FRONT = ((4.0, 20.0, 6.0, 8.0), (25.0, 20.0, 8.0, 8.0))


def phrases() -> tuple[Phrase, ...]:
    made = []
    for text, caption, head in WORDS:
        start = CAPTIONS[caption].index(text)
        place = {"caption_index": caption, "start": start, "end": start + len(text)}
        made.append(Phrase(text=text, head=head, plural=text.endswith("s"), **place))
    return tuple(made)


def heat(text: str, *, right: bool) -> HeatMap:
    """All heat in the left or the right half of the image."""
    values = np.zeros((4, 4), np.float32)
    values[:, slice(2, 4) if right else slice(0, 2)] = 1.0
    return HeatMap(text=text, values=values, similarity=0.25)


def record(**fields: Any) -> Record:
    """The man and the guy are left, the boy and all else right. The hat is absent; what is not has a region."""
    sample = Sample(sample_id="a", source="x", captions=CAPTIONS, image=ImageRef(file_name="a.jpg"))
    maps = tuple(heat(text, right=text not in ("man", "guy")) for text, _, _ in WORDS)
    regions = tuple(
        region(index, (5, 5, 9, 9), score=0.5, similarity=0.25, presence=0.75, group=min(index, 3))
        for index in range(4)
    )
    absent = (Absent(phrase_index=HAT, presence=0.1, similarity=0.25),)
    made = Record(
        sample=sample,
        phrases=phrases(),
        width_px=WIDTH,
        height_px=HEIGHT,
        heat_maps=maps,
        regions=regions,
        absent=absent,
    )
    return replace(made, **fields)


def instances(folder: Path, *objects: tuple[str, Any], **size: int) -> Path:
    """By classes; an object is its class and its box."""
    image = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} | size
    annotations = [
        {"id": number, "image_id": 7, "category_id": NAMES.index(name), "bbox": list(box), "iscrowd": 0}
        for number, (name, box) in enumerate(objects)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    return write_json(folder / "instances.json", content)


def by_phrase(folder: Path, *objects: tuple[str, Any]) -> Path:
    """By phrases, as synthetic scenes have them."""
    image = {"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}
    annotations = [
        {"id": number, "image_id": 7, "phrase": phrase, "bbox": list(box)}
        for number, (phrase, box) in enumerate(objects)
    ]
    return write_json(folder / "truth.json", {"images": [image], "annotations": annotations})


def overlaid(truth: Path, source_record: Record, *, links: bool = True, **settings: Any) -> Record:
    stage = BoxOverlay(BoxSourceConfig(truth=truth, add_missing=True, **settings), links_phrases=links)
    stage.setup()
    (answer,) = stage.process([source_record])
    stage.teardown()
    return answer


def boxes(answer: Record) -> dict[int, list[Json]]:
    """Of each phrase the boxes that were given."""
    out: dict[int, list[Any]] = {}
    for one in answer.regions:
        if one.box_of == "given":
            out.setdefault(one.phrase_index, []).append(one.box_xywh_px)
    return out


def test_the_heat_says_which_of_two_people_a_box_shows(tmp_path: Path) -> None:
    """Whatever their order in the file. A guy is the man, by links or by his own heat, and keeps no other region."""
    for places in ((LEFT, RIGHT), (RIGHT, LEFT)):
        truth = instances(tmp_path, *(("person", place) for place in places))
        answer = overlaid(truth, record())
        found = boxes(answer)
        assert (found[MAN], found[BOY]) == ([LEFT], [RIGHT])
        assert [one.phrase_index for one in answer.regions if one.box_of != "given"] == [
            index for index in (DOGS, GUY) if index not in found
        ]


def test_a_box_stays_as_it_is(tmp_path: Path) -> None:
    """Edges between pixels too. It is certain, its mask lies in it, and it has the similarity of its phrase."""
    answer = overlaid(instances(tmp_path, ("person", LEFT)), record(phrases=phrases()[:1]))
    (one,) = answer.regions
    assert one.box_xywh_px == LEFT
    assert (one.score, one.presence, one.similarity, one.box_of) == (1.0, 1.0, 0.25, "given")
    rows, columns = np.nonzero(decode_mask(one.mask))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (2, 13, 2, 22)
    assert one.area_px == len(rows)
    beyond = overlaid(instances(tmp_path, ("person", (-5.0, 2.0, 15.0, 90.0))), record())
    assert boxes(beyond)[MAN] == [(0.0, 2.0, 10.0, HEIGHT - 2.0)], "cut at the edges"


def test_a_plural_has_several_boxes_and_an_absent_phrase_comes_back(tmp_path: Path) -> None:
    truth = instances(tmp_path, *(("dog", place) for place in IN_FRONT), ("hat", (2.0, 2.0, 5.0, 5.0)))
    answer = overlaid(truth, record())
    assert sorted(boxes(answer)[DOGS]) == sorted(IN_FRONT)
    assert boxes(answer)[HAT] == [(2.0, 2.0, 5.0, 5.0)]
    assert answer.absent == ()
    indices = [one.phrase_index for one in answer.regions]
    assert indices == sorted(indices), "regions are in the order of the phrases"


def test_what_no_box_answers_stays(tmp_path: Path) -> None:
    """A class that no phrase names, and one without boxes."""
    plain = record()
    for truth in (instances(tmp_path, ("cat", LEFT)), instances(tmp_path)):
        assert overlaid(truth, plain) is plain
    elsewhere = replace(plain, sample=replace(plain.sample, image=ImageRef(file_name="b.jpg")))
    answer = overlaid(truth, elsewhere)
    assert (answer.regions, answer.absent) == (plain.regions, plain.absent)
    assert answer.notes == (NO_IMAGE_OF_THAT_NAME,)
    failed = record(error=RowError(reason="bad_image", detail="x"))
    assert overlaid(truth, failed) is failed


def test_boxes_with_phrases_need_no_heat(tmp_path: Path) -> None:
    """Phrases with one box are one object, those with different boxes are two, whatever the links say."""
    truth = by_phrase(tmp_path, ("man", RIGHT), ("guy", RIGHT), ("boy", LEFT))
    answer = overlaid(truth, record(heat_maps=()))
    assert boxes(answer) == {MAN: [RIGHT], BOY: [LEFT], GUY: [RIGHT]}
    groups = {one.phrase_index: one.group for one in answer.regions}
    assert groups[MAN] == groups[GUY]
    assert len(set(groups.values())) == 3
    unlinked = overlaid(truth, record(), links=False)
    assert {one.group for one in unlinked.regions} == {None}
    assert boxes(unlinked) == boxes(answer)


def test_other_phrases_of_an_object_get_its_box(tmp_path: Path) -> None:
    """The dog of the second caption is that of the first, and only the first has a box."""
    captions = ("a brown dog runs", "the dog jumps")
    texts = ("brown dog", "dog")
    pair = tuple(
        Phrase(
            text=text,
            caption_index=number,
            start=captions[number].index(text),
            end=captions[number].index(text) + len(text),
            head="dog",
        )
        for number, text in enumerate(texts)
    )
    sample = replace(record().sample, captions=captions)
    maps = tuple(heat(text, right=True) for text in texts)
    regions = tuple(region(index, (5, 5, 9, 9), score=0.5, similarity=0.25, group=0) for index in (0, 1))
    dogs = record(sample=sample, phrases=pair, heat_maps=maps, regions=regions, absent=())
    truth = by_phrase(tmp_path, ("brown dog", LEFT))
    answer = overlaid(truth, dogs)
    assert boxes(answer) == {0: [LEFT], 1: [LEFT]}
    assert [one.presence for one in answer.regions] == [None, None], "presences are not known here"
    assert boxes(overlaid(truth, dogs, links=False)) == {0: [LEFT]}


def test_a_detector_s_boxes_have_its_scores(tmp_path: Path) -> None:
    truth = instances(tmp_path)
    results = [{"image_id": 7, "category_id": 0, "bbox": list(LEFT), "score": 0.625}]
    detections = write_json(tmp_path / "results.json", results)
    (one,) = overlaid(truth, record(phrases=phrases()[:1]), detections=detections).regions
    assert (one.score, one.box_xywh_px) == (0.625, LEFT)


def test_boxes_of_a_larger_image_move_only_if_that_is_said(tmp_path: Path) -> None:
    truth = instances(tmp_path, ("person", (10.0, 4.0, 20.0, 40.0)), width=2 * WIDTH, height=2 * HEIGHT)
    with expect_error(InputError):
        overlaid(truth, record())
    assert boxes(overlaid(truth, record(), resized=True))[MAN] == [(5.0, 2.0, 10.0, 20.0)]


@pytest.mark.parametrize(
    ("name", "text", "head", "fit"),
    [
        ("dog", "brown dog", "dog", "exact"),
        ("hot dog", "hot dog", "dog", "exact"),
        ("person", "small boy", "boy", "related"),
        ("dog", "animal", "animal", "related"),
        ("dining table", "wooden table", "table", "related"),
        ("dog", "cat", "cat", "none"),
        ("man", "tall woman", "woman", "none"),
        ("hat", "man", "man", "none"),
        ("zebra crossing", "sky", "sky", "none"),
    ],
)
def test_how_names_of_classes_fit_phrases(name: str, text: str, head: str, fit: str) -> None:
    assert fit_of(name, Phrase(text=text, caption_index=0, start=0, end=len(text), head=head)) == fit


def test_phrases_in_other_languages_fit_english_names() -> None:
    boy = Phrase(text="petit garçon", caption_index=0, start=0, end=12, head="garçon", language="fr")
    assert [fit_of(name, boy) for name in ("person", "garçon", "dog")] == ["related", "exact", "none"]


def test_the_lift_of_heat_is_what_a_box_holds_beyond_its_size() -> None:
    levels = np.full((3, 5), 7, np.uint8)
    assert heat_lift(levels, (1.3, 0.2, 2.0, 4.0), (9, 10)) == pytest.approx(0, abs=1e-6)
    levels[1, 2] = 255
    inside = heat_lift(levels, (4.0, 3.0, 2.0, 3.0), (9, 10))
    assert inside == pytest.approx(255 / (255 + 14 * 7) - 6 / 90, abs=1e-6)
    shifted = heat_lift(levels, (6.0, 6.0, 2.0, 3.0), (9, 10), shift_cells=1.0)
    assert shifted == inside
    assert heat_lift(np.zeros((3, 5), np.uint8), (0, 0, 10, 9), (9, 10)) == -1
