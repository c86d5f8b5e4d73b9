"""From the heat maps of a record to its regions; a segmenter, which needs a device, is the stage's own matter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phrasebox.stages.contract.levels import LEVELS, quantise, raise_levels
from phrasebox.stages.contract.records import Absent, HeatMap, Phrase, Record, Region
from phrasebox.stages.contract.values import Levels
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.regions.colours import Canvas
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.contours import MapRegions
from phrasebox.stages.regions.cut import Cutter, SmoothedMap
from phrasebox.stages.regions.parts import ObjectMap
from phrasebox.stages.scores.fits import Floats, log_odds
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.foreign_captions import (
    USUAL_SHARE,
    caption_log_ratios,
    foreign_probability,
    foreign_share,
    without_foreign,
)
from phrasebox.stages.scores.learned_box import BoxContext, BoxModel
from phrasebox.stages.scores.score import Calibration, at_share, score_of

VOTES: Final = 3
"""Least number of different texts of an object that share their presence. On the 1,000
photographs that chose it, the area under the ROC curve is 0.924 with 3, 0.927 with 2 and 0.920
without sharing. On drawn scenes with a false detail in the second caption, 2 took it from 0.99
to 0.96 (measured)."""


Groups = Sequence[int] | None
"""The number of the object that each phrase of a record names; None where phrases are not linked."""


class RecordMaps(NamedTuple):
    """The maps of one image.

    Attributes:
        phrases: The heat map of each phrase and the number of its object; None in its place if
            it has no region.
        objects: Number -> the map that the phrases of this object share.
    """

    phrases: list[tuple[HeatMap, int | None]]
    objects: dict[int, ObjectMap]

    def regions_of_phrases(self, objects: Mapping[int, MapRegions]) -> list[MapRegions]:
        """Return the regions of each phrase from those of the objects: its own similarity is their evidence."""
        return [
            []
            if number is None
            else [
                (mask, replace(evidence, similarity=heat_map.similarity))
                for mask, evidence in objects[number]
            ]
            for heat_map, number in self.phrases
        ]


class RegionMaker:
    """Makes the regions of records. It holds no model and no threads.

    Args:
        config: How to cut. If it needs the pixels, the records must still have them.
        calibration: Turns evidence into a probability. Without one the score is
            `Evidence.score`, times presence.
        fitted_cut: For the rule `fitted`; None takes the calibration's, see
            `RegionsConfig.with_fallback_cut`.
        box_fit: Knows where boxes are; None takes the calibration's.
    """

    def __init__(
        self,
        config: RegionsConfig,
        calibration: Calibration | None = None,
        fitted_cut: FittedCut | None = None,
        box_fit: BoxModel | None = None,
    ) -> None:
        if calibration is not None:
            fitted_cut = fitted_cut or calibration.cut
            box_fit = box_fit or calibration.box
            if config.exponent == "auto" and calibration.exponent != 1.0:
                config = config.model_copy(update={"exponent": calibration.exponent})
        self.config = config.with_fallback_cut() if fitted_cut is None else config
        self.calibration = calibration
        self.cutter = Cutter(self.config, fitted_cut, box_fit)

    def groups_of(self, record: Record) -> Groups:
        """Return the number of the object of each phrase, see `groups.link_phrases`; None without `config.group`."""
        return None if self.config.group == "none" else link_phrases(record.sample.captions, record.phrases)

    def maps_of(self, record: Record, groups: Groups) -> RecordMaps:
        """Return the maps of the phrases of a record and of the objects that they name; see `groups_of`."""
        numbers = self._map_numbers(record.phrases, groups)
        heat_maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        exponent = self.config.heat_exponent
        levels = {text: levels_of_map(heat_map, exponent) for text, heat_map in heat_maps.items()}
        heat = RecordHeat(
            record=record,
            heat_maps=heat_maps,
            levels=levels,
            objects=objects_of(record.phrases, numbers),
            canvas=self._canvas_of(record),
        )
        objects = {
            number: object_map
            for number, object_ in heat.objects.items()
            if (object_map := self._object_map(object_, heat)) is not None
        }
        phrases = [
            (
                heat_maps[phrase.text],
                number if number in objects and levels[phrase.text] is not None else None,
            )
            for phrase, number in zip(record.phrases, numbers, strict=True)
        ]
        return RecordMaps(phrases, objects)

    def surfaces_of_phrases(self, record: Record) -> list[HeatMap | None]:
        """Return the map that the regions of each phrase are cut from, in levels; None where it is empty."""
        phrases, objects = self.maps_of(record, self.groups_of(record))
        surfaces = {number: self.cutter.surface_of(object_map) for number, object_map in objects.items()}
        return [
            _drawn(heat_map, None if number is None else surfaces[number]) for heat_map, number in phrases
        ]

    def surfaces_of(self, record: Record) -> dict[str, HeatMap]:
        """Return text -> map that its regions are cut from, if it has heat; that of the first of several objects."""
        by_text: dict[str, HeatMap] = {}
        for heat_map in self.surfaces_of_phrases(record) if record.error is None else ():
            if heat_map is not None:
                by_text.setdefault(heat_map.text, heat_map)
        return by_text

    def heads_of(self, record: Record, groups: Groups) -> list[dict[str, str]]:
        """Return the English texts of each phrase's object, each with its head noun; see `groups_of`."""
        numbers = self._map_numbers(record.phrases, groups)
        objects = objects_of(record.phrases, numbers)
        return [objects[number].english_heads for number in numbers]

    def with_regions(self, record: Record, groups: Groups, regions: Sequence[MapRegions]) -> Record:
        """Return the record with `regions` and `absent`, from the regions of each phrase; see `groups_of`."""
        presences = self.presences_of(record, groups)
        similarities = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
        scored_regions: list[Region] = []
        absent: list[Absent] = []
        for index, (phrase, presence) in enumerate(zip(record.phrases, presences, strict=True)):
            if presence is not None and self.config.is_absent(presence):
                absent.append(
                    Absent(phrase_index=index, presence=presence, similarity=similarities[phrase.text])
                )
                continue
            scored_regions += [
                Region(
                    phrase_index=index,
                    box_xywh_px=region_mask.box_xywh_px,
                    mask=region_mask.mask,
                    area_px=region_mask.area_px,
                    score=score_of(self.calibration, evidence, presence),
                    similarity=evidence.similarity,
                    presence=presence,
                    group=None if groups is None else groups[index],
                    refined=region_mask.refined,
                    fallback=region_mask.fallback,
                    box_of=region_mask.box_of,
                )
                for region_mask, evidence in regions[index]
            ]
        return replace(record, regions=tuple(scored_regions), absent=tuple(absent))

    def presences_of(self, record: Record, groups: Groups) -> list[float | None]:
        """Return how likely each phrase, or its object, is in its image; None if the calibration does not know."""
        share = foreign_share(self.config.expected_absent_share)
        fitted_share = 0.5 if self.calibration is None else self.calibration.absent_share
        log_ratios = caption_log_ratios(record, fitted_share) if share > 0.0 else {}
        expected_share = USUAL_SHARE if log_ratios else self.config.expected_absent_share
        by_text = {heat_map.text: self._presence(heat_map, expected_share) for heat_map in record.heat_maps}
        presences = [by_text[phrase.text] for phrase in record.phrases]
        shared = share_presences(record.phrases, self._map_numbers(record.phrases, groups), presences)
        foreign = {index: foreign_probability(value, share) for index, value in log_ratios.items()}
        return without_foreign(record.phrases, shared, foreign)

    def _map_numbers(self, phrases: Sequence[Phrase], groups: Groups) -> Sequence[int]:
        """Return a number for each phrase, equal for those with the same regions."""
        if groups is not None and self.config.group == "things":
            return groups
        texts = list(dict.fromkeys(phrase.text for phrase in phrases))
        return [texts.index(phrase.text) for phrase in phrases]

    def _canvas_of(self, record: Record) -> Canvas | None:
        if record.pixels is None or not self.config.needs_pixels:
            return None
        return Canvas(record.pixels.rgb)

    def _object_map(self, object_: Object, heat: RecordHeat) -> ObjectMap | None:
        """Return the map of one of the objects of a record; None if all its maps are empty."""
        shared = object_.mean_levels(heat.levels)
        if shared is None:
            return None
        first_text = next(text for text in object_.heads if heat.levels[text] is not None)
        is_plural = object_.is_plural
        fitted_cut = self.cutter.fitted_cut
        usual_size = 0.0 if fitted_cut is None else fitted_cut.usual_size(object_.english_heads.values())
        return ObjectMap(
            levels=shared,
            shift_cells=heat.heat_maps[first_text].shift_cells,
            size_hw=(heat.record.height_px, heat.record.width_px),
            limit=self.config.max_regions_plural if is_plural else self.config.max_regions_singular,
            usual_size=usual_size,
            context=self._context_of(object_, heat, usual_size),
            canvas=heat.canvas,
        )

    def _context_of(self, object_: Object, heat: RecordHeat, usual_size: float) -> BoxContext | None:
        """Return what the fit of boxes sees of an object beside its map; None without a fit."""
        box_fit = self.cutter.box_fit
        if box_fit is None:
            return None
        facts = facts_of(object_, heat.record, len(heat.objects), usual_size)
        return BoxContext(facts, box_fit.usual.of(object_.english_heads))

    def _presence(self, heat_map: HeatMap, expected_share: float) -> float | None:
        if self.calibration is None or self.calibration.presence is None or heat_map.presence is None:
            return None
        return at_share(heat_map.presence, self.calibration.absent_share, expected_share)


