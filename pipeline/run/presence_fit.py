"""Presence without annotations, fitted to captioned images alone: to those of a dataset, or to the first of a run.

A phrase of an image's captions is taken as there, and a phrase of another image as absent, which
are noisy labels (`phrasebox.stages.scores.fitted_presence`). A phrase of another image is left out if
it shares a word or its head noun with the captions, or if its head may name one of their objects
("person", where they say "man").
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, repeat
from typing import Any, Final

import numpy as np
from rich.console import Console

from phrasebox.pipeline.run.calibration import presence_basis
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.pipeline.terminal import counted, say
from phrasebox.stages.contract.errors import ResumeError
from phrasebox.stages.contract.records import Phrase, Record, stable_id
from phrasebox.stages.contract.values import Bools, Json
from phrasebox.stages.explain.stage import ExplainStage
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.phrases.foreign import PhraseOfImage, draw_phrases, words_of
from phrasebox.stages.scores.detected import DetectorPresence
from phrasebox.stages.scores.fitted_presence import PhraseFeatures, fit_presence, separation
from phrasebox.stages.scores.presence import ClipFeatures, ImageSignals, Presence
from phrasebox.stages.scores.score import Calibration, calibration_of

MOST_IMAGES: Final = 300  # that are computed for a fit

SAMPLES_AN_IMAGE: Final = 10
"""Samples of the input for each image of a fit. One process computes these images while all others
wait."""

LEAST_LOOK: Final = 60  # images that a fit looks at; some may be unreadable, or have no phrases

FEWEST_IMAGES: Final = 50
"""The fewest images of a fit. On 500 photographs of train the ROC area is 0.917 to 0.920 with
50 images and 0.922 with 300, and the estimated share of absent phrases is twice as uncertain
with 50."""

FEWEST_PHRASES: Final = 100  # of captions; a fit to fewer says more about chance than about the model

LEAST_AREA: Final = 0.6
"""The least ROC area with which `deviation` has to separate phrases of captions from those of
other images. A model whose weights were not trained has 0.5. It is that of one feature, because
the others know texts that are said often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceResult:
    """The result of a fit.

    Attributes:
        calibration: A calibration of presence alone; None if presence could not be fitted.
        reason: Why it could not.
    """

    calibration: Calibration | None = None
    reason: str = ""

    def in_words(self) -> str:
        """Return a sentence for the log."""
        if self.calibration is None:
            return f"presence is not known: {self.reason}"
        share = self.calibration.made_from["absent_share"]
        return f"presence was fitted to {self.calibration.fitted_to}, of whose phrases {share:.1%} seem to be absent"


