"""Flickr30k Entities as ground truth, on a folder written by hand."""

from pathlib import Path

import pytest

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.truth.flickr30k import read_flickr30k
from phrasebox.stages.truth.ground_truth import TruthTarget
from tests.build.cases import cases
from tests.messages import expect_error

CAPTIONS = """\
[/EN#7/people Two men] hold [/EN#8/bodyparts/people the man 's arm] while [/EN#0/notvisual it] rains .
[/EN#9/scene A street] with [/EN#10/other signs] and [/EN#7/people  the men ] on it (as always) .
[/EN#11/other x] [/EN#7/people - ] [/EN#12/other z]
"""


def box(xmin: object, ymin: object, xmax: object, ymax: object) -> str:
    return f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"


def xml(
    *objects: str, size: str = "<size><width>500</width><height>375</height><depth>3</depth></size>"
) -> str:
    inner = "".join(f"<object>{entry}</object>" for entry in objects)
    return f"<annotation><filename>1.jpg</filename>{size}{inner}</annotation>"


OBJECTS = xml(
    "<name>7</name>" + box(1, 1, 100, 200),
    "<name>7</name><name>8</name>" + box(11, 21, 11, 22),
    "<name>9</name><scene>1</scene><nobndbox>0</nobndbox>",
    "<name>10</name><scene>0</scene><nobndbox>1</nobndbox>",
    "<name>0</name>" + box(1, 1, 2, 2),
    "<name>11</name>" + box(5, 5, 4, 9),
)


def written(
    folder: Path, captions: str = CAPTIONS, annotations: str | None = OBJECTS, name: str = "1"
) -> Path:
    for part in ("Sentences", "Annotations"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "Sentences" / f"{name}.txt").write_text(captions, encoding="utf-8")
    if annotations is not None:
        (folder / "Annotations" / f"{name}.xml").write_text(annotations, encoding="utf-8")
    return folder


def test_targets_of_two_captions(tmp_path: Path) -> None:
    truth = read_flickr30k(written(tmp_path))
    assert (truth.categories, list(truth.images)) == (frozenset(), ["1.jpg"])
    image = truth.images["1.jpg"]
    assert (image.file_name, image.width_px, image.height_px) == ("1.jpg", 500, 375)
    # pixels 1 to 100 are the half-open range 0 to 100
    large = (0, 0, 100, 200)
    tiny = (10, 20, 1, 2)
    first = "Two men hold the man 's arm while it rains ."
    second = "A street with signs and the men on it (as always) ."
    people = {"type": "people", "number": "plural", "size": "large"}
    arm = {"type": "bodyparts", "number": "singular", "size": "small"}
    both = (large, tiny)
    wanted = (
        ("two men", both, first, people),
        ("man's arm", (tiny,), first, arm),
        ("men", both, second, people),
    )
    assert image.targets == tuple(
        TruthTarget(phrase=phrase, boxes_xywh_px=boxes, match="phrase", caption=caption, groups=groups)
        for phrase, boxes, caption, groups in wanted
    )


def test_a_phrase_twice_in_a_caption_has_the_boxes_of_both_chains(tmp_path: Path) -> None:
    captions = (
        "[/EN#1/people A man] , [/EN#2/other the man] , [/EN#3/people a man] and [/EN#1/people a man]"
    )
    objects = xml(
        "<name>2</name>" + box(3, 3, 3, 3),
        "<name>1</name>" + box(1, 1, 1, 1),
        "<name>1</name><name>2</name>" + box(2, 2, 2, 2),
    )
    (target,) = read_flickr30k(written(tmp_path, captions, objects)).images["1.jpg"].targets
    assert target.boxes_xywh_px == ((2, 2, 1, 1), (0, 0, 1, 1), (1, 1, 1, 1))
    assert target.groups["type"] == "people"


def test_a_byte_order_mark_and_a_declared_encoding(tmp_path: Path) -> None:
    head = "\ufeff<?xml version='1.0' encoding='ISO-8859-1'?>"
    read = read_flickr30k(written(tmp_path, "\ufeff[/EN#7/people Zo\u00eb]\r\n", head + OBJECTS))
    (target,) = read.images["1.jpg"].targets
    assert (target.phrase, target.caption) == ("zo\u00eb", "Zo\u00eb")


def test_only_the_files_of_images_that_are_looked_up_are_read_and_no_hidden_ones(tmp_path: Path) -> None:
    written(tmp_path, name="2", annotations="damaged")
    written(tmp_path, name="1")
    (tmp_path / "Sentences" / "._1.txt").write_bytes(b"\x00\xff")
    truth = read_flickr30k(tmp_path)
    assert list(truth.images) == ["1.jpg", "2.jpg"]
    assert truth.images["1.jpg"].targets
    with expect_error(InputError):
        truth.images["2.jpg"]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>'


@cases(
    "annotations",
    {
        "missing": None,
        "zero byte": OBJECTS + "\x00",
        "entities": LAUGHS + OBJECTS,
        "external": "<!DOCTYPE a SYSTEM 'file:///etc/passwd'>" + OBJECTS,
        "no size": xml(size=""),
        "no name": xml(box(1, 1, 2, 2)),
        "empty name": xml("<name/>" + box(1, 1, 2, 2)),
        "empty box": xml("<name>1</name><bndbox/>"),
        "fraction": xml("<name>1</name>" + box(1, 1, 2.5, 2)),
    },
)
def test_damaged_annotations(tmp_path: Path, annotations: str | None) -> None:
    written(tmp_path, annotations=annotations)
    with expect_error(InputError):
        dict(read_flickr30k(tmp_path).images)


@pytest.mark.parametrize("line", ["[/EN#1/people a man", "[/EN#x/people a man]"])
def test_damaged_marks(tmp_path: Path, line: str) -> None:
    written(tmp_path, f"A fine line .\n{line}\n")
    with expect_error(InputError):
        dict(read_flickr30k(tmp_path).images)


def test_sentences_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with expect_error(InputError):
        read_flickr30k(tmp_path)
    written(tmp_path)
    (tmp_path / "Sentences" / "1.txt").write_bytes(b"\xff\xfe")
    with expect_error(InputError):
        dict(read_flickr30k(tmp_path).images)
