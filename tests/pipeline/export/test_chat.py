"""Questions and answers about regions: what is asked, and that no record is broken."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.export.base import ChosenSample
from pipeline.export.chat.config import ChatConfig
from pipeline.export.chat.interview import (
    ABSENT,
    INCOMPLETE,
    NESTED,
    RESERVED_CAPTIONS,
    UNANSWERED,
    Interview,
)
from pipeline.export.chat.objects import OUTSIDE, RESERVED, TOO_LONG
from pipeline.export.chat.styles import STYLES
from stages.contract.errors import ConfigError
from stages.contract.masks import encode_box
from tests.build.datasets import Json
from tests.build.records import HEIGHT, WIDTH
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished

styles = pytest.mark.parametrize("style", STYLES)

BOY = (2, 2, 10, 20)
DOG = (20, 2, 5, 5)
PUPPY = (30, 2, 6, 6)


def records() -> list[Any]:
    """Four images: objects with several phrases, absent ones, words that are markup, a box beyond the image."""
    make = Maker()

    def made(name: str, captions: tuple[str, ...], *regions: tuple[Any, ...], **absent: Any) -> Any:
        entries = [
            (words, box, caption, {"group": group, "score": 0.5}) for words, caption, box, group in regions
        ]
        return make.record(name, captions, *entries, file_name=f"{name}.jpg", **absent)

    family = made(
        "family",
        ("A boy with {two}\n dogs", "the child [1, 2] runs", "a lad", "two dogs"),
        ("boy", 0, BOY, 0),
        ("child", 1, BOY, 0),
        ("lad", 2, BOY, 0),
        ("dogs", 0, PUPPY, 1),
        ("dogs", 0, DOG, 1),
        ("two dogs", 3, PUPPY, 1),
        ("two dogs", 3, DOG, 1),
        absent=[("lad", 2)],
    )
    bone = made(
        "bone",
        ("the dog's bone of an old dog", "no cat, no ghost"),
        ("dog's bone of an old dog", 0, DOG, 0),
        ("old dog", 0, BOY, 1),
        absent=[("cat", 1), ("ghost", 1)],
    )
    markup = made(
        "markup",
        ("a <box> and a <image> here", "<ref-object>", 'a <loc0001> in 5" size; x', "a cup"),
        ("box", 0, BOY, 0),
        ("image", 0, DOG, 1),
        ("ref-object", 1, PUPPY, 2),
        ("loc0001", 2, DOG, 3),
        ('5" size; x', 2, BOY, 4),
        ("cup", 3, BOY, 5),
    )
    named = [replace(entry, text=f"<{entry.text}>") for entry in markup.phrases[:4]]
    markup = replace(markup, phrases=(*named, *markup.phrases[4:]))
    beyond = made("beyond", ("a cow", "a cat"), ("cow", 0, BOY, 0), ("cat", 1, DOG, 1))
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
        name, question, answer = turns(record)
        for mark, key in (("<ref-object>", "ref"), ("<bbox>", "bbox")):
            for value in record.get("objects", {}).get(key, ()):
                part = question if mark in question else answer
                question = question.replace(mark, str(value), 1)
                answer = answer.replace(mark, str(value), 1) if part is answer else answer
        if name == f"{image}.jpg":
            pairs.append((question.removeprefix("<image>").strip(), answer))
    return pairs


def check_messages(record: Json) -> None:
    """As ms-swift's loader and template want it; LLaMA-Factory counts images, too."""
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    text = "".join(message["content"] for message in record["messages"])
    assert text.count("<image>") == len(record["images"]) == 1
    assert record["messages"][0]["content"].startswith("<image>")
    objects = record.get("objects", {"ref": [], "bbox": []})
    assert (text.count("<ref-object>"), text.count("<bbox>")) == (len(objects["ref"]), len(objects["bbox"]))
    for x0, y0, x1, y1 in objects["bbox"]:
        assert all(isinstance(edge, float) for edge in (x0, y0, x1, y1)), "Arrow needs one type"
        assert 0 <= x0 < x1 <= WIDTH
        assert 0 <= y0 < y1 <= HEIGHT
    marks = re.sub("<(image|ref-object|bbox)>|</?points? ?[^<>]*>", "", text)
    assert set("<>").isdisjoint(marks + "".join(objects["ref"]))


def check_turns(record: Json) -> None:
    """As LLaVA's and Qwen's loaders want it."""
    assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"]
    question, answer = (turn["value"] for turn in record["conversations"])
    assert question.startswith("<image>\n")
    assert set("<>").isdisjoint(question.removeprefix("<image>") + answer)
    assert isinstance(record["image"], str)


TOKENS = {
    "paligemma": "<loc[0-9]{4}>",
    "florence-2": "<loc_[0-9]{1,3}>|<[A-Z_]+>",
    "kosmos-2": "<grounding>|</?phrase>|</?object>|<patch_index_[0-9]{4}>|</delimiter_of_multi_objects/>",
}


