"""People's answers about regions as a ground truth of the reviewed phrases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.folder import open_dataset
from pipeline.dataset.reviews import find_regions, read_reviews
from pipeline.evaluate.evaluation_set import EvaluationSet
from pipeline.evaluate.matching import ImageMatches
from stages.contract.errors import InputError
from stages.contract.geometry import Box
from stages.truth.ground_truth import GroundTruth, TruthImage, TruthTarget

Boxes = dict[tuple[str, str], list[Box]]  # by id of the sample and phrase


def open_reviewed_dataset(path: Path, settings: Sequence[str] = ()) -> tuple[EvaluationSet, Boxes]:
    """Open a dataset with its reviews as its ground truth; return it and the boxes that people call wrong.

    A region that people call right is a true box of its phrase, and so is a corrected box. A phrase
    that they call absent is absent. Deleted and corrected regions are wrong. `settings` are as for
    `open_evaluation_set`.

    Raise InputError if nobody reviewed a region of this dataset, or if dataset or reviews cannot be
    read.
    """
    dataset = open_dataset(path)
    reviews = read_reviews(dataset.path)
    answers = reviews.majority_answers()
    corrections = reviews.corrections
    regions = find_regions(dataset, {*answers, *corrections})
    images = list(dataset.rows(["sample_id", "file_name", "height", "width"]))
    right: Boxes = defaultdict(list)
    wrong: Boxes = defaultdict(list)
    absent: dict[str, set[str]] = defaultdict(set)
    for key, region in regions.items():
        # By sample: several rows may share an image, each with its own phrases.
        sample = images[region.row]["sample_id"]
        correction = corrections.get(key)
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
        sample = row["sample_id"]
        if sample in samples:
            targets = (
                TruthTarget(phrase=phrase, boxes_xywh_px=tuple(boxes), match="phrase")
                for (owner, phrase), boxes in right.items()
                if owner == sample
            )
            truth[sample] = TruthImage(
                file_name=row["file_name"],
                width_px=row["width"],
                height_px=row["height"],
                targets=tuple(targets),
                absent=frozenset(absent[sample]),
            )
    evaluation_set = EvaluationSet(
        dataset=dataset,
        settings=settings,
        truth=GroundTruth(images=truth),
        truth_path=dataset.path,
        matches=ImageMatches(images=truth, by_stem=0, ambiguous=0),
        by="sample_id",
    )
    return evaluation_set, wrong
