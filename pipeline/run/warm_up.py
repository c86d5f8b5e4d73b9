"""The warm-up of a run: its first images are computed before all others, and decide how it goes on.

A calibration is compared with them (`phrasebox.pipeline.run.domain_shift`). Where none holds, presence is
fitted to them (`phrasebox.pipeline.run.presence_fit`). The share of absent phrases is estimated from their
captions (`phrasebox.stages.scores.foreign_captions`). Their records then need only the stages
after the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from phrasebox.pipeline.dataset.caption_doubt import MOST
from phrasebox.pipeline.output.first_images import FirstImage, FirstImages, OnProgress
from phrasebox.pipeline.run.calibration import presence_in
from phrasebox.pipeline.run.domain_shift import (
    NOT_COMPARED,
    DomainShift,
    apply_domain_shift,
    find_domain_shift,
)
from phrasebox.pipeline.run.exponent import fit_exponent
from phrasebox.pipeline.run.generic import with_generic
from phrasebox.pipeline.run.presence_fit import (
    PresenceResult,
    collecting_signals,
    draw_for_images,
    fit_presence_to_captions,
    most_to_fit,
)
from phrasebox.pipeline.run.stage_calls import (
    bytes_of,
    rows_per_call,
    rows_per_forward,
    run_stages,
    samples_in,
    set_up,
    take_batch,
)
from phrasebox.pipeline.run.steps import AnySteps, HeatMapSteps, SourceSteps
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.explain.stage import RECORDS_AHEAD
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.read import Piece, Reader, ReaderConfig, make_reader, plan_pieces
from phrasebox.stages.read.base import BATCH_BYTES
from phrasebox.stages.scores.foreign_captions import USUAL_SHARE, caption_log_ratios, estimate_absent_share
from phrasebox.stages.scores.presence import ImageSignals, Presence, TextSignals
from phrasebox.stages.scores.score import Calibration

PIECES: Final = 4  # that the samples come from, evenly spaced in the input
SAMPLES: Final = 32  # that are compared with a calibration, from all these pieces together

FIRST_BYTES: Final = 2 * BATCH_BYTES  # of images, for the first samples together

SHARE_SAMPLES: Final = 100
"""Samples from which the share of absent phrases is estimated, from all these pieces together.
Of 100 photographs with one caption each, half of them foreign, the share has a standard error of
0.05."""

QUICK_S: Final = 2.0
"""Seconds of a batch of first images below which the next one is twice as large. Small batches lose
less where a run stops, and cost more."""


@dataclass(slots=True, kw_only=True)
class FirstAnswers:
    """The first images' answers, and their records.

    Attributes:
        precision: The precision of the model.
        shift: Their difference from the images of the calibration in use.
        presence: The fit of presence, empty where it was not tried.
        absent_share: The share of absent phrases; None where nothing is known of presence.
        captions: The number of captions that it was estimated from.
        generic: The calibration of other models, brought to this one; None where there is none.
        exponent: The power that gives the heat maps the usual mean heat, see `exponent.fit_exponent`; None
            without such maps.
        records: The records after the model's stage; none where they are not what the run would
            make of these images.
        stages: Arguments of `Report.stage`.
    """

    precision: str
    shift: DomainShift | None = None
    presence: PresenceResult = field(default_factory=PresenceResult)
    absent_share: float | None = None
    captions: int = 0
    exponent: float | None = None
    generic: Calibration | None = None
    records: Sequence[Record] = ()
    stages: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that was fitted to the images, or brought to them; None if there is none."""
        return self.generic or self.presence.calibration

    def note(self, *arguments: Any) -> None:
        """Note the work of a stage."""
        self.stages.append(arguments)

    def estimate_share(self, calibration: Calibration | None) -> None:
        """Estimate the share of absent phrases from the records, whose presence a calibration has judged."""
        if presence_in(calibration) is not None and calibration is not None:
            self.take_log_ratios(
                caption_log_ratios(record, calibration.absent_share) for record in self.records
            )

    def take_log_ratios(self, log_ratios: Iterable[Mapping[int, float]]) -> None:
        """Estimate the share of absent phrases from log R of the captions of each record."""
        values = [value for ratios in log_ratios for value in ratios.values()]
        self.captions = len(values)
        self.absent_share = estimate_absent_share(values)

    @property
    def share(self) -> float:
        """The share of absent phrases to expect; the usual one where nothing is known of presence."""
        return USUAL_SHARE if self.absent_share is None else self.absent_share

    def share_in_words(self) -> str:
        """Return a sentence about the share of absent phrases."""
        if self.absent_share is None:
            return (
                f"{USUAL_SHARE:.0%} of the phrases are expected not to be in their images, as the presence of the "
                f"first images' phrases is unsure (regions.absent_share: {USUAL_SHARE})"
            )
        usual = " or less" if self.absent_share <= USUAL_SHARE else ""
        doubt = ": do the captions belong to these images?" if self.absent_share > MOST else ""
        captions = counted(self.captions, "caption")
        return (
            f"an estimated {self.absent_share:.0%}{usual} of the phrases are not in their images, by {captions} of the "
            f"first images (regions.absent_share: {self.absent_share}){doubt}"
        )


