"""`source.kind: boxes`: boxes of people or of a detector, matched with the phrases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.geometry import Box, whole_pixels, xywh_to_xyxy, xyxy_to_xywh
from phrasebox.stages.contract.masks import decode_mask, encode_box, encode_mask
from phrasebox.stages.contract.records import Record, Region, Rle
from phrasebox.stages.contract.values import PixelBox, Sides
from phrasebox.stages.sources.source import RegionSource, RegionSourceConfig, region_of_mask
from phrasebox.stages.truth import read_truth
from phrasebox.stages.truth.coco import read_detections
from phrasebox.stages.truth.ground_truth import GroundTruth, TruthImage, TruthTarget, mentions_of

NO_IMAGE_OF_THAT_NAME = "the ground truth has no image of this name, so no box is known"


class BoxSourceConfig(RegionSourceConfig):
    """Boxes of a ground truth or of a detector."""

    kind: Literal["boxes"] = "boxes"
    truth: Path = Field(
        description="Ground truth with the boxes, as `phrasebox eval --truth` takes it: a COCO "
        "instances file, tasks of Label Studio, a folder of Flickr30k Entities, or "
        "one of these in an archive."
    )
    detections: Path | None = Field(
        None,
        description="A detector's results in COCO's form. `truth` is then an instances file that "
        "says what the ids of images and categories mean; its own annotations do not count.",
    )
    resized: bool = Field(False, description="Whether images were resized after the boxes were drawn.")
    min_score: float = Field(
        0.0, ge=0.0, le=1.0, description="Boxes of a detector with a lower score are left out."
    )
    add_missing: bool = Field(
        False,
        description="Phrases that no box answers get regions from heat maps of the run's model, and phrases "
        "that a box answers get that box. false: only phrases with a box of that name have regions.",
    )

    @property
    def makes_heat_maps(self) -> bool:
        """See `RegionSourceConfig.makes_heat_maps`."""
        return self.add_missing


class BoxInImage(NamedTuple):
    """A box within an image.

    Attributes:
        box_xywh_px: The box as it was given, cut at the edges of the image.
        mask: The part of its target's mask in it; the box in whole pixels without one.
        score: 0 .. 1; 1 for a box of people.
    """

    box_xywh_px: Box
    mask: Rle
    score: float


class BoxIndex:
    """The boxes of the images, by file name. The constructor reads them, and raises InputError or ConfigError.

    Images are looked up by their whole name, then by the last part of the path without the
    extension, if only one image of the ground truth has it.
    """

    def __init__(self, config: BoxSourceConfig) -> None:
        self._resized = config.resized
        self._images = _read(config).images
        counts = Counter(map(_stem, self._images))
        self._by_stem = {_stem(name): name for name in self._images if counts[_stem(name)] == 1}

    def image_of(self, record: Record) -> TruthImage | None:
        """Return the image of a record at the record's size; None if the ground truth lacks it.

        Raise InputError for an image of another size, unless `source.resized` allows it.
        """
        file_name = record.sample.image.file_name
        name = file_name if file_name in self._images else self._by_stem.get(_stem(file_name))
        if name is None:
            return None
        image: TruthImage = self._images[name]
        size_hw = (record.height_px, record.width_px)
        if self._resized:
            return image.resize(size_hw)
        if 0 not in (image.height_px, image.width_px) and (image.height_px, image.width_px) != size_hw:
            raise InputError(
                f"{file_name} has {size_hw[1]}x{size_hw[0]} pixels, but its boxes are for "
                f"{image.width_px}x{image.height_px}: set source.resized=true if it was resized since"
            )
        return image


class BoxSource(RegionSource[BoxSourceConfig]):
    """Gives each phrase the boxes of its objects, as `eval` matches phrases with a ground truth.

    Boxes that no phrase names are left out, and no model is loaded: `similarity` is 0, not
    measured.

    The mask of an object is its outline in the ground truth: where several objects share one
    mask, the part within each box. Without an outline it is the box, rounded to whole pixels. A
    region's box is the one around its mask, which may be a pixel smaller than the one in the
    file. An image that the ground truth does not have gets no region, and its row says so in
    `warnings`.

    With `add_missing` this stage does not run: `phrasebox.stages.sources.box_overlay.BoxOverlay`
    lays the boxes over the regions of heat maps.
    """

    config_type = BoxSourceConfig
    regions_come_from = "boxes of a ground truth or a detector, matched with the phrases by their words"
    score_means = "1, or the detector's own score"

    def check(self) -> None:
        """See `RegionSource.check`."""
        _read(self.config)

    def setup(self) -> None:
        """Read the boxes. Raise InputError or ConfigError."""
        self._index = BoxIndex(self.config)

    def teardown(self) -> None:
        """Forget the boxes."""
        del self._index

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """See `RegionSource.with_regions`. Raise InputError for an image of another size than the ground truth says."""
        return [self._fill_regions(record) for record in records]

    def _fill_regions(self, record: Record) -> Record:
        image = self._index.image_of(record)
        if image is None:
            return replace(record, notes=(*record.notes, NO_IMAGE_OF_THAT_NAME))
        regions: dict[tuple[int, Box], Region] = {}
        for target in image.targets:
            indices = mentions_of(target, record.sample.captions, record.phrases)
            for box in boxes_of(target, (record.height_px, record.width_px)) if indices else ():
                for region in (region_of_mask(index, box.mask, box.score) for index in indices):
                    regions.setdefault((region.phrase_index, region.box_xywh_px), region)
        ordered = sorted(regions.values(), key=lambda region: (region.phrase_index, -region.score))
        return replace(record, regions=tuple(ordered))


def _read(config: BoxSourceConfig) -> GroundTruth:
    if config.detections is None:
        return read_truth(config.truth)
    if config.truth.suffix.lower() != ".json":
        raise ConfigError(
            f"with source.detections it is a COCO instances file (NAME.json) whose images and "
            f"categories the results count, got {config.truth}",
            key="source.truth",
        )
    return read_detections(config.detections, config.truth, min_score=config.min_score)


def _stem(file_name: str) -> str:
    return PurePosixPath(file_name).stem


def boxes_of(target: TruthTarget, size_hw: Sides) -> Iterator[BoxInImage]:
    """Yield the boxes of a target within an image of this size; those outside are left out."""
    scores = target.scores or (1.0,) * len(target.boxes_xywh_px)
    whole = None if target.mask is None else decode_mask(target.mask)
    height, width = size_hw
    for box, score in zip(target.boxes_xywh_px, scores, strict=True):
        x0, y0, x1, y1 = xywh_to_xyxy(box)
        if x0 < width and y0 < height and x1 > 0 and y1 > 0:
            edges = whole_pixels((x0, y0, x1, y1), size_hw)
            cut = xyxy_to_xywh((max(0.0, x0), max(0.0, y0), min(x1, width), min(y1, height)))
            share = round(min(1.0, max(0.0, score)), 6)
            yield BoxInImage(cut, _mask_in(edges, whole, size_hw), share)


def _mask_in(edges: PixelBox, whole: NDArray[np.bool_] | None, size_hw: Sides) -> Rle:
    """Return the part of a mask within a box; the box itself if it holds nothing of the mask."""
    if whole is None or whole.shape != size_hw:
        return encode_box(edges, size_hw)
    x0, y0, x1, y1 = edges
    part = np.zeros(size_hw, np.bool_, order="F")
    part[y0:y1, x0:x1] = whole[y0:y1, x0:x1]
    return encode_mask(part) if part.any() else encode_box(edges, size_hw)
