"""Presence by `calibrate`: of a source with a ground truth, and of any dataset without one.

A source is asked for the phrases of other images as if their captions were those of the image. So
the boxes of the image's own phrases stay those of a run.

Without a ground truth or answers presence alone is fitted, to captions. The phrases of an image's
captions are taken as there, and those of other images as absent: see `phrasebox.pipeline.run.presence_fit`,
which a run does with its first images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from phrasebox.pipeline.config.paths import write_file
from phrasebox.pipeline.config.run_config import stored_config
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.origin import check_named
from phrasebox.pipeline.evaluate.estimates import Estimates, fit_with_folds, presence_area
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, process_input
from phrasebox.pipeline.evaluate.foreign_phrases import PHRASE_KINDS, check_enough, query_images
from phrasebox.pipeline.run.calibration import source_basis
from phrasebox.pipeline.run.presence_fit import (
    PresenceResult,
    draw_for_images,
    explain_no_difference,
    fit_noisy,
    presence_calibration,
)
from phrasebox.pipeline.run.stage_calls import rows_per_call, run_stages, set_up
from phrasebox.pipeline.run.steps import SourceSteps, build_detector_steps, build_steps, check_files
from phrasebox.pipeline.run.warm_up import first_samples, fit_to_samples
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.contract.values import Floats
from phrasebox.stages.read import make_reader
from phrasebox.stages.scores.detected import (
    PRESENCE_FEATURES,
    SIMILARITY,
    DetectorPresence,
    boxes_of,
    presence_features,
)
from phrasebox.stages.scores.logistic import LogisticModel, roc_area
from phrasebox.stages.sources.source import HEAT_MAPS, NOT_FINITE, RegionSourceConfig

CAPTIONED: Final = 1000
"""The most images that presence is fitted to without annotations: more than by a run, which waits
for the fit."""


def write_presence(
    dataset: Path, out: Path, console: Console, settings: Sequence[str] = ()
) -> PresenceResult:
    """Fit presence to the captions of a dataset's images, without annotations, and write the calibration to `out`.

    Raise InputError if there are too few captions, or if they fit their images no better than other
    images. Raise ConfigError if `out` cannot be written or a setting cannot be used; and as
    `EvaluationSet.steps`.
    """
    folder = open_dataset(dataset)
    check_named(folder, settings=settings)
    config = stored_config(folder.manifest["config"], settings)
    check_files(config)
    reader = make_reader(config.input)
    samples = first_samples(reader, reader.pieces(), CAPTIONED)
    with console.status(f"fitting presence to at most {CAPTIONED:,} images"):
        if config.source.kind == HEAT_MAPS:
            steps = build_steps(config)
            steps = replace(steps, model_stage=steps.model_stage.with_presence(None))
            with set_up(steps.first_stages):
                fit = fit_to_samples(steps, samples).presence
        else:
            fit = fit_detector_to_captions(build_detector_steps(config), config.source, samples)
    if fit.calibration is None:
        raise InputError(f"{dataset}: {fit.in_words()}")
    write_file("out", out, fit.calibration.to_json())
    return fit


def fit_detector_to_captions(
    steps: SourceSteps, source: RegionSourceConfig, samples: Iterable[Sample]
) -> PresenceResult:
    """Fit presence alone to captions of samples, whose phrases are taken as there: `pipeline/run/presence_fit.py`.

    Raise PhraseboxError as the stages do, which are not set up.
    """
    with set_up(steps.first_stages):
        parsed = run_stages(steps.before[:1], [Record.start(sample) for sample in samples])
        foreign, too_few = draw_for_images(parsed)
        if too_few is not None:
            return PresenceResult(reason=too_few)
        captioned = [record for record in parsed if record.sample.key in foreign]
        features = _features_of(steps, captioned)
        foreign_features = _features_of(
            steps, [replace(record, phrases=tuple(foreign[record.sample.key])) for record in captioned]
        )
    values = np.concatenate([features, foreign_features])
    in_captions = np.arange(len(values)) < len(features)
    has_box, log_odds, similarity = values.T
    # CLIP compares a box with the phrases that it may be called alone, but cosines of any images compare.
    ranks = np.where(has_box > 0, similarity if similarity.any() else log_odds, -np.inf)
    area = roc_area(ranks)(in_captions.astype(float), (~in_captions).astype(float))
    if (reason := explain_no_difference(area)) is not None:
        return PresenceResult(reason=reason)
    names, measured = _measured(values)
    fit, presences = fit_noisy(measured, in_captions)
    calibration = presence_calibration(
        source_basis(source, steps.fingerprint),
        presence_of(fit, names, float(presences.mean())),
        presences[in_captions],
        images=len(captioned),
    )
    return PresenceResult(calibration=calibration)


def _features_of(steps: SourceSteps, records: Sequence[Record]) -> Floats:
    """Return the `PRESENCE_FEATURES` (n, 3) of the phrases of records, by a source that is set up."""
    todo = iter(records)
    features: list[list[float]] = []
    while batch := list(islice(todo, rows_per_call(steps.model_stage))):
        for record in run_stages((steps.prepare_stage, steps.model_stage), batch):
            features += features_by_text(record).values()
    return np.array(features).reshape(-1, len(PRESENCE_FEATURES))


def fit_detector_presence(
    evaluation_set: EvaluationSet, steps: SourceSteps, records: Sequence[Record], console: Console
) -> tuple[DetectorPresence, Estimates]:
    """Fit presence to the same phrases as `phrasebox.pipeline.evaluate.foreign_phrases.fit_presence_to_truth`.

    Args:
        evaluation_set: The dataset and its ground truth.
        steps: The detector.
        records: Its answers about the images' own phrases.
        console: Shows the progress.

    Returns:
        The fit, and its figure `presence_auc` on images that it was not fitted to.

    Raise InputError if the phrases are too few or one-sided.
    """
    images_by_name = query_images(
        evaluation_set, {record.sample.sample_id: record.phrases for record in records}
    )
    check_enough(sum(len(image.judged_texts) for image in images_by_name.values()))
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
    check_enough(len(judged))
    values, labels, images = map(np.array, zip(*judged, strict=True))
    names, measured = _measured(values)
    fit, probabilities = fit_with_folds(measured, labels, images, PHRASE_KINDS)
    area = presence_area(probabilities, labels, images)
    return presence_of(fit, names, float(labels.mean())), {"presence_auc": area}


def presence_of(fit: LogisticModel, names: Sequence[str], present_share: float) -> DetectorPresence:
    """Return a fit to these features of phrases, of which such a share is present."""
    return DetectorPresence(bias=fit.bias, **fit.by_name(names), absent_share=1.0 - present_share)


def features_by_text(record: Record) -> dict[str, list[float]]:
    """Return the `PRESENCE_FEATURES` of each text that a caption says; none where nothing is known of the image."""
    if record.error is not None or NOT_FINITE in record.notes:
        return {}
    return {
        phrase.text: [*presence_features(boxes).values()]
        for phrase, boxes in zip(record.phrases, boxes_of(record), strict=True)
        if phrase.is_said
    }


def _measured(values: Floats) -> tuple[Sequence[str], Floats]:
    """Return names and values (n, k) of the `PRESENCE_FEATURES` (n, 3), without a similarity that is not measured."""
    count = len(PRESENCE_FEATURES) if values[:, PRESENCE_FEATURES.index(SIMILARITY)].any() else 2
    return PRESENCE_FEATURES[:count], values[:, :count]