FIRST_ANSWERS_LOST: Final = FirstAnswers(
    precision="fp32",
    shift=NOT_COMPARED,
    presence=PresenceResult(reason="the workers that looked at the first images died"),
)
"""The warm-up that Ray has given up."""


@dataclass(slots=True, kw_only=True)
class Look:
    """A look at the first images: where their records are kept, and who hears of its progress.

    Attributes:
        place: The place of `FirstImages`; None keeps no records.
        on_progress: Hears how many of how many images are computed.
        total: The number of images to look at.
        done: The number of those that are computed.
    """

    place: AnyPath | None = None
    on_progress: OnProgress = lambda *_: None
    total: int = 0
    done: int = 0

    def expect(self, most: int, pieces: Sequence[Piece]) -> None:
        """Begin to look at so many images at most, or at all of the input if it has fewer."""
        samples = samples_in(pieces)
        self.total = most if samples is None else min(most, samples)
        self.advance(-self.done)

    def advance(self, images: int) -> None:
        """Note that so many more are computed."""
        self.done += images
        self.on_progress(self.done, self.total)


def warm_up(
    steps: HeatMapSteps,
    on_progress: OnProgress,
    reader: Reader,
    pieces: Sequence[Piece],
    choice: Path | str,
    place: AnyPath | None = None,
) -> FirstAnswers:
    """Compare the first images with those of the calibration, and fit presence to them where none holds.

    Raise PhraseboxError as the stages do.

    Args:
        steps: The stages, set up to the model.
        on_progress: Hears how many of how many images are computed.
        reader: The reader of the input.
        pieces: The pieces of the whole input, so that all of its parts compute the same images.
        choice: `regions.calibration`. With `auto` a calibration that does not hold is dropped, and
            presence is fitted where there is none.
        place: The place where the records are kept, from which they are taken again.
    """
    look = Look(place=place, on_progress=on_progress)
    answers = compare_images(steps, reader, pieces, look)
    is_meaningless = answers.shift is not None and answers.shift.in_regions
    is_open = choice == "auto" or steps.generic is not None
    if not is_open or (steps.calibration is not None and not is_meaningless):
        return answers
    most = most_to_fit(samples_in(pieces))
    look.expect(most, pieces)
    fitted = fit_to_samples(steps, first_samples(reader, pieces, most), look)
    return replace(fitted, shift=answers.shift or fitted.shift)


def compare_images(
    steps: HeatMapSteps, reader: Reader, pieces: Sequence[Piece], look: Look | None = None
) -> FirstAnswers:
    """Compare the first images with those of the calibration, if there is one. See `warm_up`."""
    answers = FirstAnswers(precision=steps.model_stage.precision)
    if steps.calibration is None:
        return answers
    look = look or Look()
    look.expect(SHARE_SAMPLES if steps.has_open_share else SAMPLES, pieces)
    parsed = _parse(steps, first_samples(reader, pieces, SAMPLES), answers)
    images = _explain(steps, parsed, answers, look)
    answers.records = [image.record for image in images]
    answers.shift = find_domain_shift(steps, answers.records, _signals_of(images))
    if answers.shift is not None and answers.shift.in_regions:
        return answers
    if steps.has_open_share:
        keys = {record.sample.key for record in answers.records}
        samples = (
            sample for sample in first_samples(reader, pieces, SHARE_SAMPLES) if sample.key not in keys
        )
        images += _explain(steps, _parse(steps, samples, answers), answers, look)
        answers.records = [image.record for image in images]
    answers.estimate_share(steps.calibration)
    return answers