def most_to_fit(samples: int | None) -> int:
    """Return the most images that a fit looks at, given the number of samples of the input; None if not known."""
    return (
        MOST_IMAGES if samples is None else max(LEAST_LOOK, min(MOST_IMAGES, samples // SAMPLES_AN_IMAGE))
    )


def read_presence(path: AnyPath, digest: str | None) -> Calibration | None:
    """Return the calibration of presence that a run has fitted before; None if it has fitted none.

    Raise ResumeError if the file is missing or another, because rows depend on it.
    """
    if digest is None:
        return None
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        text = b""
    if sha256(text).hexdigest() != digest:
        raise ResumeError(
            f"{path} is not the file that its rows were made with: put it back, or run with --fresh"
        )
    return calibration_of(text.decode(), path)


def explain_too_few(images: int, phrases: int) -> str | None:
    """Return why presence cannot be fitted to so many images, whose captions have so many phrases; None if it can."""
    if images >= FEWEST_IMAGES and phrases >= FEWEST_PHRASES:
        return None
    return (
        f"{images} images with {phrases} phrases are too few to fit it to, {FEWEST_IMAGES} with {FEWEST_PHRASES} are "
        "needed"
    )


def explain_no_difference(area: float) -> str | None:
    """Return why presence cannot be fitted to phrases with such a ROC area; None if it can."""
    if area >= LEAST_AREA:
        return None
    return f"captions fit their images hardly better than those of others (ROC area {area:.2f})"


def draw_for_images(parsed: Sequence[Record]) -> tuple[dict[int, tuple[Phrase, ...]], str | None]:
    """Draw as many phrases of other images for each captioned record as it has, by the key of its sample.

    Also return why they are too few for a fit; None if they are enough.
    """
    captioned = [record for record in parsed if record.error is None and record.phrases]
    unique = {
        record.sample.id: {phrase.text: phrase for phrase in record.phrases}.values()
        for record in captioned
    }
    pool = [(number, phrase) for number, phrases in unique.items() for phrase in phrases]
    if (too_few := explain_too_few(len(unique), len(pool))) is not None:
        return {}, too_few
    drawn = {
        record.sample.key: draw_foreign_phrases(record, pool, len(unique[record.sample.id]))
        for record in captioned
    }
    return drawn, None


def fit_presence_to_captions(steps: HeatMapSteps, signals: Sequence[ImageSignals]) -> PresenceResult:
    """Fit presence to the phrases of images and to those of others that they were compared with."""
    usable = [image for image in signals if image.is_finite]
    if len(usable) < FEWEST_IMAGES:
        reason = f"{len(usable)} of {len(signals)} images have finite cosines, {FEWEST_IMAGES} are needed"
        return PresenceResult(reason=reason)
    return fit_to_captions(
        ClipFeatures.of(usable),
        ~np.concatenate([image.is_foreign for image in usable]),
        presence_basis(steps.explainer, steps.fingerprint),
        images=len(usable),
        precisions=[steps.model_stage.precision],
    )


def fit_to_captions(
    features: PhraseFeatures[Presence | DetectorPresence],
    in_captions: Bools,
    made_with: Json,
    **made_from: Any,
) -> PresenceResult:
    """Fit presence to the features of phrases, without annotations.

    in_captions: Whether a caption of its image says each phrase (n,). The other arguments are those of
    `Calibration`.
    """
    if (no_difference := explain_no_difference(separation(features, in_captions))) is not None:
        return PresenceResult(reason=no_difference)
    fit = fit_presence(features, in_captions, is_noisy=True)
    share = round(1.0 - float(fit.likely[in_captions].mean()), 3)
    calibration = Calibration(
        bias=0.0,
        mean={},
        scale={},
        weight={},
        made_with=made_with,
        made_from={"annotations": "none", "absent_share": share, **made_from},
        presence=fit.presence,
    )
    return PresenceResult(calibration=calibration)


def signals_of(
    model: ExplainStage, records: Iterable[Record], console: Console
) -> Iterator[tuple[Record, ImageSignals]]:
    """Yield prepared records that have phrases with their heat maps and signals, by a stage that is not set up.

    Images whose signals are not finite are left out, and then the console says how many.
    """
    unknown = 0
    usable = (
        record
        for record in records
        if record.error is None and record.pixels is not None and record.phrases
    )
    with set_up([model]), collecting_signals(model) as signals:
        while batch := list(islice(usable, model.forward_batch_size())):
            for record in model.process(batch):
                image = signals.pop(record.sample.key)
                if image.is_finite:
                    yield record, image
                else:
                    unknown += 1
    if unknown:
        say(console, f"left out, because their embeddings are not finite: {counted(unknown, 'image')}")


@contextmanager
def collecting_signals(
    model: ExplainStage,
    foreign: Mapping[int, Sequence[str]] | None = None,
    upcoming: Sequence[Record] = (),
) -> Iterator[dict[int, ImageSignals]]:
    """Yield where a stage collects signals within the block, by the key of the sample; see `ExplainStage`."""
    signals: dict[int, ImageSignals] = {}
    model.signals = signals
    model.foreign = foreign or {}
    model.upcoming = upcoming
    try:
        yield signals
    finally:
        model.signals = None
        model.foreign = {}
        model.upcoming = ()


def draw_foreign_phrases(record: Record, pool: Sequence[PhraseOfImage], most: int) -> tuple[Phrase, ...]:
    """Draw phrases of other images for a record, which is the same for the same record and pool of ids and phrases."""
    rng = random.Random(stable_id(record.sample.sample_id))  # noqa: S311  which phrases are drawn is no secret
    heads = {(phrase.head, phrase.language) for phrase in record.phrases}
    languages = {language for _, language in heads}
    words = {word for caption in record.sample.captions for word in words_of(caption)}
    words |= {head for head, _ in heads}
    return draw_phrases(
        rng, repeat(pool, most), image=record.sample.id, words=words, heads=heads, languages=languages
    )
