"""The stages that fill `Record.regions` from heat maps, and that link the regions of another source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import tee
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.levels import LEVELS, quantise
from stages.contract.records import Absent, HeatMap, Phrase, Record, Region
from stages.contract.stage import Device, Stage
from stages.regions.colours import Canvas
from stages.regions.config import RegionsConfig
from stages.regions.cut import regions_of_map, surface_of
from stages.regions.groups import linked
from stages.regions.paint import Painted
from stages.regions.parts import MapToCut
from stages.regions.score import Calibration, Evidence, at_share, rounded_score
from stages.regions.thresholds import FittedCut, Levels

if TYPE_CHECKING:
    from stages.regions.outlines import Outliner

Found = list[tuple[Painted, Evidence]]  # The regions of a phrase, best first

VOTES: Final = 3
"""Different texts from which on those of a thing share their presence. On the 1,000 photographs that chose it, the
area under the ROC curve is 0.924 with 3, 0.927 with 2 and 0.920 without sharing; on drawn scenes whose second caption
is false in a detail, 2 took it from 0.99 to 0.96 (measured)."""

_CERTAIN: Final = 1e-6  # Presences are rounded to six decimals, and the log odds of 0 and 1 have no bounds


class RegionsStage(Stage):
    """Adds the regions of every phrase, and removes `pixels` and `heat_maps`, which no later stage needs.

    Regions are in the order of the phrases, and those of one phrase are ordered best first. Phrases that name the same
    thing have the same regions; unless `config.group` links things, these are phrases with the same text. A phrase
    whose map is empty has no region. One that is less likely in the image than `config.min_presence` has none either,
    and is listed in `absent`. With `config.refine: sam` the stage holds a segmenter, and needs the encoded images.

    Args:
        config: How to cut. If it needs the pixels, the records must still have them.
        calibration: Turns evidence into the score; without one, the score is `config.score`, times presence if known.
        fitted: For the rule `fitted`; None takes the calibration's, see `RegionsConfig.without_cut`.
        device: Of the segmenter.
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
        device: Device | Literal["auto"] = "auto",
    ) -> None:
        self.calibration = calibration
        self.fitted = fitted
        if fitted is None and calibration is not None and calibration.cut is not None:
            self.fitted = FittedCut.from_plain(calibration.cut)
        self.config = config.without_cut() if self.fitted is None else config
        self.keep_heat_maps = keep_heat_maps
        self.device = device
        self._outliner: Outliner | None = None

    def setup(self) -> None:
        """Give OpenCV one thread, as there is one worker per core: it would split even a small map among all cores."""
        self._threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        if self.config.refine == "sam":
            self._outlines()

    def teardown(self) -> None:
        """Give OpenCV its threads back, and let the segmenter go."""
        cv2.setNumThreads(self._threads)
        if self._outliner is not None:
            self._outliner.close()
            self._outliner = None

    def on_device(self, device: Device | Literal["auto"]) -> RegionsStage:
        """Return the same stage, not set up, whose segmenter computes on a device or raises."""
        keep, fitted = self.keep_heat_maps, self.fitted
        return RegionsStage(self.config, self.calibration, keep_heat_maps=keep, fitted=fitted, device=device)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        asked = [(record, self.groups_of(record)) for record in batch if record.error is None]
        answers = (self._with_regions(*one, found) for one, found in zip(asked, self._regions(asked), strict=True))
        return [next(answers) if record.error is None else record for record in batch]

    def regions_of(self, record: Record) -> list[Found]:
        """Return the regions of each phrase of a record."""
        [found] = self._regions([(record, self.groups_of(record))])
        return found

    def _regions(self, asked: Sequence[tuple[Record, Sequence[int] | None]]) -> Iterator[list[Found]]:
        """Yield the regions of each phrase of each record, which stands beside its groups."""
        # One after the other, where nothing has to be drawn together: a canvas takes megabytes.
        cuts, drawn = tee(self._to_cut(record, groups) for record, groups in asked)
        if self.config.refine == "sam":
            drawings = [(record.sample, to_cut) for (record, _), (_, to_cut) in zip(asked, drawn, strict=True)]
            things = self._outlines().regions_of(drawings)
        else:
            things = ({n: regions_of_map(one, self.config, self.fitted) for n, one in cut.items()} for _, cut in drawn)
        for (maps, _), found in zip(cuts, things, strict=True):
            yield [
                [(painted, replace(evidence, similarity=heat_map.similarity)) for painted, evidence in found[number]]
                if levels is not None
                else []
                for heat_map, levels, number in maps
            ]

    def _outlines(self) -> Outliner:
        if self._outliner is None:
            # torch and transformers take seconds to import; only a run with a segmenter pays for it.
            from stages.regions.outlines import Outliner  # noqa: PLC0415

            self._outliner = Outliner(self.config, self.fitted, self.device)
        return self._outliner

    def surface_of_each(self, record: Record) -> list[HeatMap | None]:
        """Return the map that the regions of each phrase are cut from, in levels; None where it is empty."""
        maps, to_cut = self._to_cut(record, self.groups_of(record))
        surfaces = {number: surface_of(each, self.config) for number, each in to_cut.items()}
        found: list[HeatMap | None] = []
        for heat_map, levels, number in maps:
            own = None if levels is None else surfaces[number]
            if own is None:
                found.append(None)
                continue
            # A guided surface has been drawn over the image, where the values lie.
            shift = heat_map.shift_cells if own.shape == heat_map.values.shape else 0.0
            found.append(replace(heat_map, values=own.astype(np.float32), shift_cells=shift))
        return found

    def surfaces_of(self, record: Record) -> dict[str, HeatMap]:
        """Return text -> map that its regions are cut from, if it has heat; that of the first of several things."""
        found: dict[str, HeatMap] = {}
        for heat_map in self.surface_of_each(record) if record.error is None else ():
            if heat_map is not None:
                found.setdefault(heat_map.text, heat_map)
        return found

    def _to_cut(
        self, record: Record, groups: Sequence[int] | None
    ) -> tuple[list[tuple[HeatMap, Levels | None, int]], dict[int, MapToCut]]:
        """Return each phrase's own map, its levels and the number of its thing; and the shared map of each thing."""
        size_hw = (record.height_px, record.width_px)
        by_text = {heat_map.text: heat_map for heat_map in record.heat_maps}
        levels = {text: levels_of_map(heat_map) for text, heat_map in by_text.items()}
        numbers = self._things(record.phrases, groups)
        canvas = Canvas(record.pixels.rgb) if self.config.needs_pixels and record.pixels is not None else None
        to_cut: dict[int, MapToCut] = {}
        for number, thing in things_of(record.phrases, numbers).items():
            shared = thing.levels(levels)
            if shared is not None:
                first = next(by_text[text] for text in thing.heads if levels[text] is not None)
                to_cut[number] = MapToCut(
                    levels=shared,
                    shift_cells=first.shift_cells,
                    similarity=first.similarity,
                    size_hw=size_hw,
                    limit=self.config.max_regions_plural if thing.is_plural else self.config.max_regions_singular,
                    usual=self.fitted.usual_size(thing.heads.values()) if self.fitted is not None else 0.0,
                    canvas=canvas,
                )
        maps = [
            (by_text[phrase.text], levels[phrase.text] if number in to_cut else None, number)
            for phrase, number in zip(record.phrases, numbers, strict=True)
        ]
        return maps, to_cut

    def groups_of(self, record: Record) -> tuple[int, ...] | None:
        """Return the number of the thing that each phrase names, see `groups.linked`; None without `config.group`."""
        return None if self.config.group == "none" else linked(record.sample.captions, record.phrases)

    def _things(self, phrases: Sequence[Phrase], groups: Sequence[int] | None) -> Sequence[int]:
        """Return a number for each phrase, equal for those with the same regions."""
        if groups is not None and self.config.group == "things":
            return groups
        texts = list(dict.fromkeys(phrase.text for phrase in phrases))
        return [texts.index(phrase.text) for phrase in phrases]

    def heads_of(self, record: Record, groups: Sequence[int] | None) -> list[tuple[str, ...]]:
        """Return the head nouns of what each phrase's map is of: one for each text of the thing; see `groups_of`."""
        numbers = self._things(record.phrases, groups)
        things = things_of(record.phrases, numbers)
        return [tuple(things[number].heads.values()) for number in numbers]

    def _with_regions(self, record: Record, groups: Sequence[int] | None, found: Sequence[Found]) -> Record:
        presences = self.presences_of(record, groups)
        similarities = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
        regions: list[Region] = []
        absent: list[Absent] = []
        for index, (phrase, presence) in enumerate(zip(record.phrases, presences, strict=True)):
            if presence is not None and self.is_absent(presence):
                absent.append(Absent(phrase_index=index, presence=presence, similarity=similarities[phrase.text]))
                continue
            regions += [
                Region(
                    phrase_index=index,
                    box_xywh_px=painted.box_xywh_px,
                    mask=painted.mask,
                    area_px=painted.area_px,
                    score=self._score(evidence, presence),
                    similarity=evidence.similarity,
                    presence=presence,
                    group=None if groups is None else groups[index],
                    refined=painted.refined,
                    fallback=painted.fallback,
                )
                for painted, evidence in found[index]
            ]
        heat_maps = record.heat_maps if self.keep_heat_maps else ()
        return replace(record, regions=tuple(regions), absent=tuple(absent), pixels=None, heat_maps=heat_maps)

    def presences_of(self, record: Record, groups: Sequence[int] | None) -> list[float | None]:
        """Return how likely each phrase, or its thing, is in its image; None if the calibration does not know."""
        by_text = {heat_map.text: self._presence(heat_map) for heat_map in record.heat_maps}
        own = [by_text[phrase.text] for phrase in record.phrases]
        return shared_presences(record.phrases, self._things(record.phrases, groups), own)

    def _presence(self, heat_map: HeatMap) -> float | None:
        if self.calibration is None or self.calibration.presence is None or heat_map.presence is None:
            return None
        return at_share(heat_map.presence, self.calibration.absent_share, self.config.absent_share)

    def is_absent(self, presence: float | None) -> bool:
        """Return whether a phrase of this presence gets no region."""
        least = self.config.min_presence
        return presence is not None and least is not None and presence < least

    def _score(self, evidence: Evidence, presence: float | None) -> float:
        """The score of a region of a phrase that is in the image with this probability; None if that is unknown."""
        if self.calibration is None or not self.calibration.of_regions:
            right = rounded_score(self.config.score, evidence)
        else:
            right = self.calibration.probability(evidence)
        return right if presence is None else round(right * presence, 6)


