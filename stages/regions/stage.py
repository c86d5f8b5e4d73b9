"""The stage that fills `Record.regions` from its heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import cv2
import numpy as np

from stages.contract.records import HeatMap, Phrase, Record, Region
from stages.contract.stage import Stage
from stages.regions.colours import Canvas
from stages.regions.config import RegionsConfig
from stages.regions.cut import map_regions, surface
from stages.regions.paint import Painted
from stages.regions.score import Calibration, Evidence, rounded_score


class RegionsStage(Stage):
    """Adds the regions of every phrase, and removes `pixels` and `heat_maps`, which no later stage needs.

    Regions are in the order of the phrases, and those of one phrase are ordered best first. Phrases with the same text
    have the same regions, computed once. A phrase whose map is empty has none.

    Args:
        config: How to cut. If it needs the pixels, the records must still have them.
        calibration: Turns evidence into the score; without one, the score is `config.score`.
        keep_heat_maps: Leave the heat maps in the record, for evaluation and overlays.
    """

    name: ClassVar[str] = "regions"

    def __init__(
        self, config: RegionsConfig, calibration: Calibration | None = None, *, keep_heat_maps: bool = False
    ) -> None:
        self.config = config
        self.calibration = calibration
        self.keep_heat_maps = keep_heat_maps

    def setup(self) -> None:
        """Give OpenCV one thread: maps are too small to split, and there is already one worker per core."""
        cv2.setNumThreads(1)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`. Raises ValueError where an earlier stage broke its contract."""
        return [record if record.error is not None else self._with_regions(record) for record in batch]

    def regions_of(self, record: Record) -> list[list[tuple[Painted, Evidence]]]:
        """The regions of each phrase of a record with heat maps, best first.

        Raises ValueError where an earlier stage broke its contract.
        """
        if record.phrases and min(record.height_px, record.width_px) < 1:
            raise ValueError(
                f"expected an image size for {record.sample.sample_id!r}, got {record.width_px} x {record.height_px}"
            )
        maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        size_hw = (record.height_px, record.width_px)
        canvas = self._canvas(record)
        computed: dict[tuple[str, int], list[tuple[Painted, Evidence]]] = {}
        for phrase in record.phrases:
            if phrase.text not in maps:
                raise ValueError(
                    f"expected a heat map for each phrase of {record.sample.sample_id!r}, got none for {phrase.text!r}"
                )
            key = (phrase.text, self._limit(phrase))
            if key not in computed:
                computed[key] = map_regions(maps[phrase.text], size_hw, key[1], self.config, canvas)
        return [computed[phrase.text, self._limit(phrase)] for phrase in record.phrases]

    def surfaces_of(self, record: Record) -> dict[str, HeatMap]:
        """The maps that the regions of a record are cut from, by phrase, without the empty ones. See `surface`."""
        canvas = self._canvas(record)
        found = ((heat_map, surface(heat_map, self.config, canvas)) for heat_map in record.heat_maps)
        return {
            heat_map.text: replace(
                heat_map,
                values=levels.astype(np.float32),
                # A guided surface has been drawn over the image, where the values lie.
                shift_cells=heat_map.shift_cells if levels.shape == heat_map.values.shape else 0.0,
            )
            for heat_map, levels in found
            if levels is not None
        }

    def _canvas(self, record: Record) -> Canvas | None:
        return Canvas(record.pixels.rgb) if self.config.needs_pixels and record.pixels is not None else None

    def _with_regions(self, record: Record) -> Record:
        regions = tuple(
            Region(
                phrase_index=index,
                box_xywh_px=painted.box_xywh_px,
                mask=painted.mask,
                area_px=painted.area_px,
                score=self._score(evidence),
                similarity=evidence.similarity,
            )
            for index, found in enumerate(self.regions_of(record))
            for painted, evidence in found
        )
        heat_maps = record.heat_maps if self.keep_heat_maps else ()
        return replace(record, regions=regions, pixels=None, heat_maps=heat_maps)

    def _score(self, evidence: Evidence) -> float:
        if self.calibration is None:
            return rounded_score(self.config.score, evidence)
        return self.calibration.probability(evidence)

    def _limit(self, phrase: Phrase) -> int:
        return self.config.max_regions_plural if phrase.plural else self.config.max_regions_singular
