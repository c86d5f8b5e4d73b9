"""Presence without annotations, fitted to captioned images alone: to those of a dataset, or to the first of a run.

A phrase of an image's captions is taken as there, and a phrase of another image as absent. Both
are wrong at times: captions lie, and a phrase of another image may fit. So the fit is not of
these labels but of what they are noisy copies of. With y whether a phrase is there, and s
whether the captions say it,

    P(y | features)   a logistic regression
    P(s | y)          two rates, the same for all phrases

and expectation maximisation finds the most likely weights and rates together (learning from
noisy labels with unknown rates: Lawrence & Schoelkopf, ICML 2001; Natarajan and others, NIPS
2013, whose forward correction has the same likelihood with known rates). A phrase of another
image is left out if it shares a word or its head noun with the captions, or if its head may name
one of their objects ("person", where they say "man").
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import numpy as np
from rich.console import Console

from phrasebox.pipeline.run.calibration import presence_basis
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.pipeline.terminal import counted, say
from phrasebox.stages.contract.errors import ResumeError
from phrasebox.stages.contract.records import Phrase, Record, stable_id
from phrasebox.stages.contract.values import Bools, Floats, Json
from phrasebox.stages.explain.stage import ExplainStage
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.phrases.nouns import relation
from phrasebox.stages.scores.detected import DetectorPresence
from phrasebox.stages.scores.logistic import LogisticModel, fit_logistic, roc_area
from phrasebox.stages.scores.presence import FEATURES, ImageStatistics, Presence, Signals, features_of
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

STEPS: Final = 300  # most steps of the expectation maximisation

TOLERANCE: Final = 1e-5  # change of the rates below which it ends

_TRIES: Final = (
    200  # draws for one phrase; an image that shares words with nearly all others gets fewer phrases
)

_WORD: Final = re.compile(r"\w+")


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


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.casefold())


def draw_phrase(
    rng: random.Random,
    pool: Sequence[tuple[int, Phrase]],
    *,
    image: int,
    words: set[str],
    drawn: set[str],
    heads: Sequence[str] = (),
) -> Phrase | None:
    """Draw a phrase of another image from a pool of images and phrases, and add it to `drawn`.

    It shares no word with `words`, and its head may not name one of the objects with `heads`.
    None if there is none.
    """
    for _ in range(_TRIES):
        owner, phrase = pool[rng.randrange(len(pool))]
        if (
            owner == image
            or phrase.text in drawn
            or not words.isdisjoint({*words_of(phrase.text), phrase.head})
        ):
            continue
        if not any(may_be(phrase.head, head) for head in heads):
            drawn.add(phrase.text)
            return phrase
    return None


def may_be(head: str, named: str) -> bool:
    """Return whether an object that one head noun names may be called by another."""
    return relation(head, named) in ("same", "equal", "above")


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


def draw_for_images(parsed: Sequence[Record]) -> tuple[dict[int, list[Phrase]], str | None]:
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


def fit_presence_to_captions(
    steps: HeatMapSteps, signals: Sequence[Signals], in_captions: Sequence[Sequence[bool]]
) -> PresenceResult:
    """Fit presence to the signals of images.

    in_captions: For each text of each image's signals, whether it is in a caption of the image.
    """
    usable = [
        (image, image_labels)
        for image, image_labels in zip(signals, in_captions, strict=True)
        if image.is_finite
    ]
    if len(usable) < FEWEST_IMAGES:
        reason = f"{len(usable)} of {len(signals)} images have finite cosines, {FEWEST_IMAGES} are needed"
        return PresenceResult(reason=reason)
    usable_signals, label_parts = zip(*usable, strict=True)
    labels = np.concatenate(label_parts)
    images = ImageStatistics.of(np.stack([image.embedding for image in usable_signals]))
    features = features_of(images, usable_signals)
    area = roc_area(features[:, FEATURES.index("deviation")])(labels.astype(float), (~labels).astype(float))
    if (no_difference := explain_no_difference(area)) is not None:
        return PresenceResult(reason=no_difference)
    fit, presences = fit_noisy(features, labels)
    share = 1.0 - float(presences.mean())
    presence = Presence(images=images, bias=fit.bias, **fit.by_name(FEATURES), absent_share=share)
    return PresenceResult(
        calibration=presence_calibration(
            presence_basis(steps.explainer, steps.fingerprint),
            presence,
            presences[labels],
            images=len(usable),
            precisions=[steps.model_stage.precision],
        )
    )


def presence_calibration(
    made_with: Json, presence: Presence | DetectorPresence, presences: Floats, **made_from: Any
) -> Calibration:
    """Return a calibration of presence alone, fitted without annotations.

    presences: Those of the captions' phrases (n,). The other arguments are those of `Calibration`.
    """
    share = round(1.0 - float(presences.mean()), 3)
    return Calibration(
        bias=0.0,
        mean={},
        scale={},
        weight={},
        made_with=made_with,
        made_from={"annotations": "none", "absent_share": share, **made_from},
        presence=presence,
    )


def fit_noisy(features: Floats, in_captions: Bools) -> tuple[LogisticModel, Floats]:
    """Fit a regression to noisy labels.

    Args:
        features: Features of phrases (n, k).
        in_captions: Whether the captions have the phrase (n,), which is a noisy sign of its
            presence.

    Returns:
        The regression of presence, and the presence of each phrase (n,), given the captions, too.
    """
    presences = in_captions.astype(np.float64)
    rates = np.array([0.05, 0.95])  # of captions that have an absent phrase, and a present one
    fit = fit_logistic(features, presences)
    for _ in range(STEPS):
        likely = fit.probability(features)
        joint = np.where(in_captions[:, None], rates, 1.0 - rates) * np.column_stack([1.0 - likely, likely])
        presences = joint[:, 1] / joint.sum(axis=1)
        weights = np.column_stack([1.0 - presences, presences])
        previous_rates = rates
        rates = (weights * in_captions[:, None]).sum(axis=0) / weights.sum(axis=0)
        fit = fit_logistic(features, presences)
        if np.abs(rates - previous_rates).max() < TOLERANCE:
            break
    return fit, presences


def signals_of(
    model: ExplainStage, records: Iterable[Record], console: Console
) -> Iterator[tuple[Record, Signals]]:
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
            for record, image in zip(model.process(batch), signals, strict=True):
                if image.is_finite:
                    yield record, image
                else:
                    unknown += 1
            signals.clear()
    if unknown:
        say(console, f"left out, because their embeddings are not finite: {counted(unknown, 'image')}")


@contextmanager
def collecting_signals(
    model: ExplainStage,
    foreign: Mapping[int, Sequence[str]] | None = None,
    upcoming: Sequence[Record] = (),
) -> Iterator[list[Signals]]:
    """Yield the list in which a stage collects signals within the block; see `ExplainStage`."""
    signals: list[Signals] = []
    model.signals = signals
    model.foreign = foreign or {}
    model.upcoming = upcoming
    try:
        yield signals
    finally:
        model.signals = None
        model.foreign = {}
        model.upcoming = ()


def draw_foreign_phrases(record: Record, pool: Sequence[tuple[int, Phrase]], most: int) -> list[Phrase]:
    """Draw phrases of other images for a record, which is the same for the same record and pool of ids and phrases."""
    rng = random.Random(stable_id(record.sample.sample_id))  # noqa: S311  which phrases are drawn is no secret
    heads = list(dict.fromkeys(phrase.head for phrase in record.phrases))
    words = {word for caption in record.sample.captions for word in words_of(caption)} | set(heads)
    draw = partial(draw_phrase, rng, pool, image=record.sample.id, words=words, drawn=set(), heads=heads)
    return [phrase for phrase in (draw() for _ in range(most)) if phrase is not None]
