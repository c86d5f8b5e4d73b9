"""The stage that scores and links the regions of another source than heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from phrasebox.stages.contract.records import Absent, Phrase, Record, Region
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.scores.detected import BoxesOfPhrase, DetectorPresence, boxes_of
from phrasebox.stages.scores.foreign_captions import phrase_log_ratios
from phrasebox.stages.scores.score import Calibration, at_share, score_of
from phrasebox.stages.sources.source import NOT_FINITE


class SourceRegionsStage(Stage):
    """Gives the regions of another stage their `group`, and with a calibration of that source their score.

    Phrases of the captions are linked as for heat maps (`groups.link_phrases`). A concept that no
    caption says is an object by itself. Regions are not shared within a group: each phrase keeps the
    regions of the source. With a calibration a phrase less likely in the image than
    `config.min_presence` has no region, and is listed in `absent`. Phrases are judged one by
    one, also those of one object. A concept that no caption says is then no answer, and is not
    listed. Where nothing is known of an image (`NOT_FINITE`), no phrase is absent.
    """

    name = "regions"

    def __init__(self, config: RegionsConfig, calibration: Calibration | None = None) -> None:
        self.config = config
        self.calibration = calibration

    def judging_by(self, config: RegionsConfig, calibration: Calibration | None) -> Self:
        """Return this stage with other settings and another calibration."""
        return type(self)(config, calibration)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        return [record if record.error is not None else self._link(self._judge(record)) for record in batch]

    def regions_of(self, record: Record) -> list[BoxesOfPhrase]:
        """Return the regions of each phrase of a source's record, not judged, with their evidence."""
        return boxes_of(record)

    def _judge(self, record: Record) -> Record:
        if self.calibration is None or NOT_FINITE in record.notes:
            return record
        regions: list[Region] = []
        absent: list[Absent] = []
        for index, boxes in enumerate(self.regions_of(record)):
            presence = self._presence(boxes)
            if presence is not None and self.config.is_absent(presence):
                if record.phrases[index].is_said:
                    absent.append(Absent(phrase_index=index, presence=presence, similarity=0.0))
                continue
            scored_regions = (
                replace(region, score=score_of(self.calibration, evidence, presence), presence=presence)
                for region, evidence in boxes
            )
            regions += sorted(scored_regions, key=lambda region: -region.score)
        return replace(record, regions=tuple(regions), absent=tuple(absent))

    def caption_log_ratios(self, record: Record) -> dict[int, float]:
        """Return log R of each caption of a source's record, see `foreign_captions`; none where nothing is known."""
        presence = self._detector_presence
        if presence is None or record.error is not None or NOT_FINITE in record.notes:
            return {}
        probabilities = [
            presence.probability(boxes) if phrase.is_said else None
            for phrase, boxes in zip(record.phrases, self.regions_of(record), strict=True)
        ]
        return phrase_log_ratios(record.phrases, probabilities, presence.absent_share)

    @property
    def _detector_presence(self) -> DetectorPresence | None:
        presence = None if self.calibration is None else self.calibration.presence
        return presence if isinstance(presence, DetectorPresence) else None

    def _presence(self, boxes: BoxesOfPhrase) -> float | None:
        """Return how likely the phrase of these boxes is in its image; None if the calibration does not know."""
        presence = self._detector_presence
        if presence is None:
            return None
        return at_share(
            presence.probability(boxes), presence.absent_share, self.config.expected_absent_share
        )

    def _link(self, record: Record) -> Record:
        if not record.regions or self.config.group == "none":
            return record
        numbers = number_objects(record.sample.captions, record.phrases)
        regions = tuple(replace(region, group=numbers[region.phrase_index]) for region in record.regions)
        return replace(record, regions=regions)


def number_objects(captions: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """Return the number of the object that each phrase names, those that no caption says behind the others."""
    numbers = link_phrases(captions, [phrase for phrase in phrases if phrase.is_said])
    unsaid = dict.fromkeys(phrase.text for phrase in phrases if not phrase.is_said)
    beyond = {text: number for number, text in enumerate(unsaid, start=max(numbers, default=-1) + 1)}
    in_captions = iter(numbers)
    return [next(in_captions) if phrase.is_said else beyond[phrase.text] for phrase in phrases]
