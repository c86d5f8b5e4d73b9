"""The first look of a run: its first images are computed before all others, and decide how it goes on.

A calibration is compared with them (`pipeline.domain`). Where none holds, presence is fitted to them
(`pipeline.presence_alone`). Their records are then complete but for the stages after the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import Any

from pipeline.domain import SAMPLES, Outside, first_samples, outside_domain
from pipeline.engines.inline import rows_per_call, run_stages, samples_in
from pipeline.graph import Graph, presence_in
from pipeline.presence_alone import (
    collecting,
    fit_presence_alone,
    most_to_fit,
    others_for,
    too_few_in_words,
)
from stages.contract.records import Record, Sample
from stages.explain.presence import Presence, Signals
from stages.read import Shard
from stages.regions.score import Calibration


@dataclass(slots=True, kw_only=True)
class FirstImages:
    """What the first images say, and their records.

    Attributes:
        precision: That of the model.
        images: The number of images.
        outside: How they differ from those of the calibration in use.
        presence: A fit, or why there is none; "" where none was wanted.
        records: The records after the model's stage; none where they are not what the run would make of these images.
        stages: Arguments of `Report.stage`.
    """

    precision: str = "fp32"
    images: int = 0
    outside: Outside | None = None
    presence: Calibration | str = ""
    records: Sequence[Record] = ()
    stages: list[tuple[Any, ...]] = field(default_factory=list)

    def note(self, *arguments: Any) -> None:
        """Note the work of a stage."""
        self.stages.append(arguments)


def look_at_first(graph: Graph, shards: Sequence[Shard], *, fits: bool) -> FirstImages:
    """Compare the first images with those of the calibration, and fit presence to them where none holds.

    The graph's stages are set up, but for the last. Raise PhraseboxError as they do.

    fits: Whether a calibration that does not hold is dropped, and presence is fitted where there is none.
    """
    if not graph.calibrated and not fits:
        return FirstImages(precision=graph.explains.precision)
    if not graph.calibrated:
        return fit_to_first(graph, first_samples(graph.reader, shards, most_to_fit(samples_in(shards))))
    look = FirstImages(precision=graph.explains.precision)
    parsed = _parsed(graph, first_samples(graph.reader, shards, SAMPLES), look)
    records, signals = _explained(graph, parsed, look)
    look.outside = outside_domain(graph, records, signals)
    if fits and look.outside is not None and look.outside.in_regions:
        fitted = fit_to_first(graph, first_samples(graph.reader, shards, most_to_fit(samples_in(shards))))
        return replace(fitted, outside=look.outside)
    look.images = len(records)
    look.records = records
    return look


def fit_to_first(graph: Graph, samples: Iterable[Sample]) -> FirstImages:
    """Fit presence to the captions of samples. The graph's stages are set up, but for the last; raise as they do."""
    look = FirstImages(precision=graph.explains.precision)
    parsed = _parsed(graph, samples, look)
    look.images = len(parsed)
    captioned = [record for record in parsed if record.error is None and record.phrases]
    unique = {record.sample.id: {phrase.text: phrase for phrase in record.phrases}.values() for record in captioned}
    pool = [(number, phrase) for number, phrases in unique.items() for phrase in phrases]
    if (too_few := too_few_in_words(len(unique), len(pool))) is not None:
        look.presence = too_few
        return look
    foreign = {
        record.sample.key: [phrase.text for phrase in others_for(record, pool, len(unique[record.sample.id]))]
        for record in captioned
    }
    records, signals = _explained(graph, parsed, look, foreign)
    mapped = [len(record.heat_maps) for record in records if record.heat_maps]
    said = [
        [place < phrases for place in range(len(image.cosines))] for phrases, image in zip(mapped, signals, strict=True)
    ]
    look.presence = fit_presence_alone(graph, signals, said)
    presence = presence_in(look.presence) if isinstance(look.presence, Calibration) else None
    look.records = list(_judged(records, signals, presence))
    return look


def _parsed(graph: Graph, samples: Iterable[Sample], look: FirstImages) -> list[Record]:
    return run_stages(graph.before[:1], [Record.start(sample) for sample in samples], look.note)


def _explained(
    graph: Graph, parsed: Sequence[Record], look: FirstImages, foreign: Mapping[int, Sequence[str]] | None = None
) -> tuple[list[Record], list[Signals]]:
    """The records with heat maps, and the signals of those that have some."""
    todo = iter(parsed)
    records: list[Record] = []
    model = graph.explains
    with collecting(model, foreign) as signals:
        while batch := list(islice(todo, rows_per_call(model))):
            records += run_stages((graph.before[1], model), batch, look.note)
    return records, signals


def _judged(records: Sequence[Record], signals: Sequence[Signals], presence: Presence | None) -> Iterator[Record]:
    """The records with the presence of their phrases, as the model's stage would judge it."""
    by_image = iter(signals)
    for record in records:
        if not record.heat_maps:
            yield record
            continue
        maps = record.heat_maps
        image = next(by_image)
        likely: Iterable[float | None] = repeat(None)
        if presence is not None:
            parts = (part[: len(maps)] for part in (image.texts, image.cosines, image.local))
            likely = presence.probabilities(*parts)
        judged = (replace(heat_map, presence=value) for heat_map, value in zip(maps, likely, strict=False))
        yield replace(record, heat_maps=tuple(judged))
