"""SA-Co JSON as SAM 3's evaluator (`sam3/eval/cgf1_eval.py`) reads it: which pairs it takes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.dataset.folder import open_dataset, write_marks
from pipeline.export import ExportRequest, export_dataset
from pipeline.export.base import Categories, ChosenSample, ExportJob, ExportReport
from pipeline.export.files import ExportFolder
from pipeline.export.saco import (
    NEGATIVES,
    NO_NEGATIVES,
    SAID_TWICE,
    UNREVIEWED_PAIRS,
    UNSCORED_FILE,
    Saco,
    SacoConfig,
)
from stages.contract.errors import ConfigError
from tests.build.datasets import Json, copy_of, rows_of
from tests.build.files import read_json
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, finished


def absent(phrase: str, presence: float = 0.25) -> Json:
    return {"phrase": phrase, "head": phrase, "caption_index": 0, "span": [0, 1], "presence": presence}


@pytest.fixture
def rows(demo_dataset: Path) -> list[Json]:
    """Three positive pairs, one with two regions; four negative ones, two of them of a row with no region."""
    chosen = {row["sample_id"]: row for row in rows_of(demo_dataset)}
    plain = chosen["plain"]["annotations"]
    again = [{**plain[0], "id": 5, "caption_index": 1}]
    cow = absent("cow")
    return [
        {**chosen["plain"], "annotations": plain + again, "absent": [cow, cow, absent("fish")]},
        {**chosen["dogs"], "absent": [absent("two dogs")]},
        {**chosen["turned"]},
        {**chosen["no region"], "absent": [absent("ghost"), cow]},
    ]


def written(rows: list[Json], dataset: Path, out: Path, **settings: Any) -> tuple[COCO, Counter[str]]:
    out.mkdir()
    report = ExportReport(format="saco")
    folder = ExportFolder(out)
    none = Categories(Counter(), "phrase")
    opened = open_dataset(dataset)
    job = ExportJob(dataset=opened, folder=folder, splits=("train",), categories=none, report=report)
    with folder.open_files:
        exporter = Saco(SacoConfig(**settings), job)
        for row in rows:
            exporter.add(ChosenSample(row=row, split="train", image=None))
        exporter.close()
    return COCO(str(out / "train.json")), report.notes


def test_the_pairs(rows: list[Json], demo_dataset: Path, tmp_path: Path) -> None:
    truth, notes = written(rows, demo_dataset, tmp_path / "out", exhaustive="all")
    assert notes == {NEGATIVES: 4, SAID_TWICE: 1, UNREVIEWED_PAIRS: 0}
    pairs = {(pair["sample_id"], pair["text_input"]): pair for pair in truth.dataset["images"]}
    assert [(*name, len(truth.imgToAnns[pair["id"]])) for name, pair in pairs.items()] == [
        ("plain", "red car", 1),
        ("plain", "cow", 0),
        ("plain", "fish", 0),
        ("dogs", "two dogs", 2),
        ("turned", "lamp", 1),
        ("no region", "ghost", 0),
        ("no region", "cow", 0),
    ]
    for pair in pairs.values():
        assert int(pair["queried_category"]) > 0
        assert (pair["is_instance_exhaustive"], pair["is_pixel_exhaustive"]) == (1, 1)
        for entry in truth.imgToAnns[pair["id"]]:
            x, y, w, h = coco_mask.toBbox(entry["segmentation"])
            assert entry["bbox"] == pytest.approx([x / 40, y / 30, w / 40, h / 30])
            assert (entry["category_id"], entry["iscrowd"]) == (1, 0)
    assert pairs["plain", "cow"]["queried_category"] == pairs["no region", "cow"]["queried_category"]


def test_pairs_are_exhaustive_where_somebody_looked(
    rows: list[Json], demo_dataset: Path, tmp_path: Path
) -> None:
    """`exhaustive=all` takes them without a look, as above."""
    marked = copy_of(demo_dataset, tmp_path)
    write_marks(marked, {"plain": "good", "dogs": "bad"})
    truth, notes = written(rows, marked, tmp_path / "out")
    pairs = truth.dataset["images"]
    for pair in pairs:
        told = int(pair["sample_id"] == "plain")
        assert (pair["is_instance_exhaustive"], pair["is_pixel_exhaustive"]) == (told, told)
    assert notes[UNREVIEWED_PAIRS] == sum(pair["sample_id"] != "plain" for pair in pairs) == 4


def test_what_the_evaluator_cannot_score_is_told(rows: list[Json], demo_dataset: Path, tmp_path) -> None:
    """Without an exhaustive pair it fails; without a negative one, cgF1 is 0 for every model."""
    marked = copy_of(demo_dataset, tmp_path)
    write_marks(marked, {"plain": "bad"})
    with expect_error(ConfigError):
        written(rows, marked, tmp_path / "nobody")
    write_marks(marked, {"turned": "good", "plain": "good"})
    for name, chosen, settings, told in (
        ("others", [rows[1]], {}, {UNSCORED_FILE: 1}),
        ("unreviewed negatives", rows[1:], {}, {NO_NEGATIVES: 1}),
        ("all", rows[1:], {"exhaustive": "all"}, {}),
        ("left out", rows[1:], {"exhaustive": "all", "negatives": False}, {NO_NEGATIVES: 2}),
        ("reviewed", rows, {}, {}),
    ):
        _, notes = written(chosen, marked, tmp_path / name, **settings)
        texts = {text: notes[text.format("train")] for text in (UNSCORED_FILE, NO_NEGATIVES)}
        assert {text: count for text, count in texts.items() if count} == told, name


def test_an_image_of_absent_phrases_only_is_exported_unless_a_condition_chooses(tmp_path: Path) -> None:
    """A condition asks for regions, and such an image has none."""
    make = Maker()
    rows = [
        make.record("car", "a red car", ("a red car", (3, 4, 10, 12))),
        make.record("ghost", "a ghost", absent=[("ghost", 0)]),
        make.record("none", "a wave"),
    ]
    dataset = open_dataset(finished(tmp_path / "dataset", rows))
    config = SacoConfig(exhaustive="all")
    for name, request, pairs in (
        ("all", {}, {"red car": 0.9, "ghost": 0.125}),
        ("sure", {"min_score": 0.9}, {"ghost": 0.125}),
        ("chosen", {"where": "head = 'car'"}, {"red car": 0.9}),
    ):
        report = export_dataset(
            dataset, ExportRequest(exporter=Saco, out=tmp_path / name, config=config, **request)
        )
        text = read_json(tmp_path / name / "train.json")
        assert {pair["text_input"]: pair["presence"] for pair in text["images"]} == pairs
        assert report.samples == {"train": len(pairs)}
        assert report.rows == 3 == report.samples.total() + report.left_out.total()
