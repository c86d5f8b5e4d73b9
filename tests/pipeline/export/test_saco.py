"""SA-Co JSON against the definition of SAM 3's evaluator: which pairs it takes, and the figures that come of them.

Written from what `sam3/eval/cgf1_eval.py` computes: presence by pairs with any answer above a score of 0.5, F1 of
answers matched to truth by their IoU, and cgF1, the product of Matthews' correlation and the F1 of positive pairs.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.dataset.folder import open_dataset, write_marks
from pipeline.export import ExportRequest, export_dataset
from pipeline.export.base import Categories, ChosenSample, ExportJob, ExportReport
from pipeline.export.files import ExportFolder
from pipeline.export.saco import NEGATIVES, SAID_TWICE, UNREVIEWED, Saco, SacoConfig
from stages.contract.records import Absent, Phrase
from tests.pipeline.export.datasets import Maker, finished, mask, rows_of


def absent(phrase: str, presence: float = 0.25) -> dict[str, Any]:
    return {"phrase": phrase, "head": phrase, "caption_index": 0, "span": [0, 1], "presence": presence}


@pytest.fixture
def rows(demo_dataset: Path) -> list[dict[str, Any]]:
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


def written(rows: list[dict[str, Any]], dataset: Path, out: Path, **settings: Any) -> tuple[COCO, Counter[str]]:
    out.mkdir()
    report, folder = ExportReport(format="saco"), ExportFolder(out)
    none, opened = Categories(Counter(), "phrase"), open_dataset(dataset)
    job = ExportJob(dataset=opened, folder=folder, splits=("train",), categories=none, report=report)
    with folder.opened:
        exporter = Saco(SacoConfig(**settings), job)
        for row in rows:
            exporter.add(ChosenSample(row=row, split="train", image=None))
        exporter.close()
    return COCO(str(out / "train.json")), report.notes


def figures(truth: COCO, answers: list[dict[str, Any]]) -> dict[str, float]:
    """At an IoU of 0.5."""
    counts: Counter[str] = Counter()
    for pair in truth.dataset["images"]:
        if not pair["is_instance_exhaustive"]:
            continue
        there = truth.imgToAnns[pair["id"]]
        told = [one for one in answers if one["image_id"] == pair["id"] and one["score"] >= 0.5]
        counts[("T" if bool(there) == bool(told) else "F") + ("P" if told else "N")] += 1
        if there:
            ious = coco_mask.iou(
                [one["segmentation"] for one in told],
                [one["segmentation"] for one in there],
                [one["iscrowd"] for one in there],
            )
            wide, narrow = sorted((len(told), len(there)), reverse=True)
            best = max(
                (
                    sum(ious[(at, to) if len(told) >= len(there) else (to, at)] >= 0.5 for to, at in enumerate(order))
                    for order in itertools.permutations(range(wide), narrow)
                ),
                default=0,
            )
            counts["right"] += int(best)
            counts["missed"] += len(there) - int(best)
            counts["wrong"] += len(told) - int(best)
    tp, tn, fp, fn = (counts[name] for name in ("TP", "TN", "FP", "FN"))
    mcc = (tp * tn - fp * fn) / (((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5 + 1e-6)
    f1 = 2 * counts["right"] / (2 * counts["right"] + counts["missed"] + counts["wrong"])
    return {"pairs": tp + tn + fp + fn, "mcc": mcc, "f1": f1, "cgf1": mcc * f1}


def test_the_evaluators_figures(rows: list[dict[str, Any]], demo_dataset: Path, tmp_path: Path) -> None:
    truth, notes = written(rows, demo_dataset, tmp_path / "out", exhaustive="all")
    assert notes == {NEGATIVES: 4, SAID_TWICE: 1, UNREVIEWED: 0}
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
    answers = [{**entry, "score": 0.9} for entry in truth.anns.values()]
    assert figures(truth, answers) == pytest.approx({"pairs": 7, "mcc": 1, "f1": 1, "cgf1": 1}, abs=1e-4)
    lamp, car = pairs["turned", "lamp"]["id"], truth.imgToAnns[pairs["plain", "red car"]["id"]][0]
    worse = [one for one in answers if one["image_id"] != lamp]  # one is missed, and one is found where it is not
    worse.append({**car, "image_id": pairs["plain", "cow"]["id"], "score": 0.7})
    worse.append({**car, "image_id": pairs["plain", "fish"]["id"], "score": 0.4})
    mcc = (2 * 3 - 1 * 1) / (3 * 3 * 4 * 4) ** 0.5
    f1 = 2 * 3 / (2 * 3 + 1)
    assert figures(truth, worse) == pytest.approx({"pairs": 7, "mcc": mcc, "f1": f1, "cgf1": mcc * f1}, abs=1e-4)


@pytest.mark.parametrize(
    ("marks", "settings", "reviewed"),
    [
        ({}, {}, set()),
        ({"plain": "good", "dogs": "bad"}, {}, {"plain"}),
        ({"plain": "good"}, {"exhaustive": "all"}, {"plain", "dogs", "turned", "no region"}),
    ],
)
def test_pairs_are_exhaustive_where_somebody_looked(
    marks: dict[str, str],
    settings: dict[str, str],
    reviewed: set[str],
    rows: list[dict[str, Any]],
    demo_dataset: Path,
    tmp_path: Path,
) -> None:
    marked = Path(shutil.copytree(demo_dataset, tmp_path / "dataset"))
    write_marks(marked, marks)
    truth, notes = written(rows, marked, tmp_path / "out", **settings)
    pairs = truth.dataset["images"]
    for pair in pairs:
        told = int(pair["sample_id"] in reviewed)
        assert (pair["is_instance_exhaustive"], pair["is_pixel_exhaustive"]) == (told, told)
    assert notes[UNREVIEWED] == sum(pair["sample_id"] not in reviewed for pair in pairs)


def test_negatives_can_be_left_out(rows: list[dict[str, Any]], demo_dataset: Path, tmp_path: Path) -> None:
    truth, _ = written(rows, demo_dataset, tmp_path / "positives", negatives=False)
    assert all(truth.imgToAnns[pair["id"]] for pair in truth.dataset["images"])
    written(rows, demo_dataset, tmp_path / "all")
    text = json.loads((tmp_path / "all" / "train.json").read_text())
    assert {pair["presence"] for pair in text["images"]} == {0.9, 0.25}


def test_an_image_of_absent_phrases_only_is_exported_unless_a_condition_chooses(tmp_path: Path) -> None:
    """A condition asks for regions, and such an image has none."""
    make = Maker()
    ghost = Phrase(text="ghost", caption_index=0, start=2, end=7, head="ghost")
    gone = Absent(phrase_index=0, presence=0.125, similarity=0.2)
    rows = [
        make.record("car", ("a red car",), [(0, "a red car", mask((3, 4, 10, 12)))]),
        replace(make.record("ghost", ("a ghost",), []), phrases=(ghost,), absent=(gone,)),
        make.record("none", ("a wave",), []),
    ]
    dataset = open_dataset(finished(tmp_path / "dataset", rows))
    for name, request, pairs in (
        ("all", {}, {"red car": 0.9, "ghost": 0.125}),
        ("sure", {"min_score": 0.9}, {"ghost": 0.125}),
        ("chosen", {"where": "head = 'car'"}, {"red car": 0.9}),
    ):
        report = export_dataset(dataset, ExportRequest(exporter=Saco, out=tmp_path / name, **request))
        text = json.loads((tmp_path / name / "train.json").read_text())
        assert {pair["text_input"]: pair["presence"] for pair in text["images"]} == pairs
        assert report.samples == {"train": len(pairs)}
        assert report.rows == 3 == report.samples.total() + report.left_out.total()
