"""Questions and answers about regions: what is asked, and that no record is broken."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.export.chat.interview import (
    ABSENT,
    INCOMPLETE,
    NESTED,
    RESERVED_CAPTIONS,
    UNANSWERED,
)
from phrasebox.pipeline.export.chat.objects import OUTSIDE, RESERVED, TOO_LONG
from phrasebox.pipeline.export.chat.styles import STYLES
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.masks import decode_mask, encode_box
from tests.build.datasets import Json
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished

BOY = (2, 2, 10, 20)
DOG = (20, 2, 5, 5)
PUPPY = (30, 2, 6, 6)


def records() -> list[Any]:
    """Four images: objects with several phrases, absent ones, words that are markup, a box beyond the image."""
    made = Maker().grouped
    family = made(
        "family",
        ("A boy with {two}\n dogs", "the child [1, 2] runs", "a lad", "two dogs"),
        ("boy", 0, BOY, 0, 0.5),
        ("child", 1, BOY, 0, 0.5),
        ("lad", 2, BOY, 0, 0.5),
        ("dogs", 0, PUPPY, 1, 0.5),
        ("dogs", 0, DOG, 1, 0.5),
        ("two dogs", 3, PUPPY, 1, 0.5),
        ("two dogs", 3, DOG, 1, 0.5),
        absent=[("lad", 2)],
    )
    bone = made(
        "bone",
        ("the dog's bone of an old dog", "no cat, no ghost"),
        ("dog's bone of an old dog", 0, DOG, 0, 0.5),
        ("old dog", 0, BOY, 1, 0.5),
        absent=[("cat", 1), ("ghost", 1)],
    )
    markup = made(
        "markup",
        ("a <box> and a <image> here", "<ref-object>", 'a <loc0001> in 5" size; x', "a cup"),
        ("box", 0, BOY, 0, 0.5),
        ("image", 0, DOG, 1, 0.5),
        ("ref-object", 1, PUPPY, 2, 0.5),
        ("loc0001", 2, DOG, 3, 0.5),
        ('5" size; x', 2, BOY, 4, 0.5),
        ("cup", 3, BOY, 5, 0.5),
    )
    named = [replace(entry, text=f"<{entry.text}>") for entry in markup.phrases[:4]]
    markup = replace(markup, phrases=(*named, *markup.phrases[4:]))
    beyond = made("beyond", ("a cow", "a cat"), ("cow", 0, BOY, 0, 0.5), ("cat", 1, DOG, 1, 0.5))
    cow, cat = beyond.regions
    beyond = replace(beyond, regions=(replace(cow, box_xywh_px=(38.0, 2.0, 10.0, 20.0)), cat))
    return [family, bone, markup, beyond]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    return finished(tmp_path_factory.mktemp("chat") / "dataset", records())


def read(out: Path, split: str = "train") -> list[Json]:
    [path] = (path for path in out.iterdir() if path.name.startswith(split))
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def turns(record: Json) -> tuple[str, str, str]:
    """Image, question and answer of a record of any layout."""
    if "messages" in record:
        question, answer = (message["content"] for message in record["messages"])
        return record["images"][0], question, answer
    if "conversations" in record:
        question, answer = (turn["value"] for turn in record["conversations"])
        return record["image"], question, answer
    return record["image"], record["prefix"], record["suffix"]


def asked(out: Path, image: str) -> list[tuple[str, str]]:
    """Questions and answers about an image; the marks of ms-swift are filled in."""
    pairs = []
    for record in read(out):
        name, *texts = turns(record)
        objects = record.get("objects", {"ref": [], "bbox": []})
        values = {"<ref-object>": iter(objects["ref"]), "<bbox>": iter(objects["bbox"])}

        def fill(mark: re.Match[str], values: Json = values) -> str:
            return str(next(values[mark[0]]))

        question, answer = (re.sub("<ref-object>|<bbox>", fill, text) for text in texts)
        if name == f"{image}.jpg":
            pairs.append((question.removeprefix("<image>").strip(), answer))
    return pairs


TOKENS = {
    "ms-swift": "<bbox>|<ref-object>",
    "ms-swift-json": "<bbox>|<ref-object>",
    "paligemma": "<loc[0-9]{4}>",
    "florence-2": "<loc_[0-9]{1,3}>|<[A-Z_]+>",
    "kosmos-2": "<grounding>|</?phrase>|</?object>|<patch_index_[0-9]{4}>|</delimiter_of_multi_objects/>",
    "molmo": "</?points? ?[^<>]*>",
}
"""Style -> the markup of its model."""

ABSENT_ANSWERS = {"ms-swift": "none", "molmo": "There are none."}
ABSENT_ANSWERS |= dict.fromkeys(("ms-swift-json", "qwen3-vl", "qwen2.5-vl"), "[]")


def has_all_marks(record: Json) -> bool:
    """As ms-swift wants it: a reference for each mark of a phrase, and a box for each mark of a box."""
    text = "".join(turns(record)[1:])
    objects = record["objects"]
    return [text.count(mark) for mark in ("<ref-object>", "<bbox>")] == [
        len(objects["ref"]),
        len(objects["bbox"]),
    ]


@pytest.mark.parametrize("style", STYLES)
def test_no_record_is_broken(style: str, dataset: Path, tmp_path: Path) -> None:
    """No markup but the model's is in it. The lad is absent by one caption, and another name of what is there."""
    out, report = exported("chat", dataset, tmp_path / "out", {"style": style})
    made = read(out)
    for record in made:
        image, question, answer = turns(record)
        assert image in ("family.jpg", "bone.jpg", "markup.jpg", "beyond.jpg")
        text = question.removeprefix("<image>").strip() + answer
        assert set("<>").isdisjoint(re.sub(TOKENS.get(style, "^$"), "", text))
        assert "\n" not in text
        assert "objects" not in record or has_all_marks(record)
    assert len({record.get("id", number) for number, record in enumerate(made)}) == len(made)
    reserves_more = style in ("paligemma", "molmo")
    expected = ABSENT_ANSWERS.get(style)
    assert {
        note: report.notes[note] for note in (RESERVED, OUTSIDE, RESERVED_CAPTIONS, ABSENT, UNANSWERED)
    } == {
        RESERVED: 5 if reserves_more else 4,
        OUTSIDE: 1,
        RESERVED_CAPTIONS: 0 if style == "molmo" else 3,
        ABSENT: 2 if expected else 0,
        UNANSWERED: 0 if expected else 2,
    }
    assert report.regions.total() == (7 if reserves_more else 8)
    absent = [question for question, answer in asked(out, "bone") if answer == expected]
    assert [name in question for name, question in zip(("cat", "ghost"), absent, strict=False)] == [
        True
    ] * len(absent)
    assert len(absent) == report.notes[ABSENT]


