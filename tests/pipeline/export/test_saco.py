"""SA-Co JSON as SAM 3's evaluator (`sam3/eval/cgf1_eval.py`) reads it: which pairs it takes."""

from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from phrasebox.pipeline.dataset.marks import append_marks
from phrasebox.pipeline.export.base import ExportReport
from phrasebox.pipeline.export.saco import (
    NEGATIVES,
    NO_NEGATIVES,
    SAID_TWICE,
    UNREVIEWED_PAIRS,
    UNSCORED_FILE,
)
from phrasebox.stages.contract.errors import ConfigError
from tests.build.datasets import copy_of
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, exported, finished

CAR = (3, 4, 10, 12)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three positive pairs, one with two regions; three negative ones, one of them of a row with no region."""
    make = Maker().record
    usual = {"score": 0.5}
    rows = [
        make(
            "car",
            ("a red car, no fish", "red car, no cow, no cow"),
            ("red car", CAR, 0, usual),
            ("red car", CAR, 1, usual),
            absent=[("fish", 0), ("cow", 1)],
        ),
        make(
            "dogs", "two dogs", ("two dogs", (0, 0, 9, 9), 0, usual), ("two dogs", (20, 9, 9, 9), 0, usual)
        ),
        make("lamp", "a lamp", ("lamp", (5, 0, 4, 30), 0, {"score": 0.95})),
        make("ghost", "a cow", absent=[("cow", 0)]),
        make("wave", "a wave"),
    ]
    return finished(tmp_path_factory.mktemp("saco") / "dataset", rows)


def pairs_of(
    dataset: Path, out: Path, exhaustive: str = "reviewed", **request: Any
) -> tuple[COCO, ExportReport]:
    """The pairs and the report of an export."""
    folder, report = exported("saco", dataset, out, {"exhaustive": exhaustive}, **request)
    return COCO(str(folder / "train.json")), report


def test_the_pairs(dataset: Path, tmp_path: Path) -> None:
    truth, report = pairs_of(dataset, tmp_path / "out", "all")
    notes = {note: report.notes[note] for note in (NEGATIVES, SAID_TWICE, UNREVIEWED_PAIRS)}
    assert notes == {NEGATIVES: 3, SAID_TWICE: 1, UNREVIEWED_PAIRS: 0}
    pairs = {(pair["sample_id"], pair["text_input"]): pair for pair in truth.dataset["images"]}
    assert {name: len(truth.imgToAnns[pair["id"]]) for name, pair in pairs.items()} == {
        ("car", "red car"): 1,
        ("car", "fish"): 0,
        ("car", "cow"): 0,
        ("dogs", "two dogs"): 2,
        ("lamp", "lamp"): 1,
        ("ghost", "cow"): 0,
    }
    for pair in pairs.values():
        assert (pair["is_instance_exhaustive"], pair["is_pixel_exhaustive"]) == (1, 1)
        for entry in truth.imgToAnns[pair["id"]]:
            x, y, w, h = coco_mask.toBbox(entry["segmentation"])
            assert entry["bbox"] == pytest.approx([x / 40, y / 30, w / 40, h / 30])
            assert (entry["category_id"], entry["iscrowd"]) == (1, 0)
    assert pairs["car", "cow"]["queried_category"] == pairs["ghost", "cow"]["queried_category"]


def test_pairs_are_exhaustive_where_somebody_looked(dataset: Path, tmp_path: Path) -> None:
    """Without an exhaustive pair the evaluator fails; without a negative one, cgF1 is 0 for every model."""
    marked = copy_of(dataset, tmp_path)
    append_marks(marked, {"car": "bad"})
    with expect_error(ConfigError, key="exhaustive"):
        pairs_of(marked, tmp_path / "nobody")
    append_marks(marked, {"car": "good", "dogs": "bad", "lamp": "good"})
    truth, report = pairs_of(marked, tmp_path / "out")
    for pair in truth.dataset["images"]:
        is_good = int(pair["sample_id"] in ("car", "lamp"))
        assert (pair["is_instance_exhaustive"], pair["is_pixel_exhaustive"]) == (is_good, is_good)
    assert report.notes[UNREVIEWED_PAIRS] == 2
    for where, told in (
        ("head = 'lamp'", {NO_NEGATIVES: 1}),
        ("head = 'dog'", {UNSCORED_FILE: 1}),
        ("head = 'car'", {}),
    ):
        _, report = pairs_of(marked, tmp_path / where, where=where)
        notes = {text: report.notes[text.format("train")] for text in (UNSCORED_FILE, NO_NEGATIVES)}
        assert {text: count for text, count in notes.items() if count} == told


def test_an_image_of_absent_phrases_only_is_exported_unless_a_condition_chooses(
    dataset: Path, tmp_path: Path
) -> None:
    """A condition asks for regions, and such an image has none."""
    for name, request, phrases in (
        ("sure", {"min_score": 0.9}, ["fish", "cow", "lamp", "cow"]),
        ("chosen", {"where": "head = 'lamp'"}, ["lamp"]),
    ):
        truth, report = pairs_of(dataset, tmp_path / name, "all", **request)
        assert [pair["text_input"] for pair in truth.dataset["images"]] == phrases
        assert report.rows == 5 == report.samples.total() + report.left_out.total()
