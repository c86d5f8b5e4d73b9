"""From the heat maps of a record to its regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stages.contract.records import HeatMap, Phrase, Record, Region
from stages.contract.stage import Stage
from stages.regions.calibration import Calibration
from stages.regions.canvas import Canvas
from stages.regions.components import Component, clean, components, ranked
from stages.regions.guide import RADIUS_PATCHES
from stages.regions.heat import LEVELS, quantise, refine_grid, smooth
from stages.regions.paint import Painted, component_field, flat_field, paint
from stages.regions.refine import SURE_SHARE, grabcut
from stages.regions.score import SCORES, Evidence, rounded_score
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
    moves mean, quantile and Otsu's threshold. The grid because it is what the model said. Where `upsample` is
    `guided` it is always the fine map: the cells know nothing of the edges."""

    smooth_patches: Patches = 0.5
    """Standard deviation in patches of a Gaussian blur before the cut; 0 for none. 0.5 joins the patchy heat
    of one thing: box recall .776 instead of .754 on drawn scenes; 0.7 begins to blur thin things away
    (.761; configs/README.md)."""

    upsample: Literal["linear", "guided"] = "linear"
    """What a map does between its cells. `linear`: bilinear. `guided`: it follows the edges of the image as the
    model sees it (`guide.py`), and wants the rule `fixed`. On drawn scenes the peak lies on the thing in .946 of
    cases instead of .841, and with `threshold` 0.45 the contour is as good as GrabCut's (configs/README.md), for
    2 to 3 ms a map. Off, because drawn things have plain colours and nothing is measured on photographs."""

    open_patches: Patches = 0.0
    """Radius of the morphological opening, which removes bridges and specks thinner than twice this.
    0: an interpolated map has no speck much smaller than a patch."""

    close_patches: Patches = 0.0
    """Radius of the morphological closing, which fills gaps narrower than twice this between edges that
    face each other. 0: it also joins neighbouring things of one kind."""

    fill_holes: bool = True
    """Whether what is enclosed by a region becomes part of it. Boxes do not change. On, because heat
    often follows the outline of large things and few things have holes."""

    refine: Literal["none", "grabcut"] = "none"
    """What draws the outline of the parts. `none`: the contour of the heat map. `grabcut`: the colours of the
    image as the model sees it (`refine.py`), and the contour where colours say nothing. On drawn scenes box IoU
    rose from .635 to .769 and mask IoU from .537 to .744 (configs/README.md). Off, because drawn things have
    plain colours and nothing is measured on photographs, and because it costs 10 to 25 ms a map on one core,
    where all the rest of this stage takes half a millisecond."""

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
    """Name in `SCORES`: the score stored with the region, where there is no calibration. Ranks, is not a
    probability."""

    calibration: Path | Literal["auto", "none"] = "auto"
    """What makes the score the share of such regions that are right. A file of `phrasebox calibrate`; `auto`: one
    that comes with the model and was made with these settings of explain and regions, else none."""

    @field_validator("rank", "score")
    @classmethod
    def _known_score(cls, name: str) -> str:
        if name not in SCORES:
            raise ValueError(f"expected one of {', '.join(sorted(SCORES))}, got {name!r}")
        return name

    @property
    def needs_pixels(self) -> bool:
        """Whether regions depend on the colours of the image too."""
        return self.refine != "none" or self.upsample != "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMap:
    """A heat map with the parts it fell into, best first.

    fine       float32 (fine_h, fine_w), heat in levels (`heat.refine_grid`)
    threshold  in levels
    """

    fine: NDArray[np.float32]
    threshold: float
    parts: list[Component]


def surface(heat_map: HeatMap, config: RegionsConfig, canvas: Canvas | None = None) -> NDArray[np.uint8] | None:
    """The map that regions are cut from, in levels: uint8 (grid_h, grid_w), or (H, W) of the canvas if it is guided.

    Between its values it is bilinear. canvas: unused where `config.upsample` is "linear". A map on a canvas with
    fewer pixels than the map has cells is not guided.

    None if there is nothing to cut: a map with a fault, a constant one, one that is not finite. Raises ValueError
    if the canvas is needed and missing.
    """
    levels = None if heat_map.fault or not math.isfinite(heat_map.similarity) else quantise(heat_map.values)
    levels = None if levels is None else smooth(levels, config.smooth_patches)
    if levels is None or config.upsample == "linear":
        return levels
    canvas = _given(canvas, config)
    if not _holds(canvas, levels.shape):
        return levels
    guide = canvas.guide(round(RADIUS_PATCHES * canvas.patch_px((levels.shape[0], levels.shape[1]))))
    guided = quantise(np.maximum(guide(refine_grid(levels, canvas.size_hw)), 0))
    return levels if guided is None else guided


def cut_map(
    heat_map: HeatMap, config: RegionsConfig, canvas: Canvas | None = None, *, on_canvas: bool = False
) -> CutMap | None:
    """Threshold, clean, split and rank one heat map.

    on_canvas: the fine map has the pixels of the canvas, of which there are at least as many as cells. A guided map
    has them anyway, others have `heat.samples_per_cell` per cell without it.

    None if there is nothing to cut, see `surface`.
    """
    levels = surface(heat_map, config, canvas)
    if levels is None:
        return None
    guided = levels.shape != heat_map.values.shape
    if guided:
        fine = levels.astype(np.float32)
    else:
        fine = refine_grid(levels, canvas.size_hw if on_canvas and canvas is not None else None)
    looked_at = levels if guided or config.threshold_on == "grid" else np.rint(fine).astype(np.uint8)
    threshold = cut(looked_at, config.rule, share=config.threshold, quantile=config.quantile)
    parts = _parts(fine, fine > threshold, threshold, heat_map, config)
    return CutMap(fine=fine, threshold=threshold, parts=parts)


