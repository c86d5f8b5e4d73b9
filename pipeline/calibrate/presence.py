"""Presence by `calibrate`: with a ground truth, and without one.

With a ground truth presence is fitted to present phrases and to absent ones. A source is asked for
the phrases of other images as if their captions were those of the image. So the boxes of the image's
own phrases stay those of a run.

Without a ground truth or answers presence alone is fitted, to captions. The phrases of an image's
captions are taken as there, and those of other images as absent: see `phrasebox.pipeline.run.presence_fit`,
which a run does with its first images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, islice
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import numpy as np
from rich.console import Console

from phrasebox.pipeline.config.paths import write_file
from phrasebox.pipeline.config.run_config import stored_config
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.origin import check_named
from phrasebox.pipeline.evaluate.absent import QueriedImage
from phrasebox.pipeline.evaluate.estimates import Estimate, Estimates, judge_with_folds, presence_area
from phrasebox.pipeline.evaluate.evaluation_set import EvaluationSet, process_input
from phrasebox.pipeline.evaluate.foreign_phrases import model_steps, query_images
from phrasebox.pipeline.run.calibration import source_basis
from phrasebox.pipeline.run.presence_fit import (
    FEWEST_PHRASES,
    PresenceResult,
    draw_for_images,
    fit_to_captions,
    signals_of,
)
from phrasebox.pipeline.run.stage_calls import rows_per_call, run_stages, set_up
from phrasebox.pipeline.run.steps import SourceSteps, build_detector_steps, build_steps, check_files
from phrasebox.pipeline.run.warm_up import first_samples, fit_to_samples
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.contract.values import Bools, Floats, Integers
from phrasebox.stages.read import make_reader
from phrasebox.stages.scores.detected import (
    PRESENCE_FEATURES,
    BoxFeatures,
    DetectorPresence,
    boxes_of,
    presence_features,
)
from phrasebox.stages.scores.fitted_presence import (
    FittedPresence,
    PhraseFeatures,
    PresenceT,
    fit_presence,
)
from phrasebox.stages.scores.presence import ClipFeatures, ImageSignals, Presence
from phrasebox.stages.sources.source import NOT_FINITE, RegionSourceConfig

CAPTIONED: Final = 1000
"""The most images that presence is fitted to without annotations: more than by a run, which waits
for the fit."""

PHRASE_KINDS: Final = ("present phrases", "absent phrases")

ImageText = tuple[QueriedImage, str]
"""An image, and a text that it was asked for."""


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
        if config.source.makes_heat_maps:
            steps = build_steps(config)
            steps = replace(steps, model_stage=steps.model_stage.with_presence(None), generic=None)
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
    return fit_to_captions(
        BoxFeatures.of(np.concatenate([features, foreign_features])),
        np.repeat([True, False], [len(features), len(foreign_features)]),
        source_basis(source, steps.fingerprint),
        images=len(captioned),
    )


def _features_of(steps: SourceSteps, records: Sequence[Record]) -> Floats:
    """Return the `PRESENCE_FEATURES` (n, 3) of the phrases of records, by a source that is set up."""
    todo = iter(records)
    features: list[list[float]] = []
    while batch := list(islice(todo, rows_per_call(steps.model_stage))):
        for record in run_stages((steps.prepare_stage, steps.model_stage), batch):
            features += features_by_text(record).values()
    return np.array(features).reshape(-1, len(PRESENCE_FEATURES))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueLabels:
    """What a ground truth says of phrases that images were asked for.

    Attributes:
        is_present: Whether each is in its image (n,).
        images: The number of its image (n,).
    """

    is_present: Bools
    images: Integers

    @classmethod
    def of(cls, texts: Sequence[ImageText]) -> Self:
        """Return the labels of texts that are judged. Raise InputError if they are too few."""
        _check_enough(len(texts))
        return cls(
            is_present=np.array([text in image.types_by_text for image, text in texts], np.bool_),
            images=np.array([image.number for image, _ in texts], np.int64),
        )

    def fit(self, features: PhraseFeatures[PresenceT]) -> tuple[FittedPresence[PresenceT], Estimate]:
        """Fit presence; also return its ROC area on images that it was not fitted to.

        Raise InputError if the phrases are one-sided.
        """
        probabilities = judge_with_folds(features.values, self.is_present, self.images, PHRASE_KINDS)
        return fit_presence(features, self.is_present, is_noisy=False), self.area(probabilities)

    def area(self, scores: Floats) -> Estimate:
        """Return the ROC area of scores (n,)."""
        return presence_area(scores, self.is_present, self.images)


def fit_presence_to_truth(
    evaluation_set: EvaluationSet, console: Console
) -> tuple[Presence, Estimates, dict[tuple[int, str], float]]:
    """Fit presence to present phrases, to phrases of other images, and to phrases that the ground truth calls absent.

    Also return the figures, and the presence of each image's own texts. The figures are
    `presence_auc` and `similarity_auc` on images that the regression was not fitted to; the
    statistics of the images come from all images.

    Raise InputError if the phrases are too few or one-sided, and as `model_steps`.
    """
    images_by_name = _query_enough_phrases(evaluation_set)
    phrases = {name: [*image.phrases, *image.absent["random"]] for name, image in images_by_name.items()}
    steps = model_steps(evaluation_set)
    records = process_input(evaluation_set.reader, [steps.prepare_stage], phrases, console)
    signals: list[ImageSignals] = []
    texts: list[ImageText] = []
    for record, image_signals in signals_of(steps.model_stage, records, console):
        image = images_by_name[record.sample.sample_id]
        signals.append(image_signals)
        texts += [(image, text) for text in dict.fromkeys(phrase.text for phrase in record.phrases)]
    is_judged = _are_judged(texts)
    labels = TrueLabels.of(list(compress(texts, is_judged)))
    features = ClipFeatures.of(signals)
    judged = features.where(is_judged)
    fit, area = labels.fit(judged)
    figures = {"presence_auc": area, "similarity_auc": labels.area(judged.values[:, 0])}
    # Six weights and some thousand phrases: what the fit says of its own phrases is hardly flattered.
    presences = fit.regression.probability(features.values).round(6).tolist()
    keys = [(image.number, text) for image, text in texts]
    return fit.presence, figures, dict(zip(keys, presences, strict=True))


def fit_detector_presence(
    evaluation_set: EvaluationSet, steps: SourceSteps, records: Sequence[Record], console: Console
) -> tuple[DetectorPresence, Estimates]:
    """Fit presence to the same phrases as `fit_presence_to_truth`.

    Args:
        evaluation_set: The dataset and its ground truth.
        steps: The detector.
        records: Its answers about the images' own phrases.
        console: Shows the progress.

    Returns:
        The fit, and its figure `presence_auc` on images that it was not fitted to.

    Raise InputError if the phrases are too few or one-sided.
    """
    phrases = {record.sample.sample_id: record.phrases for record in records}
    images_by_name = _query_enough_phrases(evaluation_set, phrases)
    foreign = {name: image.absent["random"] for name, image in images_by_name.items()}
    stages = [steps.prepare_stage, steps.model_stage]
    foreign_records = process_input(evaluation_set.reader, stages, foreign, console)
    values: list[list[float]] = []
    texts: list[ImageText] = []
    for record in chain(records, foreign_records):
        image = images_by_name.get(record.sample.sample_id)
        if image is not None:
            features_of_texts = features_by_text(record)
            values += features_of_texts.values()
            texts += [(image, text) for text in features_of_texts]
    is_judged = _are_judged(texts)
    labels = TrueLabels.of(list(compress(texts, is_judged)))
    fit, area = labels.fit(BoxFeatures.of(np.array(values)[is_judged]))
    return fit.presence, {"presence_auc": area}


def _query_enough_phrases(
    evaluation_set: EvaluationSet, parsed: Mapping[str, Sequence[Phrase]] = MappingProxyType({})
) -> dict[str, QueriedImage]:
    """Return what `query_images` does. Raise InputError if too few phrases are judged."""
    images_by_name = query_images(evaluation_set, parsed)
    _check_enough(sum(len(image.judged_texts) for image in images_by_name.values()))
    return images_by_name


def _check_enough(phrases: int) -> None:
    """Raise InputError if so few phrases are judged that a fit says more about chance than about the model."""
    if phrases < FEWEST_PHRASES:
        raise InputError(
            f"presence cannot be fitted: fewer than {FEWEST_PHRASES} phrases with a known place"
        )


def _are_judged(texts: Sequence[ImageText]) -> Bools:
    """Return whether it is known of each text (n,) that it is in its image or not."""
    return np.array([text in image.judged_texts for image, text in texts], np.bool_)


def features_by_text(record: Record) -> dict[str, list[float]]:
    """Return the `PRESENCE_FEATURES` of each text that a caption says; none where nothing is known of the image."""
    if record.error is not None or NOT_FINITE in record.notes:
        return {}
    return {
        phrase.text: [*presence_features(boxes).values()]
        for phrase, boxes in zip(record.phrases, boxes_of(record), strict=True)
        if phrase.is_said
    }
