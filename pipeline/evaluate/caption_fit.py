"""`phrasebox calibrate` without a ground truth or answers: presence alone, fitted to captions.

The phrases of an image's captions are taken as there, and those of other images as absent: see
`pipeline.presence_fit`, which a run does with its first images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from pipeline.calibration import source_basis
from pipeline.config import stored_config
from pipeline.dataset.folder import open_dataset
from pipeline.dataset.origin import check_named
from pipeline.engines.inline import rows_per_call, run_stages, set_up
from pipeline.evaluate.detector_presence import features_by_text, presence_of
from pipeline.logistic import roc_area
from pipeline.paths import write_file
from pipeline.presence_fit import PresenceFit, draw_for_images, explain_no_difference, fit_noisy
from pipeline.steps import SourceSteps, build_detector_steps, build_steps, check_files
from pipeline.warm_up import first_samples, fit_to_samples
from stages.contract.errors import InputError
from stages.contract.records import Record, Sample
from stages.contract.values import Floats
from stages.read import make_reader
from stages.regions.detected import PRESENCE_FEATURES
from stages.regions.score import Calibration
from stages.regions.source import HEAT_MAPS, RegionSourceConfig

CAPTIONED: Final = 1000
"""The most images that presence is fitted to without annotations: more than by a run, which waits
for the fit."""


def write_presence(dataset: Path, out: Path, console: Console, settings: Sequence[str] = ()) -> PresenceFit:
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
) -> PresenceFit:
    """Fit presence alone to the captions of samples, whose phrases are taken as there (`pipeline.presence_fit`).

    Raise PhraseboxError as the stages do, which are not set up.
    """
    with set_up(steps.first_stages):
        parsed = run_stages(steps.before[:1], [Record.start(sample) for sample in samples])
        foreign, too_few = draw_for_images(parsed)
        if too_few is not None:
            return PresenceFit(reason=too_few)
        captioned = [record for record in parsed if record.sample.key in foreign]
        features = _features_of(steps, captioned)
        foreign_features = _features_of(
            steps, [replace(record, phrases=tuple(foreign[record.sample.key])) for record in captioned]
        )
    values = np.concatenate([features, foreign_features])
    in_captions = np.arange(len(values)) < len(features)
    has_box, log_odds = values.T
    ranks = np.where(has_box > 0, log_odds, -np.inf)
    area = roc_area(ranks)(in_captions.astype(float), (~in_captions).astype(float))
    if (reason := explain_no_difference(area)) is not None:
        return PresenceFit(reason=reason)
    fit, presences = fit_noisy(values, in_captions)
    calibration = Calibration(
        bias=0.0,
        mean={},
        scale={},
        weight={},
        made_with=source_basis(source, steps.fingerprint),
        made_from={
            "annotations": "none",
            "images": len(captioned),
            "absent_share": round(1.0 - float(presences[in_captions].mean()), 3),
        },
        presence=presence_of(fit, float(presences.mean())),
    )
    return PresenceFit(calibration=calibration)


def _features_of(steps: SourceSteps, records: Sequence[Record]) -> Floats:
    """Return the `PRESENCE_FEATURES` (n, 2) of the phrases of records, by a detector that is set up."""
    todo = iter(records)
    features: list[list[float]] = []
    while batch := list(islice(todo, rows_per_call(steps.model_stage))):
        for record in run_stages((steps.prepare_stage, steps.model_stage), batch):
            features += features_by_text(record).values()
    return np.array(features).reshape(-1, len(PRESENCE_FEATURES))