def drop_meaningless_calibration(
    steps: HeatMapSteps, source: ReaderConfig, choice: Path | str
) -> HeatMapSteps:
    """Return the steps that a run would take for an input, without a calibration that means nothing for its images.

    The first images are computed in this process. Raise PhraseboxError as the stages do.
    choice: `regions.calibration`.
    """
    if not steps.is_calibrated:
        return steps
    reader = make_reader(source)
    with set_up(steps.first_stages):
        shift = compare_images(steps, reader, plan_pieces(reader)).shift
    return apply_domain_shift(steps, shift, choice)


def estimate_share(
    steps: SourceSteps,
    on_progress: OnProgress,
    reader: Reader,
    pieces: Sequence[Piece],
    place: AnyPath | None = None,
) -> FirstAnswers:
    """Compute the first images with a detector whose presence is known, and estimate the share of absent phrases.

    The stages are set up to the model. Raise PhraseboxError as they do. See `warm_up`.
    """
    answers = FirstAnswers(precision="")
    look = Look(place=place, on_progress=on_progress)
    look.expect(SHARE_SAMPLES, pieces)
    parsed = _parse(steps, first_samples(reader, pieces, SHARE_SAMPLES), answers)

    def compute(batch: list[Record], upcoming: Sequence[Record]) -> list[tuple[Record, None]]:
        return [(record, None) for record in run_stages(steps.first_stages[1:], batch, answers.note)]

    cache = FirstImages.of(place, steps.calibration_digest)
    images = _compute(steps.model_stage, parsed, compute, look, cache)
    answers.records = [image.record for image in images]
    answers.take_log_ratios(map(steps.regions_stage.caption_log_ratios, answers.records))
    return answers


def fit_to_samples(
    steps: HeatMapSteps, samples: Iterable[Sample], look: Look | None = None
) -> FirstAnswers:
    """Fit presence to the captions of samples. The stages are set up, but for the last; raise as they do."""
    answers = FirstAnswers(precision=steps.model_stage.precision)
    parsed = _parse(steps, samples, answers)
    drawn, too_few = draw_for_images(parsed)
    if too_few is not None:
        answers.presence = PresenceResult(reason=too_few)
        return answers
    foreign = {key: [phrase.text for phrase in phrases] for key, phrases in drawn.items()}
    # Which phrases are the likeliest is only known after the fit.
    unlimited = [replace(record, object_numbers=()) for record in parsed]
    images = _explain(steps, unlimited, answers, look or Look(), foreign)
    answers.exponent = fit_exponent(heat_map for image in images for heat_map in image.record.heat_maps)
    answers.presence = fit_presence_to_captions(steps, _signals_of(images))
    presence = presence_in(answers.presence.calibration)
    answers.records = [_judge(image, presence) for image in images]
    if steps.generic is not None and presence is not None and answers.exponent is not None:
        steps = with_generic(steps, steps.generic, presence, answers.records, answers.exponent)
        answers.generic = steps.calibration
        answers.shift = find_domain_shift(steps, answers.records, _signals_of(images))
    answers.estimate_share(answers.presence.calibration)
    # Where phrases have to be dropped, the run computes the image again.
    answers.records = [record for record in answers.records if len(record.heat_maps) <= record.phrase_limit]
    return answers


