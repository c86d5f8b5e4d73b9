"""The file of people's answers: what counts, what a crash leaves, and what somebody else's file cannot do."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.dataset.append_log import LONGEST_TEXT
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.reviews import (
    RegionKey,
    Review,
    append_review,
    find_regions,
    majority_answer,
    read_reviews,
)
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.files.storage import place_of
from tests.build.datasets import Json
from tests.build.files import read_lines
from tests.messages import expect_error

DOG = RegionKey(7, "a dog", (1.0, 2.0, 30.5, 4.0))
CAT = RegionKey(8, "a cat", (0.0, 0.0, 5.0, 5.0))


def review(key: RegionKey, reviewer: str = "ann", **what: Any) -> Review:
    return Review.model_validate({**key._asdict(), "reviewer": reviewer, **what})


def test_the_latest_answer_of_each_reviewer_counts(tmp_path: Path) -> None:
    for key, reviewer, answer in (
        (DOG, "ann", "wrong"),
        (DOG, "bob", "right"),
        (DOG, "ann", "right"),
        (CAT, "ann", "absent"),
        (CAT, "ann", "undone"),
    ):
        append_review(tmp_path, review(key, reviewer, answer=answer))
    reviews = read_reviews(tmp_path)
    assert (reviews.majority_answers(), reviews.unreadable_lines) == ({DOG: "right"}, 0)
    assert {*reviews.answers[DOG]} == {"ann", "bob"}
    assert len(read_lines(tmp_path / "reviews.jsonl")) == 5, "nothing is deleted"


def test_the_latest_action_counts_until_its_answer_changes(tmp_path: Path) -> None:
    boxes = {"ann": (0, 0, 9, 9), "bob": (1, 1, 8, 8)}

    def boxes_after(key: RegionKey, *steps: tuple[str, Json]) -> Json:
        for reviewer, what in steps:
            box = {"box_xywh_px": boxes[reviewer]} if what.get("action") == "box" else {}
            append_review(tmp_path, review(key, reviewer, **what, **box))
        return {key: one.box_xywh_px for key, one in read_reviews(tmp_path).corrections.items()}

    wrong = {"answer": "wrong", "action": "box"}
    assert boxes_after(DOG, ("ann", wrong), ("bob", {"answer": "right"})) == {DOG: boxes["ann"]}
    assert boxes_after(DOG, ("ann", {"answer": "right"})) == {}, "the box goes with its answer"
    assert boxes_after(DOG, ("ann", {"action": "delete"}), ("bob", {"action": "box"})) == {
        DOG: boxes["bob"]
    }
    assert boxes_after(DOG, ("ann", {"answer": "undone"})) == {DOG: boxes["bob"]}, "somebody else's stays"
    assert boxes_after(DOG, ("ann", {"action": "undone"})) == {}


@pytest.mark.parametrize(
    ("answers", "merged"),
    [
        (["right", "wrong"], "unsure"),
        (["right", "right", "absent"], "right"),
        (["right", "wrong", "absent"], "wrong"),
        (["wrong", "absent", "absent"], "absent"),
        (["unsure", "unsure", "right"], "right"),
    ],
)
def test_several_reviewers_make_one_answer(answers: list[str], merged: str) -> None:
    assert majority_answer(review(DOG, f"{n}", answer=one) for n, one in enumerate(answers)) == merged


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    append_review(tmp_path, review(DOG, answer="right"))
    file = tmp_path / "reviews.jsonl"
    file.write_bytes(file.read_bytes() + b'{"annotation_id": 8, "phr')  # as a power cut leaves it
    assert (len(read_reviews(tmp_path).answers), read_reviews(tmp_path).unreadable_lines) == (1, 1)
    append_review(tmp_path, review(CAT, answer="wrong"))
    reviews = read_reviews(tmp_path)
    assert reviews.majority_answers() == {DOG: "right", CAT: "wrong"}
    assert reviews.unreadable_lines == 1


@pytest.mark.parametrize(
    "change",
    [
        {"reviewer": "a\nb"},
        {"action": "delete"},  # beside an answer
        {"action": "box", "box_xywh_px": [0, 0, 5, 5]},  # beside one that is not "wrong"
        {"answer": "wrong", "action": "box"},
        {"answer": None},  # neither
        {"time": "2026-01-31T12:00:00"},  # in which zone?
        {"phrase": "x" * (LONGEST_TEXT + 1)},
    ],
    ids=lambda change: str(change)[:40],
)
def test_what_is_not_a_review_is_skipped(tmp_path: Path, change: Json) -> None:
    line = {**review(DOG, answer="right").model_dump(mode="json", exclude_none=True), **change}
    text = json.dumps(line).replace("Infinity", "1e999")
    (tmp_path / "reviews.jsonl").write_text(f"{text}\n[]\n\n\0\xff\n", encoding="latin-1")
    reviews = read_reviews(tmp_path)
    assert (reviews.answers, reviews.corrections, reviews.unreadable_lines) == ({}, {}, 3)


def test_no_link_and_no_pipe_is_written_or_read(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    folder = tmp_path / "dataset"
    victim.write_text("mine\n")
    folder.mkdir()
    file = folder / "reviews.jsonl"
    for make in (lambda: file.symlink_to(victim), lambda: os.mkfifo(file), file.mkdir):
        make()
        with pytest.raises(OSError):  # noqa: PT011  its number differs
            append_review(folder, review(DOG, answer="right"))
        with expect_error(InputError):
            read_reviews(folder)
        file.rmdir() if file.is_dir() else file.unlink()
    assert victim.read_text() == "mine\n"


def test_files_of_several_places_count_together(tmp_path: Path) -> None:
    here = tmp_path / "here"
    elsewhere = tmp_path / "there"
    for folder, answer in ((elsewhere, "wrong"), (here, "right")):
        folder.mkdir()
        append_review(folder, review(DOG, answer=answer))
    (elsewhere / "reviews.jsonl").rename(here / "reviews-there.jsonl")
    assert read_reviews(here).majority_answers() == {DOG: "right"}, (
        "the later one, whatever the name of its file"
    )


def test_regions_are_found_by_all_that_names_them(inline_dataset: Path) -> None:
    dataset = open_dataset(inline_dataset)
    number, row = next(
        (number, row) for number, row in enumerate(dataset.rows()) if row["annotations"] and number > 3
    )
    region = row["annotations"][-1]
    key = RegionKey.of(region)
    others = {key._replace(bbox=(0.0, 0.0, 1.0, 1.0)), key._replace(phrase="another"), DOG}
    fields = {field: region[field] for field in ("id", "phrase", "bbox", "score", "head")}
    assert find_regions(dataset, {key, *others}, ["score", "head"]) == {key: (number, fields)}
    line = review(key, answer="right").model_dump_json(exclude_none=True)
    assert Review.model_validate_json(line).key == key, "boxes are the same numbers again"


@pytest.mark.slow
@pytest.mark.usefixtures("storage")
def test_object_storage() -> None:
    folder = place_of("s3://bucket/reviewed")
    assert read_reviews(folder).answers == {}
    append_review(folder, review(DOG, answer="wrong"))
    append_review(folder, review(DOG, answer="right"))
    assert read_reviews(folder).majority_answers() == {DOG: "right"}
