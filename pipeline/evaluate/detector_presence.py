"""Presence fitted to the answers of a detector and a ground truth.

A detector is asked for the phrases of other images in prompts of their own, as if their captions
were those of the image. So the boxes of the image's own phrases stay those of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from rich.console import Console

from pipeline.evaluate.estimates import Estimates, logistic_out_of_fold, presence_area
from pipeline.evaluate.evaluation_set import EvaluationSet, process_input
from pipeline.evaluate.foreign_phrases import check_enough, query_images
from pipeline.logistic import LogisticFit, fit_logistic
from pipeline.steps import SourceSteps
from stages.contract.records import Record
from stages.regions.detected import PRESENCE_FEATURES, DetectorPresence, boxes_of, presence_features


def fit_detector_presence(
    evaluation_set: EvaluationSet, steps: SourceSteps, records: Sequence[Record], console: Console
) -> tuple[DetectorPresence, Estimates]:
    """Fit presence to the same phrases as `pipeline.evaluate.foreign_phrases.fit_presence_to_truth`.

    Args:
        evaluation_set: The dataset and its ground truth.
        steps: The detector.
        records: Its answers about the images' own phrases.
        console: Shows the progress.

    Returns:
        The fit, and its figure `presence_auc` on images that it was not fitted to.

    Raise InputError if there are too few phrases.
    """
    images_by_name = query_images(
        evaluation_set, {record.sample.sample_id: record.phrases for record in records}
    )
    check_enough(images_by_name)
    foreign = {name: image.absent["random"] for name, image in images_by_name.items()}
    stages = [steps.prepare_stage, steps.model_stage]
    foreign_records = process_input(evaluation_set.reader, stages, foreign, console)
    judged = [
        (features, text in image.types_by_text, image.number)
        for record in chain(records, foreign_records)
        if (image := images_by_name.get(record.sample.sample_id)) is not None
        for text, features in features_by_text(record).items()
        if text in image.judged_texts
    ]
    values, labels, images = map(np.array, zip(*judged, strict=True))
    area = presence_area(logistic_out_of_fold(values, labels, images), labels, images)
    return presence_of(fit_logistic(values, labels), float(labels.mean())), {"presence_auc": area}


def presence_of(fit: LogisticFit, present_share: float) -> DetectorPresence:
    """Return a fit to the `PRESENCE_FEATURES` of phrases, of which such a share is present."""
    return DetectorPresence(
        bias=fit.bias, **fit.by_name(PRESENCE_FEATURES), absent_share=1.0 - present_share
    )


def features_by_text(record: Record) -> dict[str, list[float]]:
    """Return the `PRESENCE_FEATURES` of each text of a record; none for one with an error."""
    if record.error is not None:
        return {}
    texts = (phrase.text for phrase in record.phrases)
    return {
        text: [*presence_features(boxes).values()]
        for text, boxes in zip(texts, boxes_of(record), strict=True)
    }