def _drawn(heat_map: HeatMap, surface: SmoothedMap | None) -> HeatMap | None:
    """Return a heat map with the values of its surface, in levels."""
    if surface is None:
        return None
    # A guided surface has been drawn over the image, where the values lie.
    shift = 0.0 if surface.is_guided else heat_map.shift_cells
    return replace(heat_map, values=surface.levels.astype(np.float32), shift_cells=shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordHeat:
    """What the maps of the objects of one image are made of.

    Attributes:
        record: The record.
        heat_maps: Text -> its heat map.
        levels: Text -> the levels of its map; None if it has no heat.
        objects: Number -> the object, also of those without heat.
        canvas: See `ObjectMap`.
    """

    record: Record
    heat_maps: Mapping[str, HeatMap]
    levels: Mapping[str, Levels | None]
    objects: Mapping[int, Object]
    canvas: Canvas | None


@dataclass(frozen=True, slots=True)
class Object:
    """Phrases of an image with the same regions, in order."""

    phrases: tuple[Phrase, ...]

    @property
    def heads(self) -> dict[str, str]:
        """Different text -> its head noun, that of its first phrase."""
        heads: dict[str, str] = {}
        for phrase in self.phrases:
            heads.setdefault(phrase.text, phrase.head)
        return heads

    @property
    def english_heads(self) -> dict[str, str]:
        """`heads` of the phrases in English, whose usual sizes and places are known."""
        english = {phrase.text for phrase in self.phrases if phrase.language == ENGLISH_CODE}
        return {text: head for text, head in self.heads.items() if text in english}

    @property
    def is_plural(self) -> bool:
        """Whether at least half of the phrases name several."""
        return 2 * sum(phrase.plural for phrase in self.phrases) >= len(self.phrases)

    def mean_levels(self, by_text: Mapping[str, Levels | None]) -> Levels | None:
        """Average the level maps of the different texts, equally weighted; None if all are empty."""
        sound = [levels for text in self.heads if (levels := by_text[text]) is not None]
        if len(sound) < 2:
            return sound[0] if sound else None
        total: NDArray[np.float64] = np.sum(sound, axis=0, dtype=np.float64)
        return quantise((total / (LEVELS * len(sound))).astype(np.float32))


def objects_of(phrases: Sequence[Phrase], numbers: Sequence[int]) -> dict[int, Object]:
    """Return the object of each number that phrases have."""
    members: dict[int, list[Phrase]] = {}
    for phrase, number in zip(phrases, numbers, strict=True):
        members.setdefault(number, []).append(phrase)
    return {number: Object(tuple(object_phrases)) for number, object_phrases in members.items()}


def facts_of(object_: Object, record: Record, objects: int, usual_size: float) -> Floats:
    """Return the `learned_box.FACTS` of one of the objects of a record."""
    counts = Counter(phrase.caption_index for phrase in record.phrases)
    earlier = [
        sum(
            other.caption_index == phrase.caption_index and other.start < phrase.start
            for other in record.phrases
        )
        for phrase in object_.phrases
    ]
    captions = {phrase.caption_index for phrase in object_.phrases}
    heat_maps = [heat_map for heat_map in record.heat_maps if heat_map.text in object_.heads]
    facts = (
        math.log(record.width_px / record.height_px),
        fmean(phrase.plural for phrase in object_.phrases),
        len(object_.phrases),
        len(captions) / len(record.sample.captions),
        fmean(
            place / counts[phrase.caption_index]
            for place, phrase in zip(earlier, object_.phrases, strict=True)
        ),
        min(earlier),
        len(object_.heads),
        objects,
        fmean(heat_map.similarity if math.isfinite(heat_map.similarity) else 0.0 for heat_map in heat_maps),
        fmean(heat_map.presence or 0.0 for heat_map in heat_maps),
        usual_size,
    )
    return np.array(facts, np.float64)


def levels_of_map(heat_map: HeatMap, exponent: float = 1.0) -> Levels | None:
    """Return the levels of a heat map, raised to a power, see `raise_levels`; None if it has no heat."""
    if heat_map.fault or not math.isfinite(heat_map.similarity):
        return None
    levels = quantise(heat_map.values)
    return None if levels is None else raise_levels(levels, exponent)


def share_presences(
    phrases: Sequence[Phrase], numbers: Sequence[int], presences: Sequence[float | None]
) -> list[float | None]:
    """Return the presence of the object that each phrase names: the mean of the log odds of its different texts.

    Objects with fewer than `VOTES` different texts keep the presence of each text: with only
    two, one false description ("a green car") would pull the shared presence half way. A
    presence of None stays None.

    `numbers` are those of the objects. A text has one presence, 0 .. 1.
    """
    texts: dict[int, dict[str, float]] = {}
    for phrase, number, presence in zip(phrases, numbers, presences, strict=True):
        if presence is not None:
            texts.setdefault(number, {})[phrase.text] = presence
    shared = {
        number: _mean_by_log_odds(votes.values()) for number, votes in texts.items() if len(votes) >= VOTES
    }
    return [
        None if presence is None else shared.get(number, presence)
        for number, presence in zip(numbers, presences, strict=True)
    ]


def _mean_by_log_odds(presences: Iterable[float]) -> float:
    odds = math.exp(fmean(map(log_odds, presences)))
    return round(odds / (1 + odds), 6)