def check_prefix(record: Json, style: str) -> None:
    """As big_vision wants it, which reads flat texts and ends a prefix by a line feed; no token but the model's."""
    assert list(record) == ["image", "prefix", "suffix"]
    assert all(isinstance(value, str) for value in record.values())
    assert "\n" not in record["prefix"] + record["suffix"]
    assert record["suffix"]
    assert set("<>").isdisjoint(re.sub(TOKENS[style], "", record["prefix"] + record["suffix"]))


@styles
def test_no_record_is_broken(style: str, dataset: Path, tmp_path: Path) -> None:
    out, report = exported("chat", dataset, tmp_path / "out", {"style": style})
    made = read(out)
    assert made
    for record in made:
        if "messages" in record:
            check_messages(record)
        elif "conversations" in record:
            check_turns(record)
        else:
            check_prefix(record, style)
    if "conversations" in made[0]:
        assert len({record["id"] for record in made}) == len(made)
    assert report.notes[RESERVED] == (5 if style in ("paligemma", "molmo") else 4)
    assert report.notes[OUTSIDE] == 1
    assert report.notes[RESERVED_CAPTIONS] == (0 if style == "molmo" else 3)
    images = {turns(record)[0] for record in made}
    assert images == {"family.jpg", "bone.jpg", "markup.jpg", "beyond.jpg"}
    assert report.regions.total() == (7 if style in ("paligemma", "molmo") else 8)


@styles
def test_an_object_is_one_question_with_one_of_its_phrases(
    style: str, dataset: Path, tmp_path: Path
) -> None:
    wordings: Counter[str] = Counter()
    for seed in range(4):
        settings = {"style": style, "tasks": ["locate"], "seed": seed}
        out, _ = exported("chat", dataset, tmp_path / str(seed), settings)
        questions = [question for question, _ in asked(out, "family")]
        assert len(questions) == 2, "a boy and two dogs; the absent lad is a boy"
        [boy] = (name for name in ("boy", "child", "lad") if name in questions[0])
        assert "dogs" in questions[1]
        wordings[boy] += 1
    assert len(wordings) > 1