@dataclass(frozen=True, slots=True)
class Thing:
    """Phrases of an image with the same regions, in order."""

    phrases: tuple[Phrase, ...]

    @property
    def heads(self) -> dict[str, str]:
        """Different text -> its head noun, that of its first phrase."""
        found: dict[str, str] = {}
        for phrase in self.phrases:
            found.setdefault(phrase.text, phrase.head)
        return found

    @property
    def is_plural(self) -> bool:
        """Whether at least half of the phrases name several."""
        return 2 * sum(phrase.plural for phrase in self.phrases) >= len(self.phrases)

    def levels(self, known: Mapping[str, Levels | None]) -> Levels | None:
        """Return the mean of the maps of the different texts in levels, of which each counts alike, if it has heat."""
        sound = [levels for text in self.heads if (levels := known[text]) is not None]
        if len(sound) < 2:
            return sound[0] if sound else None
        total: NDArray[np.float64] = np.sum(sound, axis=0, dtype=np.float64)
        return quantise((total / (LEVELS * len(sound))).astype(np.float32))


def things_of(phrases: Sequence[Phrase], numbers: Sequence[int]) -> dict[int, Thing]:
    """Return the thing of each number that phrases have."""
    members: dict[int, list[Phrase]] = {}
    for phrase, number in zip(phrases, numbers, strict=True):
        members.setdefault(number, []).append(phrase)
    return {number: Thing(tuple(own)) for number, own in members.items()}