def first_samples(reader: Reader, pieces: Sequence[Piece], most: int) -> Iterator[Sample]:
    """Yield the first samples of `PIECES` pieces, and of others if they have too few.

    The pieces lie evenly in the input, from the first to the last: a sorted input ends otherwise than it begins.
    The samples end early where they reach `FIRST_BYTES` together: the caller keeps them all.
    """
    chosen = np.linspace(0, len(pieces) - 1, min(PIECES, len(pieces))).round().astype(int).tolist()
    first = (islice(reader.samples([pieces[place]]), most // len(chosen)) for place in chosen)
    rest = reader.samples([piece for place, piece in enumerate(pieces) if place not in chosen])
    size = 0
    for sample in islice(chain(chain.from_iterable(first), rest), most):
        yield sample
        size += bytes_of(sample)
        if size >= FIRST_BYTES:
            return


def _parse(steps: AnySteps, samples: Iterable[Sample], answers: FirstAnswers) -> list[Record]:
    return run_stages(steps.before[:1], [Record.start(sample) for sample in samples], answers.note)


def _explain(
    steps: HeatMapSteps,
    parsed: Sequence[Record],
    answers: FirstAnswers,
    look: Look,
    foreign: Mapping[int, Sequence[str]] | None = None,
) -> list[FirstImage]:
    """The images with heat maps and signals."""
    purpose = "compare" if foreign is None else "fit"
    cache = FirstImages.of(look.place, purpose, steps.model_stage.precision, steps.calibration_digest)
    model = steps.model_stage

    def compute(
        batch: list[Record], upcoming: Sequence[Record]
    ) -> list[tuple[Record, ImageSignals | None]]:
        with collecting_signals(model, foreign, upcoming) as signals:
            mapped = run_stages((steps.prepare_stage, model), batch, answers.note)
        return [(record, signals.get(record.sample.key)) for record in mapped]

    return _compute(model, parsed, compute, look, cache, foreign or {})


def _compute(
    model: Stage,
    parsed: Sequence[Record],
    compute: Callable[[list[Record], Sequence[Record]], Sequence[tuple[Record, ImageSignals | None]]],
    look: Look,
    cache: FirstImages,
    foreign: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> list[FirstImage]:
    """The images behind the model: those that are kept, and the others, which are kept from now on.

    compute: Takes a batch through prepare and the model. Its second argument are images whose texts
        share the forward passes.
    """
    foreign_texts = [tuple(foreign.get(record.sample.key, ())) for record in parsed]
    images = list(map(cache.find, parsed, foreign_texts))
    look.advance(sum(image is not None for image in images))
    missing = [place for place, image in enumerate(images) if image is None]
    numbers = iter(missing)
    todo = [parsed[place] for place in missing]
    rest = iter(todo)
    done = embedded = 0
    rows = rows_per_forward(model)
    while batch := take_batch(rest, rows):
        start = time.perf_counter()
        places = list(islice(numbers, len(batch)))
        upcoming: list[Record] = []
        if done >= embedded:  # small batches share the forward passes of their texts
            embedded = done + RECORDS_AHEAD
            upcoming = [record for record in todo[done + len(batch) : embedded] if record.phrases]
        done += len(batch)
        computed = [
            FirstImage(record=record, signals=signals, foreign=foreign_texts[place])
            for (record, signals), place in zip(compute(batch, upcoming), places, strict=True)
        ]
        cache.add(computed)
        for place, image in zip(places, computed, strict=True):
            images[place] = image
        look.advance(len(computed))
        if time.perf_counter() - start < QUICK_S:
            rows = max(rows, min(2 * rows, rows_per_call(model)))
    return [image for image in images if image is not None]


def _signals_of(images: Sequence[FirstImage]) -> list[ImageSignals]:
    """The signals of the images that have heat maps."""
    return [image.signals for image in images if image.signals is not None]


def _judge(image: FirstImage, presence: Presence | None) -> Record:
    """The record of an image with the presence of its phrases, as the model's stage would judge it."""
    record = image.record
    if image.signals is None:
        return record
    judged = zip(record.heat_maps, _presences(presence, image.signals.phrases), strict=False)
    pairs = zip(record.caption_scores, _presences(presence, image.signals.captions), strict=False)
    return replace(
        record,
        heat_maps=tuple(replace(heat_map, presence=value) for heat_map, value in judged),
        caption_presences=tuple(None if score is None else value for score, value in pairs),
    )


def _presences(presence: Presence | None, texts: TextSignals) -> Iterable[float | None]:
    """Return the presence of texts; None for ever where nothing judges it."""
    if presence is None:
        return repeat(None)
    return presence.probabilities(texts.embeddings, texts.cosines, texts.local)
