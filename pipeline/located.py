"""What a locator has found in one image: regions and heat maps as arrays, and as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from phrasebox.pipeline.dataset.rows import detections
from phrasebox.pipeline.pictures import (
    decode_scaled,
    draw_regions,
    encode_image,
    heat_map_overlay,
    join_pictures,
)
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import Region, Rle
from phrasebox.stages.contract.values import Bools, Floats32, Integers, Sides
from phrasebox.stages.images.faults import DecodeLimits


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LocatedRegion:
    """One region of a `Located`.

    Attributes:
        phrase: The phrase, unchanged.
        box_xyxy_px: Half-open box (left, top, right, bottom) in pixels of the upright image.
        score: See `Located.scores`, 0 .. 1.
        presence: See `Located.presences`, 0 .. 1; None if nothing is known of it.
        similarity: Cosine of image and phrase, -1 .. 1.
        rle: The mask in run-length form.
    """

    phrase: str
    box_xyxy_px: tuple[float, float, float, float]
    score: float
    presence: float | None
    similarity: float
    rle: Rle

    @cached_property
    def mask(self) -> Bools:
        """The pixels of the region, bool (H, W), decoded at first use."""
        return decode_mask(self.rle)

    def __repr__(self) -> str:
        presence = "" if self.presence is None else f", presence {self.presence:.2f}"
        box = [round(edge) for edge in self.box_xyxy_px]
        return f"LocatedRegion({self.phrase!r} at {box}, score {self.score:.2f}{presence})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Located:
    """The regions and heat maps of one image, for P phrases and n regions.

    A notebook shows them as `picture()`. Iteration yields the n regions as `LocatedRegion`, and
    `len` counts them.

    Attributes:
        phrases: The P phrases of the call, unchanged.
        heat_maps: float32 (P, grid_h, grid_w), >= 0, not normalised. A map covers the whole image.
        similarities: float32 (P,), cosines of image and phrase, -1 .. 1.
        presences: float32 (P,), 0 .. 1: the probability that the phrase names something in the
            image, if the expected share of phrases is absent (`regions.absent_share`). NaN if no
            calibration knows presence. A phrase below `regions.min_presence` has no region.
        faults: The P reasons for a heat map of zeros: "constant", "empty" or "not_finite"; "" for
            other maps.
        phrase_indices: int64 (n,), the phrase of each region. Regions are sorted by phrase, the
            best region first.
        boxes_xyxy_px: float32 (n, 4), half-open [left, top, right, bottom) in pixels of the
            upright image.
        scores: float32 (n,), 0 .. 1: the probability that the phrase is in the image and the
            region is right, if the model has a calibration for these settings, the image is like
            those of its fit, and `regions.absent_share` is right for your phrases. Without a
            calibration it only ranks.
        regions: The n regions of the stages, with masks in run-length form.
        size_hw: Height and width of the upright image, px.
        shift_cells: The shift of the heat maps' values from the centres of their cells, right and
            down, in cells.
    """

    phrases: tuple[str, ...]
    heat_maps: Floats32
    similarities: Floats32
    presences: Floats32
    faults: tuple[str, ...]
    phrase_indices: Integers
    boxes_xyxy_px: Floats32
    scores: Floats32
    regions: tuple[Region, ...]
    size_hw: Sides
    shift_cells: float
    _content: bytes
    _limits: DecodeLimits

    @cached_property
    def masks(self) -> Bools:
        """The pixels of each region, bool (n, H, W).

        The array is as large as n images, and decoded at first use.
        """
        masks = [decode_mask(region.mask) for region in self.regions]
        return np.stack(masks) if masks else np.zeros((0, *self.size_hw), np.bool_)

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.regions)

    def __iter__(self) -> Iterator[LocatedRegion]:
        """Yield the regions, sorted by phrase, the best region first."""
        for region, at, box in zip(
            self.regions, self.phrase_indices.tolist(), self.boxes_xyxy_px.tolist(), strict=True
        ):
            yield LocatedRegion(
                phrase=self.phrases[at],
                box_xyxy_px=tuple(box),
                score=region.score,
                presence=region.presence,
                similarity=region.similarity,
                rle=region.mask,
            )

    def picture(self, side_px: int = 1024) -> Image.Image:
        """Draw the regions with phrases and scores over the image, whose longer side is at most `side_px`."""
        rgb = decode_scaled(self._content, side_px, self._limits)
        height, width = rgb.shape[:2]
        scale = width / self.size_hw[1]
        masks = (
            Image.fromarray(decode_mask(region.mask)).resize((width, height)) for region in self.regions
        )
        return draw_regions(
            rgb,
            [np.asarray(mask) for mask in masks],
            [[value * scale for value in region.box_xywh_px] for region in self.regions],
            [
                f"{self.phrases[at]} {score:.2f}"
                for at, score in zip(self.phrase_indices, self.scores, strict=True)
            ],
        )

    def heat_picture(self, side_px: int = 360) -> Image.Image:
        """Draw the heat maps over the image, side by side, each `side_px` on its longer side, its phrase below."""
        rgb = decode_scaled(self._content, side_px, self._limits, math.inf)
        overlays = [heat_map_overlay(rgb, values, self.shift_cells) for values in self.heat_maps]
        return Image.fromarray(join_pictures(overlays, self.phrases))

    def to_supervision(self) -> Any:
        """Return the regions as `supervision.Detections`; the class is the phrase, its id the place in `phrases`.

        Raise ConfigError if supervision is not installed.
        """
        names = [self.phrases[at] for at in self.phrase_indices]
        return detections(
            self.boxes_xyxy_px,
            self.masks,
            self.scores,
            self.phrase_indices.tolist(),
            class_name=names,
        )

    def __repr__(self) -> str:
        height, width = self.size_hw
        return f"Located({list(self.phrases)!r} in {width} x {height} px: {counted(len(self.regions), 'region')})"

    def _repr_png_(self) -> bytes:
        return encode_image(self.picture(), "PNG")