def test_boxes_of_a_plural_stand_from_left_to_right_in_one_answer(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("chat", dataset, tmp_path / "out", {"style": "qwen3-vl", "tasks": ["locate"]})
    [(_, answer)] = [pair for pair in asked(out, "family") if "dogs" in pair[0]]
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
    assert answers[1] == "the child [0.05, 0.17, 0.30, 0.68] [1, 2] runs"
    assert [answer for _, answer in asked(out, "bone")] == [
        "the dog's bone of an old dog [0.50, 0.17, 0.62, 0.30]"
    ]
    assert report.notes[NESTED] == 1
    out, report = exported("chat", dataset, tmp_path / "listed", {"style": "qwen3-vl", "tasks": ["ground"]})
    [(question, answer)] = asked(out, "bone")
    assert question.endswith(": the dog's bone of an old dog")
    assert [entry["label"] for entry in json.loads(answer)] == ["dog's bone of an old dog", "old dog"]
    assert report.notes[NESTED] == 0
    assert asked(out, "family")[0][0].endswith(": A boy with {two} dogs")


def test_a_box_is_described_by_the_phrase_that_is_asked_for(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported("chat", dataset, tmp_path / "out", {"style": "qwen3-vl"})
    [(question, answer)] = [pair for pair in asked(out, "family") if not pair[1].startswith("[")]
    assert "[50, 67, 300, 733]" in question, "the two dogs are no region"
    assert any(answer in question for question, _ in asked(out, "family")[:1])


@styles
def test_absent_phrases_have_an_answer_where_the_style_has_one(
    style: str, dataset: Path, tmp_path: Path
) -> None:
    """The lad is absent by one caption, and another name of what is there."""
    answers = {"ms-swift": "none", "molmo": "There are none."}
    answers |= dict.fromkeys(("ms-swift-json", "qwen3-vl", "qwen2.5-vl"), "[]")
    expected = answers.get(style)
    out, report = exported("chat", dataset, tmp_path / "out", {"style": style})
    absent = [question for question, answer in asked(out, "bone") if answer == expected]
    assert len(absent) == report.notes[ABSENT] == (0 if expected is None else 2)
    assert report.notes[UNANSWERED] == (2 if expected is None else 0)
    assert expected is None or ("cat" in absent[0] and "ghost" in absent[1])
    settings = {"style": style, "negatives": 0.0}
    out, report = exported("chat", dataset, tmp_path / "none", settings)
    assert report.notes[ABSENT] == report.notes[UNANSWERED] == 0


def test_an_image_may_have_nothing_but_absent_phrases(dataset: Path, tmp_path: Path) -> None:
    rows = [Maker().record(f"s{number}", "a ghost", absent=[("ghost", 0)]) for number in range(64)]
    ghosts = finished(tmp_path / "dataset", rows)
    out, report = exported("chat", ghosts, tmp_path / "all")
    assert len(read(out)) == report.notes[ABSENT] == report.samples.total() == 64
    _, half = exported("chat", ghosts, tmp_path / "half", {"negatives": 0.5})
    assert 16 < half.notes[ABSENT] < 48
    _, report = exported("chat", ghosts, tmp_path / "llava", {"style": "llava"})
    assert report.samples.total() == 0


def test_a_sample_has_the_same_questions_in_any_order_of_shards(dataset: Path, tmp_path: Path) -> None:
    backwards = finished(tmp_path / "dataset", records()[::-1])
    made = [read(exported("chat", path, tmp_path / path.parent.name)[0]) for path in (dataset, backwards)]
    assert sorted(map(json.dumps, made[0])) == sorted(map(json.dumps, made[1]))
    other, _ = exported("chat", dataset, tmp_path / "other", {"seed": 5})
    assert read(other) != made[0]


def test_pixels_of_the_trainer_stand_in_the_name_and_the_card(dataset: Path, tmp_path: Path) -> None:
    settings = {"style": "qwen2.5-vl", "min_pixels": 784, "max_pixels": 12544}
    out, _ = exported("chat", dataset, tmp_path / "out", settings)
    assert (out / "train-784-12544px.jsonl").is_file()
    assert "min_pixels=784 and max_pixels=12544" in (out / "README.md").read_text()


def test_an_image_that_qwen_rejects_is_left_out(tmp_path: Path) -> None:
    record = replace(
        Maker().record("s", "a line", ("a line", BOY), absent=[("line", 0)]), width_px=9000, height_px=44
    )
    long = finished(tmp_path / "dataset", [record])
    for style, rejected in (("qwen2.5-vl", 1), ("qwen3-vl", 0)):
        out, report = exported("chat", long, tmp_path / style, {"style": style})
        assert (report.notes[TOO_LONG], bool(read(out))) == (rejected, not rejected)


def test_llava_may_not_pad(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported(
        "chat", dataset, tmp_path / "out", {"style": "llava", "tasks": ["locate"], "padding": "none"}
    )
    assert [answer for _, answer in asked(out, "bone")] == [
        "[0.50, 0.07, 0.62, 0.23]",
        "[0.05, 0.07, 0.30, 0.73]",
    ]


def test_a_users_templates_replace_those_of_the_style(dataset: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("locate: ['any {phrase}? {phrase}!']\nabsent: nowhere\n")
    out, _ = exported("chat", dataset, tmp_path / "out", {"style": "kosmos-2", "templates": str(mine)})
    assert [question for question, _ in asked(out, "bone")][2:] == ["any cat? cat!", "any ghost? ghost!"]
    for record in read(exported("chat", dataset, tmp_path / "marks", {"templates": str(mine)})[0]):
        check_messages(record)
    for text in (
        "locate: [where]",
        "describe: ['{box} {it}']",
        "ground: ['<image> {caption}']",
        "find: [x]",
        "- x",
    ):
        mine.write_text(text)
        with expect_error(ConfigError):
            exported("chat", dataset, tmp_path / "no", {"templates": str(mine)})
    with expect_error(ConfigError):
        exported("chat", dataset, tmp_path / "no", {"style": "molmo", "tasks": ["describe"]})
    assert not (tmp_path / "no").exists()


def test_the_page_shows_records_as_they_are_written() -> None:
    def region(phrase: str, span: list[int], box: list[int], group: int) -> Json:
        x, y, w, h = box
        rle = encode_box((x, y, x + w, y + h), (480, 640))
        segmentation = {"size": rle.size_hw, "counts": rle.counts}
        place = {"phrase": phrase, "caption_index": 0, "span": span, "bbox": box}
        return {**place, "segmentation": segmentation, "group": group}

    dogs = [region("two dogs", [0, 8], box, 0) for box in ([40, 120, 200, 240], [330, 140, 180, 220])]
    row = {
        "sample_id": "sofa",
        "width": 640,
        "height": 480,
        "captions": ["two dogs on a red sofa"],
        "absent": [],
    }
    row["annotations"] = [*dogs, region("red sofa", [12, 22], [0, 200, 640, 280], 1)]
    sample = ChosenSample(row=row, split="train", image=None)
    made = []
    for style in STYLES:
        conversations = list(Interview(sample, ChatConfig(style=style), Counter()).conversations())
        for number in range(8):
            record = STYLES[style].layout.record
            made += [record(conversation, "sofa.jpg", f"7-{number}") for conversation in conversations]
    page = Path(__file__).parents[3] / "docs" / "how-to" / "train-a-vision-language-model.md"
    shown = re.findall(r"^```json\n(.*?)\n```$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) == len(STYLES) - 1, "qwen2.5-vl differs by its numbers only"
    assert [text for text in shown if json.loads(text) not in made] == []
