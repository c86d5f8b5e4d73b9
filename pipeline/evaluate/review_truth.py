"""People's answers about regions as a ground truth of the phrases they looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.folder import open_dataset
from pipeline.dataset.reviews import find_regions, read_reviews
from pipeline.evaluate.judged import JudgedDataset
from pipeline.evaluate.matching import ImageMatches
from stages.contract.errors import InputError
from stages.contract.geometry import Box
from stages.truth.ground_truth import GroundTruth, TruthImage, TruthTarget

Boxes = dict[tuple[str, str], list[Box]]  # by file name and phrase


def reviewed_dataset(path: Path, settings: Sequence[str] = ()) -> tuple[JudgedDataset, Boxes]:
    """Return a dataset with the reviews beside it as its ground truth, and the boxes that people called wrong.

    A region that they called right, or its box as they corrected it, is a true box of its phrase; a phrase that they
    called absent is. Deleted and corrected regions are wrong. `settings` are as for `judged_dataset`.

    Raise InputError if nobody reviewed a region of this dataset, or if dataset or reviews cannot be read.
    """
    dataset = open_dataset(path)
    reviews = read_reviews(dataset.path)
    answers, corrections = reviews.merged(), reviews.corrections
    found = find_regions(dataset, {*answers, *corrections})
    images = list(dataset.rows(["file_name", "height", "width"]))
    right: Boxes = defaultdict(list)
    wrong: Boxes = defaultdict(list)
    absent: dict[str, set[str]] = defaultdict(set)
    for key, region in found.items():
        file_name, correction = images[region.row]["file_name"], corrections.get(key)
        if correction is not None:
            wrong[file_name, key.phrase].append(key.bbox)
            if correction.box_xywh_px is not None:
                right[file_name, key.phrase].append(correction.box_xywh_px)
        elif answers[key] == "absent":
            absent[file_name].add(key.phrase)
        elif answers[key] != "unsure":
            (right if answers[key] == "right" else wrong)[file_name, key.phrase].append(key.bbox)
    names = {name for name, _ in [*right, *wrong]} | set(absent)
    if not names:
        raise InputError(f"{path} has no reviewed regions; phrasebox inspect {path} --review collects them")
    truth = {}
    for row in images:
        name = row["file_name"]
        if name in names:
            targets = (
                TruthTarget(phrase=phrase, boxes_xywh_px=tuple(boxes), match="phrase")
                for (own, phrase), boxes in right.items()
                if own == name
            )
            size = {"width_px": row["width"], "height_px": row["height"]}
            truth[name] = TruthImage(file_name=name, targets=tuple(targets), absent=frozenset(absent[name]), **size)
    matched = ImageMatches(images=truth, by_stem=0, ambiguous=0)
    return JudgedDataset(dataset=dataset, settings=settings, truth=GroundTruth(images=truth), matched=matched), wrong
