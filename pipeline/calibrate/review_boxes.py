"""Boxes learned from a review: `phrasebox calibrate --reviews` where people dragged the boxes of wrong regions.

A moved box is where the phrase is. Of a region that people call right only its own box is known,
and that stands for the place. The fit and its decision are those of a ground truth
(`box_fit.py`), except that learned boxes must be better than the dataset's.

Neither kind makes learned boxes look better than they are. The target of a right region is its
own box. A learned box that moves away from it counts as worse, even if it fits the object
better, so the fit learns to leave such boxes as they are. People do not drag the box of every
wrong region, so the moved ones also count for the others: then right and wrong regions have the
weights that they have in the dataset, of which the review is a random sample. Boxes that are
corrected elsewhere do not count: people look for wrong ones there. Further regions of a plural
do not count either, as learned boxes are first ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from phrasebox.pipeline.calibrate.box_fit import (
    BLANK,
    KnownPlace,
    LearnedBoxes,
    fold_of,
    learn_boxes,
    place_objects,
)
from phrasebox.pipeline.calibrate.cut_fit import RowRecords
from phrasebox.pipeline.dataset.reviews import RegionKey
from phrasebox.pipeline.dataset.rows import Row
from phrasebox.pipeline.evaluate.metrics import is_right
from phrasebox.pipeline.evaluate.reviews import ReviewedRegions
from phrasebox.stages.contract.geometry import Box, xyxy_to_xywh
from phrasebox.stages.contract.records import Record
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.score import Calibration, Evidence, score_of


class ReviewedPhrase(NamedTuple):
    """A phrase with a reviewed region.

    Attributes:
        key: The region.
        phrase_index: Of the phrase in its record.
        answer: "right", "wrong" or "absent".
        is_first: Whether the region is the first of its phrase.
        place: Where the phrase is, in px within the image; None if nobody knows.
    """

    key: RegionKey
    phrase_index: int
    answer: str
    is_first: bool
    place: Box | None


def reviewed_phrases(reviewed: ReviewedRegions, rows: RowRecords) -> dict[int, list[ReviewedPhrase]]:
    """Return the phrases with reviewed regions of each row, by the row's `id`."""
    records = {row["id"]: record for row, record in rows}
    firsts = {
        (row["id"], region["phrase"]): region["bbox"]
        for row, _ in rows
        for region in reversed(row["annotations"])
    }
    phrases: dict[int, list[ReviewedPhrase]] = defaultdict(list)
    for (key, region), answer, box in zip(
        reviewed.regions.items(), reviewed.answers.tolist(), reviewed.boxes, strict=True
    ):
        image = region.annotation["image_id"]
        record = records[image]
        phrases[image].append(
            ReviewedPhrase(
                key=key,
                phrase_index=next(
                    index for index, phrase in enumerate(record.phrases) if phrase.text == key.phrase
                ),
                answer=answer,
                is_first=tuple(firsts[image, key.phrase]) == key.bbox,
                place=None if box is None else _within_image(box, record),
            )
        )
    return phrases


def _within_image(box_xywh_px: Box, record: Record) -> Box | None:
    """Return the part of a box within the image; None without any."""
    x, y, w, h = box_xywh_px
    right = min(x + w, record.width_px)
    bottom = min(y + h, record.height_px)
    return xyxy_to_xywh((x, y, right, bottom)) if right > x and bottom > y else None


def learn_reviewed_boxes(
    phrases: Mapping[int, Sequence[ReviewedPhrase]],
    rows: RowRecords,
    config: RegionsConfig,
    previous: Calibration | None,
) -> LearnedBoxes | None:
    """Learn boxes from a review; None if it has no moved boxes. `previous` made the dataset's boxes.

    Without a `gain` there are too few images. Without networks they are not shown to be better.
    """
    first_phrases = [
        phrase for row_phrases in phrases.values() for phrase in row_phrases if phrase.is_first
    ]
    wrong = [phrase.place for phrase in first_phrases if phrase.answer == "wrong"]
    moved = [place for place in wrong if place is not None]
    if not moved:
        return None
    weights = {"right": 1.0, "wrong": len(wrong) / len(moved), "absent": 0.0}

    def places_of(row: Row, _: Record) -> Iterator[KnownPlace]:
        for phrase in phrases.get(row["id"], ()):
            if phrase.is_first and phrase.place is not None and weights[phrase.answer]:
                yield KnownPlace(phrase.phrase_index, (phrase.place,), weights[phrase.answer])

    cut = None if previous is None else previous.cut
    objects = place_objects(config, rows, places_of, {row["id"]: cut for row, _ in rows})
    before = None if previous is None else previous.box
    return learn_boxes(objects, before or BLANK) if objects else None


def judge_learned_boxes(
    reviewed: ReviewedRegions,
    phrases: Mapping[int, Sequence[ReviewedPhrase]],
    rows: RowRecords,
    stages: Sequence[RegionsStage],
) -> tuple[ReviewedRegions, list[Evidence]]:
    """Return the regions with learned boxes in place of the reviewed ones, and their evidence.

    A box is right if its place is known and it is near. Where the place is not known, a wrong
    region stays wrong: few become right, so scores are rather too low. Scores are those of the
    previous calibration.

    stages: They make the regions of each fold, by boxes learned from the others.
    """
    regions = {}
    answers = []
    evidence = []
    for row, record in rows:
        stage = stages[fold_of(row["id"])]
        row_regions = stage.regions_of(record) if row["id"] in phrases else []
        for phrase in phrases.get(row["id"], ()):
            parts = row_regions[phrase.phrase_index]
            answer = phrase.answer
            part = next((part for part in parts if _has_box(part[0].box_xywh_px, phrase.key)), None)
            if part is None and parts and phrase.is_first:
                part = parts[0]
                if answer != "absent" and phrase.place is not None:
                    answer = "right" if is_right(part[0].box_xywh_px, [phrase.place]) else "wrong"
            if part is None:
                continue
            region = reviewed.regions[phrase.key]
            score = score_of(stage.calibration, part[1], region.annotation["presence"])
            regions[phrase.key] = region._replace(annotation={**region.annotation, "score": score})
            answers.append(answer)
            evidence.append(part[1])
    return replace(reviewed, regions=regions, answers=np.array(answers, np.str_)), evidence


def _has_box(box_xywh_px: Box, key: RegionKey) -> bool:
    """Return whether a box is that of a region, as datasets store it."""
    return tuple(np.array(box_xywh_px, np.float32).tolist()) == key.bbox
