"""From the heat maps of a record to its regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stages.base import Stage
from stages.records import HeatMap, Phrase, Record, Region
from stages.regions.components import Component, clean, components, ranked
from stages.regions.heat import quantise, refine_grid, samples_per_cell, smooth
from stages.regions.paint import Painted, component_field, paint
from stages.regions.score import SCORES, rounded_score
from stages.regions.threshold import Rule, cut

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Patches = Annotated[float, Field(ge=0.0, le=4.0)]


class RegionsConfig(BaseModel):
    """How heat maps become regions.

    Lengths are in patches (cells of the heat map) and areas in shares of the image, so that one
    config fits images of any size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = "otsu"
    """Where the map is cut. `mean`: above its mean (Chefer et al., ICCV 2021). `otsu`: between its
    two classes of values. `fixed`: above `threshold`. `quantile`: above its `quantile`.
    Otsu because it adapts to maps of every sharpness: on drawn scenes it was within 0.01 box IoU of
    the best fixed share for Grad-ECLIP, without a share to choose (measured)."""

    threshold: Share = 0.4
    """Rule `fixed` only: share of the largest heat, after the smallest became 0. On drawn scenes the
    best value lay between 0.3 and 0.6, depending on the explainer (measured)."""

    quantile: Share = 0.85
    """Rule `quantile` only: 0.85 keeps 15 % of the image, about the size of one thing in a scene."""

    threshold_on: Literal["grid", "fine"] = "grid"
    """Which values the rule looks at: the cells of the map, or the samples of the interpolated map
    (7 x 7 for each of 14 x 14 cells). Interpolation adds values between neighbouring cells, which
    moves mean, quantile and Otsu's threshold. The grid because it is what the model said."""

    smooth_patches: Patches = 0.5
    """Standard deviation in patches of a Gaussian blur before the cut; 0 for none. 0.5 joins the patchy heat
    of one thing: box recall .733 instead of .703 on drawn scenes; 0.7 begins to blur thin things away
    (.706; configs/README.md)."""

    open_patches: Patches = 0.0
    """Radius of the morphological opening, which removes bridges and specks thinner than twice this.
    0: an interpolated map has no speck much smaller than a patch."""

    close_patches: Patches = 0.0
    """Radius of the morphological closing, which fills gaps narrower than twice this between edges that
    face each other. 0: it also joins neighbouring things of one kind."""

    fill_holes: bool = True
    """Whether what is enclosed by a region becomes part of it. Boxes do not change. On, because heat
    often follows the outline of large things and few things have holes."""

    min_area_share: Share = 0.001
    """Smallest part of the image that a region may cover. 0.001 is a fifth of a cell of a 14 x 14
    map; a single hot cell gives about three fifths of a cell."""

    min_area_px: Annotated[int, Field(ge=1)] = 16
    """Smallest number of pixels. Below 4 x 4 pixels nobody can see whether a region is right."""

    rank: str = "energy"
    """Name in `SCORES` by which the parts of one map are compared. The heat inside, rather than the
    peak, which may be a single outlier cell."""

    keep_share: Share = 0.3
    """Parts whose rank is below this share of the best part's are dropped. 0.3 leaves room for the
    smaller one of "two dogs" and drops most weakly lit neighbours of another kind."""

    max_regions_singular: Annotated[int, Field(ge=1, le=100)] = 1
    """Most regions of a phrase that names one thing ("a red car")."""

    max_regions_plural: Annotated[int, Field(ge=1, le=100)] = 6
    """Most regions of a phrase that names several ("two dogs"). Captions rarely count beyond six."""

    score: str = "product"
    """Name in `SCORES`: the score stored with the region. Ranks, is not a probability."""

    @field_validator("rank", "score")
    @classmethod
    def _known_score(cls, name: str) -> str:
        if name not in SCORES:
            raise ValueError(f"expected one of {', '.join(sorted(SCORES))}, got {name!r}")
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A heat map with the parts it fell into, best first.

    fine       float32 (fine_h, fine_w), heat in levels (`heat.refine_grid`)
    threshold  in levels
    """

    fine: NDArray[np.float32]
    threshold: float
    parts: list[Component]


def cut_map(heat_map: HeatMap, config: RegionsConfig) -> CutMap | None:
    """Threshold, clean, split and rank one heat map.

    None if there is nothing to cut: a map with a fault, a constant one, one that is not finite.
    """
    levels = None if heat_map.fault or not math.isfinite(heat_map.similarity) else quantise(heat_map.values)
    if levels is not None:
        levels = smooth(levels, config.smooth_patches)
    if levels is None:
        return None
    fine = refine_grid(levels)
    looked_at = levels if config.threshold_on == "grid" else np.rint(fine).astype(np.uint8)
    threshold = cut(looked_at, config.rule, share=config.threshold, quantile=config.quantile)
    samples = samples_per_cell(levels.shape)
    inside = clean(
        fine > threshold,
        open_radius=round(config.open_patches * samples),
        close_radius=round(config.close_patches * samples),
        fill_holes=config.fill_holes,
    )
    parts = components(
        fine,
        inside,
        threshold=threshold,
        similarity=heat_map.similarity,
        min_area_share=config.min_area_share,
    )
    return CutMap(fine=fine, threshold=threshold, parts=ranked(parts, partial(rounded_score, config.rank)))


def map_regions(
    heat_map: HeatMap, size_hw: tuple[int, int], limit: int, config: RegionsConfig
) -> list[tuple[Painted, float]]:
    """At most `limit` regions of one heat map over an image of `size_hw` pixels: mask and score.

    Best first, by `config.rank`, without those that fall behind the best (`keep_share`) or are too
    small. Regions of one map do not overlap.
    """
    found = cut_map(heat_map, config)
    if found is None or not found.parts:
        return []
    best = rounded_score(config.rank, found.parts[0].evidence)
    regions: list[tuple[Painted, float]] = []
    for part in found.parts:
        if len(regions) == limit or rounded_score(config.rank, part.evidence) < config.keep_share * best:
            break
        painted = paint(component_field(found.fine, found.threshold, part), size_hw)
        if painted is not None and painted.area_px >= config.min_area_px:
            regions.append((painted, rounded_score(config.score, part.evidence)))
    return regions


class RegionsStage(Stage):
    """Adds `regions` for every phrase and takes `pixels` and `heat_maps` away, which nobody needs any more.

    Regions stand in the order of the phrases, those of one phrase best first. Phrases with the same
    text have the same regions, computed once. A phrase whose map is empty has none.

    keep_heat_maps: leave the heat maps in the record, for evaluation and overlays.
    """

    name: ClassVar[str] = "regions"

    def __init__(self, config: RegionsConfig, *, keep_heat_maps: bool = False) -> None:
        self.config = config
        self.keep_heat_maps = keep_heat_maps

    def setup(self) -> None:
        """One OpenCV thread for this process.

        Maps are too small to share out, and workers already are one per core: threads would only
        wait for each other.
        """
        cv2.setNumThreads(1)

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """The records with their regions. Raises ValueError where an earlier stage broke its contract."""
        return [record if record.error is not None else self._with_regions(record) for record in batch]

    def _with_regions(self, record: Record) -> Record:
        if record.phrases and min(record.height_px, record.width_px) < 1:
            raise ValueError(
                f"expected an image size for {record.sample.sample_id!r}, got {record.width_px} x {record.height_px}"
            )
        maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        size_hw = (record.height_px, record.width_px)
        computed: dict[tuple[str, int], list[tuple[Painted, float]]] = {}
        regions: list[Region] = []
        for index, phrase in enumerate(record.phrases):
            if phrase.text not in maps:
                raise ValueError(
                    f"expected a heat map for each phrase of {record.sample.sample_id!r}, got none for {phrase.text!r}"
                )
            heat_map = maps[phrase.text]
            key = (phrase.text, self._limit(phrase))
            if key not in computed:
                computed[key] = map_regions(heat_map, size_hw, key[1], self.config)
            regions.extend(
                Region(
                    phrase_index=index,
                    box_xywh_px=painted.box_xywh_px,
                    mask=painted.mask,
                    area_px=painted.area_px,
                    score=score,
                    similarity=heat_map.similarity,
                )
                for painted, score in computed[key]
            )
        heat_maps = record.heat_maps if self.keep_heat_maps else ()
        return replace(record, regions=tuple(regions), pixels=None, heat_maps=heat_maps)

    def _limit(self, phrase: Phrase) -> int:
        return self.config.max_regions_plural if phrase.plural else self.config.max_regions_singular
