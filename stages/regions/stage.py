"""The stage that fills `Record.regions` from heat maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import cv2

from phrasebox.stages.contract.records import Record
from phrasebox.stages.contract.stage import Device, Stage
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.contours import MapRegions, regions_of_maps
from phrasebox.stages.regions.maker import Groups, RecordMaps, RegionMaker
from phrasebox.stages.scores.fitted_cut import FittedCut
from phrasebox.stages.scores.learned_box import BoxModel
from phrasebox.stages.scores.score import Calibration

if TYPE_CHECKING:
    from phrasebox.stages.regions.outlines import Outliner


class RegionsStage(Stage):
    """Adds the regions of every phrase, and removes `pixels`, which no later stage needs.

    Regions are in the order of the phrases, and those of one phrase are ordered best first.
    Phrases that name the same object have the same regions; unless `config.group` links objects,
    these are phrases with the same text. A phrase with an empty map has no region. A phrase
    less likely in the image than `config.min_presence` has none either, and is listed in
    `absent`. With `config.refine: sam` the stage holds a segmenter, and needs the encoded images.

    Args:
        config, calibration, fitted_cut, box_fit: See `RegionMaker`.
        device: Of the segmenter.
    """

    name = "regions"

    def __init__(
        self,
        config: RegionsConfig,
        calibration: Calibration | None = None,
        *,
        fitted_cut: FittedCut | None = None,
        box_fit: BoxModel | None = None,
        device: Device | Literal["auto"] = "auto",
    ) -> None:
        self.maker = RegionMaker(config, calibration, fitted_cut, box_fit)
        self.config = self.maker.config
        self.calibration = calibration
        self.device = device
        self._outliner: Outliner | None = None

    def setup(self) -> None:
        """Give OpenCV one thread, as there is one worker per core: it would split even a small map among all cores."""
        self._threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        if self.config.refine == "sam":
            self._load_outliner()

    def teardown(self) -> None:
        """Give OpenCV its threads back, and let the segmenter go."""
        cv2.setNumThreads(self._threads)
        if self._outliner is not None:
            self._outliner.close()
            self._outliner = None

    def computing(self, **settings: Any) -> Self:
        """See `Stage.computing`; only `device` counts, where the segmenter computes or raises."""
        stage = copy(self)
        stage.device = settings.get("device", self.device)
        stage._outliner = None
        return stage

    def judging_by(self, config: RegionsConfig, calibration: Calibration | None) -> Self:
        """Return this stage, not set up, with other settings and another calibration."""
        return type(self)(config, calibration, device=self.device)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        sound = [record for record in batch if record.error is None]
        groups = [self.maker.groups_of(record) for record in sound]
        regions = self._regions(sound, groups)
        answers = map(self.maker.with_regions, sound, groups, regions)
        return [
            record if record.error is not None else replace(next(answers), pixels=None) for record in batch
        ]

    def regions_of(self, record: Record) -> list[MapRegions]:
        """Return the regions of each phrase of a record."""
        [regions] = self._regions([record], [self.maker.groups_of(record)])
        return regions

    def _regions(self, records: Sequence[Record], groups: Iterable[Groups]) -> Iterator[list[MapRegions]]:
        """Yield the regions of each phrase of each record."""
        maps = map(self.maker.maps_of, records, groups)
        if self.config.refine == "sam":
            batch = list(maps)
            drawings = [
                (record.sample, record_maps.objects)
                for record, record_maps in zip(records, batch, strict=True)
            ]
            yield from map(RecordMaps.regions_of_phrases, batch, self._load_outliner().regions_of(drawings))
            return
        for record_maps in maps:  # one record after the other: a canvas takes megabytes
            object_maps = list(record_maps.objects.values())
            regions = regions_of_maps(object_maps, self.maker.cutter)
            yield record_maps.regions_of_phrases(dict(zip(record_maps.objects, regions, strict=True)))

    def _load_outliner(self) -> Outliner:
        if self._outliner is None:
            # torch and transformers take seconds to import; only a run with a segmenter pays
            # for it.
            from phrasebox.stages.regions.outlines import Outliner  # noqa: PLC0415

            self._outliner = Outliner(self.maker.cutter, self.device)
        return self._outliner