def test_an_object_is_one_question_with_one_of_its_phrases(dataset: Path, tmp_path: Path) -> None:
    names = set()
    for seed in range(4):
        out, _ = exported("chat", dataset, tmp_path / str(seed), {"tasks": ["locate"], "seed": seed})
        boy, dogs = (question for question, _ in asked(out, "family"))  # the absent lad is a boy
        names |= {name for name in ("boy", "child", "lad") if name in boy}
        assert "dogs" in dogs
    assert len(names) > 1


def test_boxes_of_a_plural_stand_from_left_to_right_in_one_answer(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("chat", dataset, tmp_path / "out", {"style": "qwen3-vl"})
    (question, _), (_, answer), *_, (description, phrase) = asked(out, "family")
    assert "[50, 67, 300, 733]" in description, "of the boy, since the two dogs are no region"
    assert phrase in question
    assert [entry["bbox_2d"] for entry in json.loads(answer)] == [[500, 67, 625, 233], [750, 67, 900, 267]]
    _, report = exported("chat", dataset, tmp_path / "left", {"tasks": ["locate"]}, where="x < 25")
    assert report.notes[INCOMPLETE] == 1, "of the two dogs one is not chosen"


def test_a_caption_has_its_boxes_in_the_order_of_its_words(dataset: Path, tmp_path: Path) -> None:
    out, report = exported("chat", dataset, tmp_path / "out", {"style": "llava", "tasks": ["ground"]})
    answers = [answer for _, answer in asked(out, "family")]
    assert (
        answers[0]
        == "A boy [0.05, 0.17, 0.30, 0.68] with {two} dogs [0.50, 0.17, 0.62, 0.30], [0.75, 0.17, 0.90, 0.33]"
    )
    assert report.notes[NESTED] == 1
    out, _ = exported("chat", dataset, tmp_path / "none", {"style": "llava", "padding": "none"})
    assert asked(out, "bone")[0][1] == "[0.50, 0.07, 0.62, 0.23]"
    out, report = exported("chat", dataset, tmp_path / "listed", {"style": "qwen3-vl", "tasks": ["ground"]})
    [(question, answer)] = asked(out, "bone")
    assert question.endswith(": the dog's bone of an old dog")
    assert [entry["label"] for entry in json.loads(answer)] == ["dog's bone of an old dog", "old dog"]
    assert report.notes[NESTED] == 0


def test_an_image_may_have_nothing_but_absent_phrases(dataset: Path, tmp_path: Path) -> None:
    rows = [Maker().record(f"s{number}", "a ghost", absent=[("ghost", 0)]) for number in range(64)]
    ghosts = finished(tmp_path / "dataset", rows)
    out, report = exported("chat", ghosts, tmp_path / "all")
    assert len(read(out)) == report.notes[ABSENT] == report.samples.total() == 64
    for number, (negatives, least, most) in enumerate(((0.5, 16, 48), (0.0, 0, 0))):
        _, report = exported("chat", ghosts, tmp_path / str(number), {"negatives": negatives})
        assert least <= report.notes[ABSENT] <= most


def test_a_sample_has_the_same_questions_in_any_order_of_shards(dataset: Path, tmp_path: Path) -> None:
    backwards = finished(tmp_path / "dataset", records()[::-1])
    made = [read(exported("chat", path, tmp_path / path.parent.name)[0]) for path in (dataset, backwards)]
    assert sorted(map(json.dumps, made[0])) == sorted(map(json.dumps, made[1]))
    other, _ = exported("chat", dataset, tmp_path / "other", {"seed": 5})
    assert read(other) != made[0]


def test_an_image_that_qwen_rejects_is_left_out(tmp_path: Path) -> None:
    record = replace(
        Maker().record("s", "a line", ("a line", BOY), absent=[("line", 0)]), width_px=9000, height_px=44
    )
    long = finished(tmp_path / "dataset", [record])
    settings = {"min_pixels": 784, "max_pixels": 12544}
    for style, rejected in (("qwen2.5-vl", 1), ("qwen3-vl", 0)):
        out, report = exported("chat", long, tmp_path / style, {"style": style, **settings})
        assert (report.notes[TOO_LONG], bool(read(out))) == (rejected, not rejected)
    assert (tmp_path / "qwen2.5-vl" / "train-784-12544px.jsonl").is_file()
    assert "min_pixels=784 and max_pixels=12544" in (tmp_path / "qwen2.5-vl" / "README.md").read_text()


def test_a_users_templates_replace_those_of_the_style(dataset: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("locate: ['any {phrase}? {phrase}!']\nabsent: nowhere\n")
    out, _ = exported("chat", dataset, tmp_path / "out", {"style": "kosmos-2", "templates": str(mine)})
    assert [question for question, _ in asked(out, "bone")][2:] == ["any cat? cat!", "any ghost? ghost!"]
    assert all(
        map(has_all_marks, read(exported("chat", dataset, tmp_path / "marks", {"templates": str(mine)})[0]))
    )
    for text in ("describe: ['{box} {it}']", "ground: ['<image> {caption}']", "- x"):
        mine.write_text(text)
        with expect_error(ConfigError, key="templates"):
            exported("chat", dataset, tmp_path / "no", {"templates": str(mine)})
    with expect_error(ConfigError, key="tasks"):
        exported("chat", dataset, tmp_path / "no", {"style": "molmo", "tasks": ["describe"]})
    assert not (tmp_path / "no").exists()


def test_the_page_shows_records_as_they_are_written(tmp_path: Path) -> None:
    """But for the id."""

    def box(x: int, y: int, w: int, h: int) -> Any:
        return decode_mask(encode_box((x, y, x + w, y + h), (480, 640)))

    dogs = [("two dogs", 0, box(*place), 0, 0.5) for place in ((40, 120, 200, 240), (330, 140, 180, 220))]
    sofa = ("a red sofa", 0, box(0, 200, 640, 280), 1, 0.5)
    record = Maker().grouped("sofa", ("two dogs on a red sofa",), *dogs, sofa)
    dataset = finished(tmp_path / "dataset", [replace(record, width_px=640, height_px=480)])
    made = [
        {**record, "id": None}
        for style in STYLES
        for record in read(exported("chat", dataset, tmp_path / style, {"style": style})[0])
    ]
    page = Path(__file__).parents[3] / "docs" / "how-to" / "train-a-vision-language-model.md"
    shown = re.findall(r"^```json\n(.*?)\n```$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == len(STYLES) - 1, "qwen2.5-vl differs by its numbers only"
    assert [text for text in shown if {**json.loads(text), "id": None} not in made] == []
