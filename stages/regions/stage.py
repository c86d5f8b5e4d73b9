"""The stage that fills `Record.regions` from its heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, takewhile
from typing import ClassVar, Final

import cv2
import numpy as np

from stages.contract.records import Absent, HeatMap, Phrase, Record, Region
from stages.contract.stage import Stage
from stages.regions.colours import Canvas
from stages.regions.config import RegionsConfig
from stages.regions.cut import MapToCut, map_regions, surfaces
from stages.regions.fitted import FittedCut
from stages.regions.groups import linked
from stages.regions.paint import Painted
from stages.regions.score import Calibration, Evidence, at_share, rounded_score
from stages.regions.shared import shared_maps, shared_presences

MAPS_AT_ONCE: Final = 64
"""Maps that are cut together, unless a record has more: 2.5 MB as fine maps."""


class RegionsStage(Stage):
    """Adds the regions of every phrase, and removes `pixels` and `heat_maps`, which no later stage needs.

    Regions are in the order of the phrases, and those of one phrase are ordered best first. Phrases that name the same
    thing have the same regions, computed once; without `config.group` those with the same text. A phrase whose map is
    empty has none. One that is less likely in the image than `config.min_presence` has none either, and stands in
    `absent`.

    Args:
        config: How to cut. If it needs the pixels, the records must still have them.
        calibration: Turns evidence into the score; without one, the score is `config.score`.
        fitted: For the rule `fitted`; None takes the calibration's.
        keep_heat_maps: Leave the heat maps in the record, for evaluation and overlays.
    """

    name: ClassVar[str] = "regions"

    def __init__(
        self,
        config: RegionsConfig,
        calibration: Calibration | None = None,
        *,
        keep_heat_maps: bool = False,
        fitted: FittedCut | None = None,
    ) -> None:
        self.config = config
        self.calibration = calibration
        self.fitted = fitted
        if fitted is None and calibration is not None and calibration.cut is not None:
            self.fitted = FittedCut.from_plain(calibration.cut)
        self.keep_heat_maps = keep_heat_maps

    def setup(self) -> None:
        """Give OpenCV one thread: maps are too small to split, and there is already one worker per core."""
        cv2.setNumThreads(1)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`. Raises ValueError where an earlier stage broke its contract."""
        out = list(batch)
        todo = [number for number, record in enumerate(batch) if record.error is None]
        while todo:
            some = todo[: self._fitting([batch[number] for number in todo])]
            for number, record in zip(some, self._with_regions([batch[number] for number in some]), strict=True):
                out[number] = record
            todo = todo[len(some) :]
        return out

    def _fitting(self, records: Sequence[Record]) -> int:
        """How many of the records are cut together, at least one: fine maps shall stay in a core's cache."""
        maps = accumulate(len(record.heat_maps) for record in records)
        most = 1 if self.config.needs_pixels else MAPS_AT_ONCE
        return max(1, sum(1 for _ in takewhile(lambda count: count <= most, maps)))

    def regions_of(self, record: Record) -> list[list[tuple[Painted, Evidence]]]:
        """The regions of each phrase of a record with heat maps, best first.

        Raises ValueError where an earlier stage broke its contract.
        """
        return self._cut([record], [self.groups_of(record)])[0]

    def _cut(
        self, records: Sequence[Record], groups: Sequence[Sequence[int] | None]
    ) -> list[list[list[tuple[Painted, Evidence]]]]:
        """The regions of each phrase of each record."""
        wanted = [self._wanted(record, own) for record, own in zip(records, groups, strict=True)]
        different = {_same(each): each for maps in reversed(wanted) for each in reversed(maps)}  # the first of each
        cut = dict(zip(different, map_regions([*different.values()], self.config, self.fitted), strict=True))
        return [
            [[(painted, _of(each.heat_map, known)) for painted, known in cut[_same(each)]] for each in maps]
            for maps in wanted
        ]

    def _wanted(self, record: Record, groups: Sequence[int] | None) -> list[MapToCut]:
        """The map of each phrase of a record. Those of a thing have the same array of values."""
        size_hw = (record.height_px, record.width_px)
        if record.phrases and min(size_hw) < 1:
            raise ValueError(
                f"expected an image size for {record.sample.sample_id!r}, got {record.width_px} x {record.height_px}"
            )
        canvas = Canvas(record.pixels.rgb) if self.config.needs_pixels and record.pixels is not None else None
        usual = [0.0] * len(record.phrases)
        if self.fitted is not None and self.config.rule == "fitted":
            usual = [self.fitted.usual_size(heads) for heads in self.heads_of(record, groups)]
        return [
            MapToCut(heat_map=heat_map, size_hw=size_hw, limit=limit, usual=size, canvas=canvas)
            for heat_map, limit, size in zip(
                self._maps(record, groups), self._limits(record.phrases, groups), usual, strict=True
            )
        ]

    def heads_of(self, record: Record, groups: Sequence[int] | None) -> list[tuple[str, ...]]:
        """The head nouns of what the map of each phrase is of: one for each different text that names the thing.

        The head of a text is that of its first phrase, so that phrases with one map are of one size.

        Args:
            record: With phrases.
            groups: As `groups_of` gives them.
        """
        heads = {phrase.text: phrase.head for phrase in reversed(record.phrases)}
        if groups is None or self.config.group != "things":
            return [(heads[phrase.text],) for phrase in record.phrases]
        texts: dict[int, dict[str, None]] = {}
        for phrase, group in zip(record.phrases, groups, strict=True):
            texts.setdefault(group, {})[phrase.text] = None
        named = {group: tuple(heads[text] for text in own) for group, own in texts.items()}
        return [named[group] for group in groups]

    def groups_of(self, record: Record) -> tuple[int, ...] | None:
        """The number of the thing that each phrase names, see `groups.linked`; None if nobody asked."""
        return None if self.config.group == "none" else linked(record.sample.captions, record.phrases)

    def surfaces_of(self, record: Record) -> dict[str, HeatMap]:
        """The maps that the regions of a record are cut from, by phrase, without the empty ones. See `surface`.

        Where a text names several things, it is the map of the first. A record with an error has none.
        """
        if record.error is not None:
            return {}
        found: dict[str, HeatMap] = {}
        for heat_map in self.surface_of_each(record):
            if heat_map is not None:
                found.setdefault(heat_map.text, heat_map)
        return found

    def surface_of_each(self, record: Record) -> list[HeatMap | None]:
        """The map that the regions of each phrase of a record without an error are cut from; None where it is empty."""
        wanted = self._wanted(record, self.groups_of(record))
        different = {id(each.heat_map.values): each for each in reversed(wanted)}
        levels = dict(zip(different, surfaces([*different.values()], self.config), strict=True))
        found: list[HeatMap | None] = []
        for heat_map in (each.heat_map for each in wanted):
            own = levels[id(heat_map.values)]
            # A guided surface has been drawn over the image, where the values lie.
            found.append(
                None
                if own is None
                else replace(
                    heat_map,
                    values=own.astype(np.float32),
                    shift_cells=heat_map.shift_cells if own.shape == heat_map.values.shape else 0.0,
                )
            )
        return found

    def _maps(self, record: Record, groups: Sequence[int] | None) -> list[HeatMap]:
        """The map that the regions of each phrase are cut from. Those of a thing have the same array of values.

        Raises ValueError for a phrase without a map.
        """
        maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        for phrase in record.phrases:
            if phrase.text not in maps:
                raise ValueError(
                    f"expected a heat map for each phrase of {record.sample.sample_id!r}, got none for {phrase.text!r}"
                )
        if groups is None or self.config.group != "things":
            return [maps[phrase.text] for phrase in record.phrases]
        shared = shared_maps(record.phrases, groups, maps)
        return [shared[phrase.text, group] for phrase, group in zip(record.phrases, groups, strict=True)]

    def _limits(self, phrases: Sequence[Phrase], groups: Sequence[int] | None) -> list[int]:
        """Most regions of each phrase. A thing has those of several if at least half of its phrases name several."""
        several = [phrase.plural for phrase in phrases]
        if groups is not None and self.config.group == "things":
            votes: dict[int, list[bool]] = {}
            for phrase, group in zip(phrases, groups, strict=True):
                votes.setdefault(group, []).append(phrase.plural)
            several = [2 * sum(votes[group]) >= len(votes[group]) for group in groups]
        singular, plural = self.config.max_regions_singular, self.config.max_regions_plural
        return [plural if many else singular for many in several]

    def _with_regions(self, records: Sequence[Record]) -> list[Record]:
        groups = [self.groups_of(record) for record in records]
        cut = self._cut(records, groups)
        return [self._finished(*each) for each in zip(records, groups, cut, strict=True)]

    def _finished(
        self, record: Record, groups: Sequence[int] | None, cut: Sequence[Sequence[tuple[Painted, Evidence]]]
    ) -> Record:
        similarities = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
        presences = self.presences_of(record, groups)
        regions = tuple(
            Region(
                phrase_index=index,
                box_xywh_px=painted.box_xywh_px,
                mask=painted.mask,
                area_px=painted.area_px,
                score=self.score_of(evidence, presences[index]),
                similarity=evidence.similarity,
                presence=presences[index],
                group=None if groups is None else groups[index],
            )
            for index, found in enumerate(cut)
            if not self.is_absent(presences[index])
            for painted, evidence in found
        )
        absent = tuple(
            Absent(phrase_index=index, presence=presence or 0.0, similarity=similarities[phrase.text])
            for index, (phrase, presence) in enumerate(zip(record.phrases, presences, strict=True))
            if self.is_absent(presence)
        )
        heat_maps = record.heat_maps if self.keep_heat_maps else ()
        return replace(record, regions=regions, absent=absent, pixels=None, heat_maps=heat_maps)

    def presences_of(self, record: Record, groups: Sequence[int] | None) -> list[float | None]:
        """How likely each phrase is in its image, see `at_share`; None if the calibration does not tell.

        Phrases that share their regions share their presence, too.

        Args:
            record: With heat maps.
            groups: As `groups_of` gives them.
        """
        by_text = {heat_map.text: self._presence_of(heat_map) for heat_map in record.heat_maps}
        own = [by_text[phrase.text] for phrase in record.phrases]
        if groups is None or self.config.group != "things":
            return own
        return shared_presences(record.phrases, groups, own)

    def _presence_of(self, heat_map: HeatMap) -> float | None:
        if self.calibration is None or self.calibration.presence is None or heat_map.presence is None:
            return None
        return at_share(heat_map.presence, self.calibration.absent_share, self.config.absent_share)

    def is_absent(self, presence: float | None) -> bool:
        """Whether a phrase of this presence gets no region."""
        least = self.config.min_presence
        return presence is not None and least is not None and presence < least

    def score_of(self, evidence: Evidence, presence: float | None) -> float:
        """The score of a region of a phrase that is in the image with this probability; None if that is unknown."""
        if self.calibration is None:
            return rounded_score(self.config.score, evidence)
        right = self.calibration.probability(evidence)
        return right if presence is None else round(right * presence, 6)


def _same(each: MapToCut) -> tuple[object, ...]:
    """Equal for maps that have the same regions."""
    return id(each.heat_map.values), each.size_hw, each.limit, each.usual, id(each.canvas)


def _of(heat_map: HeatMap, known: Evidence) -> Evidence:
    """What is known of a region, for another phrase of the same map."""
    return known if known.similarity == heat_map.similarity else replace(known, similarity=heat_map.similarity)
