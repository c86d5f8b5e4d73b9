"""What boxes that people drag in a review bring: `phrasebox calibrate --reviews` with human boxes as the reviewer.

The reviewer drags the true box that overlaps the region most, with an error of each edge. Learned
boxes are judged on other images, by how much box recall rises; where the fit decides that the
dataset's boxes stay, nothing changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.calibrate.box_fit import BLANK, PlacedObject, is_hit, place_objects, true_places
from phrasebox.pipeline.calibrate.cut_fit import RowRecords
from phrasebox.pipeline.calibrate.review_boxes import ReviewedPhrase, learn_reviewed_boxes
from phrasebox.pipeline.dataset.reviews import RegionKey
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, open_evaluation_set
from phrasebox.pipeline.evaluate.foreign_phrases import model_steps
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.stages.contract.geometry import Box, box_iou, xywh_to_xyxy, xyxy_to_xywh
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.learned_box import BoxModel

COUNTS: Final = (100, 200, 300, 600)
DRAWS: Final = 8
DRAG_ERROR: Final = 0.05  # standard deviation of an edge, as a share of the side

UNCALIBRATED: Final = ("regions.calibration=none",)

COLUMNS: Final = (
    "answers",
    ["reviews whose boxes are used", "{:.0f} %"],
    ["gain in box recall", "{:+.3f}"],
)

console = Console()


@dataclass(frozen=True, kw_only=True)
class Reviewable:
    """Rows with maps, their regions whose truth is known, by image, and the stage that cut them."""

    rows: RowRecords
    regions: list[tuple[int, ReviewedPhrase, list[Box]]]  # image, region without an answer, true boxes
    stage: RegionsStage


def rows_and_stage(judged: EvaluationSet) -> tuple[RowRecords, RegionsStage]:
    """Return the rows of a dataset with their records, and the stage of its settings."""
    cuts = model_steps(judged).regions_stage
    rows = [pair for pair in judged.rows_with_maps(None, console) if pair[1].error is None]
    return rows, RegionsStage(cuts.config, cuts.calibration)


def reviewable(judged: EvaluationSet, rows: RowRecords, stage: RegionsStage) -> Reviewable:
    """Cut all regions with a known truth from the maps of rows."""
    regions = {}
    for row, record in rows:
        boxes: dict[int, list[Box]] = defaultdict(list)
        for query in judged.queries(row, record.phrases):
            if query.target is not None and query.phrase_index is not None:
                boxes[query.phrase_index] += query.target.boxes_xywh_px
        parts = stage.regions_of(record) if boxes else []
        for index, true_boxes in boxes.items():
            text = record.phrases[index].text
            for number, (painted, _) in enumerate(parts[index]):
                key = RegionKey(1, text, painted.box_xywh_px)
                region = ReviewedPhrase(
                    key=key, phrase_index=index, answer="", is_first=number == 0, place=None
                )
                regions[row["id"], text, painted.box_xywh_px] = row["id"], region, true_boxes
    return Reviewable(rows=rows, regions=list(regions.values()), stage=stage)


def reviewed(answerable: Reviewable, count: int, draw: int) -> dict[int, list[ReviewedPhrase]]:
    """Answer for a sample of regions, and drag the boxes of wrong ones."""
    rng = np.random.default_rng(draw)
    records = {row["id"]: record for row, record in answerable.rows}
    answered: dict[int, list[ReviewedPhrase]] = defaultdict(list)
    for number in rng.permutation(len(answerable.regions))[:count].tolist():
        image, region, boxes = answerable.regions[number]
        box = region.key.bbox
        if is_right(box, boxes):
            answered[image].append(region._replace(answer="right", place=box))
            continue
        ranks = [(box_iou(true_box, box), true_box[2] * true_box[3]) for true_box in boxes]
        nearest = boxes[ranks.index(max(ranks))]
        errors = DRAG_ERROR * np.tile(nearest[2:], 2) * rng.standard_normal(4)
        sides = np.tile([records[image].width_px, records[image].height_px], 2)
        x0, y0, x1, y1 = np.clip(np.array(xywh_to_xyxy(nearest)) + errors, 0, sides).tolist()
        place = xyxy_to_xywh((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
        answered[image].append(region._replace(answer="wrong", place=place))
    return answered


def box_recall(fit: BoxModel, objects: Sequence[PlacedObject]) -> float:
    """Return the share of phrases whose box by a fit is right."""
    return float(
        np.average(
            [is_hit(fit, object_) for object_ in objects], weights=[object_.weight for object_ in objects]
        )
    )


def rows_of(answerable: Reviewable, objects: Sequence[PlacedObject], before: float) -> list[list[Any]]:
    """Return a row for each number of answers; things: those that learned boxes are judged on; before: their recall."""
    rows: list[list[Any]] = []
    for count in COUNTS:
        gains = []
        for draw in range(DRAWS):
            learned = learn_reviewed_boxes(
                reviewed(answerable, count, draw), answerable.rows, answerable.stage.config, None
            )
            if learned is not None and learned.fit.networks:
                gains.append(box_recall(learned.fit, objects) - before)
        unused = [0.0] * (DRAWS - len(gains))
        gain = {"value": float(np.mean(gains + unused)), "worst": min(gains + unused)}
        rows.append([str(count), 100 * len(gains) / DRAWS, gain])
        console.print(rows[-1])
    return rows


def moved(photographs: Photographs) -> dict[str, Any]:
    """Return the table: answers about photographs of train without a calibration, judged on dev."""
    train, dev, settings = "flickr8k/train", "flickr8k/dev", Path("configs/photos.yaml")
    made = photographs.dataset(train, "photo", "photos", file=settings)
    answered = open_evaluation_set(made, photographs.truth(train), UNCALIBRATED, resized=True)
    judged = open_evaluation_set(
        photographs.dataset(dev, "photo", "photos", file=settings), photographs.truth(dev), UNCALIBRATED
    )
    answerable = reviewable(answered, *rows_and_stage(answered))
    rows, stage = rows_and_stage(judged)
    objects = place_objects(
        stage.config, rows, true_places(judged.queries), {row["id"]: None for row, _ in rows}
    )
    before = box_recall(BLANK, objects)
    counts = f"{len(answerable.rows)} photographs, judged on {len(rows):,} others"
    return {
        "name": "moved",
        "rows": rows_of(answerable, objects, before),
        "columns": [*COLUMNS],
        "n": f"{DRAWS} reviews of {counts}, box recall {before:.3f} before",
        "split": "Flickr8k train, Flickr8k dev",
        "model": "photo",
        "settings": "configs/photos.yaml, regions.calibration=none",
    }