def levels_of_map(heat_map: HeatMap) -> Levels | None:
    """Return the levels of a heat map, None if it has no heat."""
    return None if heat_map.fault or not math.isfinite(heat_map.similarity) else quantise(heat_map.values)


def shared_presences(
    phrases: Sequence[Phrase], numbers: Sequence[int], presences: Sequence[float | None]
) -> list[float | None]:
    """Return the presence of the thing that each phrase names: the mean of the log odds of its different texts.

    Things with fewer than `VOTES` different texts keep the presence of each: one of two texts may say of the thing what
    is false ("a green car"), and would be believed half. A presence that is not known stays so. `numbers` are those of
    the things, and a text has one presence, 0 .. 1.
    """
    texts: dict[int, dict[str, float]] = {}
    for phrase, number, presence in zip(phrases, numbers, presences, strict=True):
        if presence is not None:
            texts.setdefault(number, {})[phrase.text] = presence
    shared = {number: _mean_by_log_odds(own.values()) for number, own in texts.items() if len(own) >= VOTES}
    return [
        None if presence is None else shared.get(number, presence)
        for number, presence in zip(numbers, presences, strict=True)
    ]


def _mean_by_log_odds(presences: Iterable[float]) -> float:
    inside = [min(max(presence, _CERTAIN), 1 - _CERTAIN) for presence in presences]
    odds = math.exp(fmean(math.log(presence / (1 - presence)) for presence in inside))
    return round(odds / (1 + odds), 6)


class LinkStage(Stage):
    """Gives the regions that another stage has made their `group`; only the setting `group` counts.

    Phrases of the captions are linked as for heat maps (`groups.linked`). A phrase that no caption says is a thing of
    its own. Regions are not shared within a group: each phrase keeps those that the source gave it.
    """

    name: ClassVar[str] = "regions"

    def __init__(self, config: RegionsConfig) -> None:
        self.config = config

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        return [self._linked(record) for record in batch]

    def _linked(self, record: Record) -> Record:
        if record.error is not None or not record.regions or self.config.group == "none":
            return record
        numbers = numbered(record.sample.captions, record.phrases)
        regions = tuple(replace(region, group=numbers[region.phrase_index]) for region in record.regions)
        return replace(record, regions=regions)


def numbered(captions: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """Return the number of the thing that each phrase names, those that no caption says behind the others."""
    numbers = linked(captions, [phrase for phrase in phrases if phrase.is_said])
    unsaid = dict.fromkeys(phrase.text for phrase in phrases if not phrase.is_said)
    beyond = {text: number for number, text in enumerate(unsaid, start=max(numbers, default=-1) + 1)}
    said = iter(numbers)
    return [next(said) if phrase.is_said else beyond[phrase.text] for phrase in phrases]