def map_regions(
    heat_map: HeatMap, size_hw: tuple[int, int], limit: int, config: RegionsConfig, canvas: Canvas | None = None
) -> list[tuple[Painted, Evidence]]:
    """At most `limit` regions of one heat map over an image of `size_hw` pixels: mask and what is known of it.

    canvas: the image as the model saw it; unused unless `config.needs_pixels`.

    Best first, by `config.rank`, without those that fall behind the best (`keep_share`) or are too
    small. Regions of one map do not overlap. Raises ValueError if the canvas is needed and missing.
    """
    refined = None if config.refine == "none" else _refined(heat_map, limit, config, _given(canvas, config))
    found = refined or cut_map(heat_map, config, canvas)
    if found is None:
        return []
    regions: list[tuple[Painted, Evidence]] = []
    for part in _kept(found.parts, config):
        if len(regions) == limit:
            break
        if refined is None:
            field = component_field(found.fine, found.threshold, part)
        else:
            field = flat_field(part, (found.fine.shape[0], found.fine.shape[1]))
        painted = paint(field, size_hw)
        if painted is not None and painted.area_px >= config.min_area_px:
            regions.append((painted, part.evidence))
    return regions


def _refined(heat_map: HeatMap, limit: int, config: RegionsConfig, canvas: Canvas) -> CutMap | None:
    """The cut map on the canvas with the outlines of its best `limit` parts drawn by colour.

    None if nothing is cut, and where the colours say nothing: see `refine.grabcut`.
    """
    grid_hw = (heat_map.values.shape[0], heat_map.values.shape[1])
    if not _holds(canvas, grid_hw):
        return None
    found = cut_map(heat_map, config, canvas, on_canvas=True)
    if found is None or not found.parts:
        return None
    inside = np.zeros(found.fine.shape, dtype=np.bool_)
    for part in _kept(found.parts, config)[:limit]:
        h, w = part.inside.shape
        inside[part.top : part.top + h, part.left : part.left + w] |= part.inside
    sure = found.fine > found.threshold + SURE_SHARE * (LEVELS - found.threshold)
    outlined = grabcut(canvas.rgb, inside, sure, patch_px=canvas.patch_px(grid_hw))
    if outlined is None:
        return None
    parts = _parts(found.fine, outlined, found.threshold, heat_map, config)
    return replace(found, parts=parts) if parts else None


def _given(canvas: Canvas | None, config: RegionsConfig) -> Canvas:
    if canvas is None:
        raise ValueError(
            f"expected the image's pixels for refine={config.refine!r} and upsample={config.upsample!r}, got none"
        )
    return canvas


def _holds(canvas: Canvas, grid_hw: tuple[int, ...]) -> bool:
    """Whether a grid's cells are at least a pixel of the canvas wide."""
    return all(pixels >= cells for pixels, cells in zip(canvas.size_hw, grid_hw, strict=True))


def _parts(
    fine: NDArray[np.float32], inside: NDArray[np.bool_], threshold: float, heat_map: HeatMap, config: RegionsConfig
) -> list[Component]:
    """The parts of `inside`, a mask on the fine map, cleaned, best first."""
    samples = fine.shape[0] / heat_map.values.shape[0]
    cleaned = clean(
        inside,
        open_radius=round(config.open_patches * samples),
        close_radius=round(config.close_patches * samples),
        fill_holes=config.fill_holes,
    )
    found = components(
        fine, cleaned, threshold=threshold, similarity=heat_map.similarity, min_area_share=config.min_area_share
    )
    return ranked(found, partial(rounded_score, config.rank))


def _kept(parts: Sequence[Component], config: RegionsConfig) -> list[Component]:
    """Ranked parts without those that fall behind the best."""
    ranks = [rounded_score(config.rank, part.evidence) for part in parts]
    return [part for part, rank in zip(parts, ranks, strict=True) if rank >= config.keep_share * ranks[0]]


class RegionsStage(Stage):
    """Adds `regions` for every phrase and takes `pixels` and `heat_maps` away, which nobody needs any more.

    `pixels` must still be there if the config needs them.

    Regions stand in the order of the phrases, those of one phrase best first. Phrases with the same
    text have the same regions, computed once. A phrase whose map is empty has none.

    calibration: turns evidence into the score; without one it is `config.score`.
    keep_heat_maps: leave the heat maps in the record, for evaluation and overlays.
    """

    name: ClassVar[str] = "regions"

    def __init__(
        self, config: RegionsConfig, calibration: Calibration | None = None, *, keep_heat_maps: bool = False
    ) -> None:
        self.config = config
        self.calibration = calibration
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

    def regions_of(self, record: Record) -> list[list[tuple[Painted, Evidence]]]:
        """Of each phrase of a record with heat maps, its regions, best first.

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
        """The maps of a record as regions are cut from them, by phrase: see `surface`; without the empty ones."""
        canvas = self._canvas(record)
        found = ((heat_map, surface(heat_map, self.config, canvas)) for heat_map in record.heat_maps)
        return {
            heat_map.text: replace(heat_map, values=levels.astype(np.float32))
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
