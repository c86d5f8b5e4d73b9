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

Boxes = dict[tuple[str, str], list[Box]]  # by id of the sample and phrase


def reviewed_dataset(path: Path, settings: Sequence[str] = ()) -> tuple[JudgedDataset, Boxes]:
    """Return a dataset with the reviews beside it as its ground truth, and the boxes that people called wrong.

    A region that they called right, or its box as they corrected it, is a true box of its phrase; a phrase that they
    called absent is. Deleted and corrected regions are wrong. `settings` are as for `judged_dataset`.

    Raise InputError if nobody reviewed a region of this dataset, or if dataset or reviews cannot be read.
    """
    dataset = open_dataset(path)
    reviews = read_reviews(dataset.path)
    answers, corrections = reviews.majority_answers(), reviews.corrections
    found = find_regions(dataset, {*answers, *corrections})
    images = list(dataset.rows(["sample_id", "file_name", "height", "width"]))
    right: Boxes = defaultdict(list)
    wrong: Boxes = defaultdict(list)
    absent: dict[str, set[str]] = defaultdict(set)
    for key, region in found.items():
        # Several rows may share an image, each with its own phrases, of which only some were looked at.
        sample, correction = images[region.row]["sample_id"], corrections.get(key)
        if correction is not None:
            wrong[sample, key.phrase].append(key.bbox)
            if correction.box_xywh_px is not None:
                right[sample, key.phrase].append(correction.box_xywh_px)
        elif answers[key] == "absent":
            absent[sample].add(key.phrase)
        elif answers[key] != "unsure":
            (right if answers[key] == "right" else wrong)[sample, key.phrase].append(key.bbox)
    samples = {sample for sample, _ in [*right, *wrong]} | set(absent)
    if not samples:
        raise InputError(f"{path} has no reviewed regions; phrasebox inspect {path} --review collects them")
    truth = {}
    for row in images:
        sample, name = row["sample_id"], row["file_name"]
        if sample in samples:
            targets = (
                TruthTarget(phrase=phrase, boxes_xywh_px=tuple(boxes), match="phrase")
                for (own, phrase), boxes in right.items()
                if own == sample
            )
            size = {"width_px": row["width"], "height_px": row["height"]}
            truth[sample] = TruthImage(file_name=name, targets=tuple(targets), absent=frozenset(absent[sample]), **size)
    known, matched = GroundTruth(images=truth), ImageMatches(images=truth, by_stem=0, ambiguous=0)
    return JudgedDataset(dataset=dataset, settings=settings, truth=known, matched=matched, by="sample_id"), wrong
