"""`source.kind: boxes`: boxes that are there already, of people or of a detector, matched with the phrases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import basename, splitext
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.contract.errors import ConfigError, InputError
from stages.contract.geometry import Box, xywh_to_xyxy
from stages.contract.masks import decode_mask, encode_box, encode_mask, rle_area_px, rle_box_xywh_px
from stages.contract.records import Record, Region, Rle
from stages.shared.truth import read_truth
from stages.shared.truth.coco import read_detections
from stages.shared.truth.ground_truth import GroundTruth, TruthImage, TruthTarget, mentions_of
from stages.sources.base import RegionSource
from stages.sources.config import RegionSourceConfig

NO_IMAGE_OF_THAT_NAME = "the truth has no image of this name, so that no box is known"


class BoxSourceConfig(RegionSourceConfig):
    """Boxes of a ground truth or of a detector."""

    kind: Literal["boxes"] = "boxes"

    truth: Path
    """Where the boxes are: a COCO instances file, also that of drawn scenes, a folder of Flickr30k Entities or of
    RefCOCO, or one of these in an archive, as `phrasebox eval --truth` takes them."""

    detections: Path | None = None
    """A detector's results in COCO's form, [{"image_id", "category_id", "bbox", "score"}, ...]. `truth` is then an
    instances file that says what the ids of images and categories mean; its own annotations do not count."""

    resized: bool = False
    """Whether the images were resized after the boxes were drawn; the boxes are scaled to them."""

    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Boxes of a detector with a lower score are left out."""


class BoxSource(RegionSource[BoxSourceConfig]):
    """Gives each phrase the boxes of the things that it names, as `eval` matches phrases with a truth.

    A phrase of Flickr30k Entities gets its boxes in that caption, one of a scene wherever it stands, a sentence of
    RefCOCO the box that it means; a box with a category is named by every phrase with that text or head noun. Boxes
    that no phrase names are left out, and no model is loaded: `similarity` is 0, not measured.

    A thing with a known outline has it as its mask: where several things share one mask, the part within each box. The
    others' masks are their boxes, rounded to whole pixels. A region's box is the one around its mask, which may be a
    pixel smaller than the one in the file. An image that the truth does not have gets no region, and
    its row says so in `warnings`. Images are looked up by their names: the whole one, else the last part of the path,
    else that without the extension, if only one image of the truth is called so.
    """

    config_type = BoxSourceConfig
    needs_model: ClassVar[bool] = False
    regions_come_from: ClassVar[str] = "boxes of a ground truth or a detector, matched with the phrases by their words"
    score_means: ClassVar[str] = "1, or the detector's own"

    def check(self) -> None:
        """See `RegionSource.check`."""
        self._read()

    def setup(self) -> None:
        """Read the boxes. Raises InputError or ConfigError."""
        truth = self._read()
        self._truth = truth
        self._by_name = {key: _unique(truth, key) for key in ("base", "stem", "base_stem")}

    def teardown(self) -> None:
        """Forget the boxes."""
        del self._truth, self._by_name

    def _read(self) -> GroundTruth:
        path = self.config.truth
        if self.config.detections is None:
            return read_truth(path)
        if path.suffix.lower() != ".json":
            raise ConfigError(
                f"source.truth: with source.detections it is a COCO instances file (NAME.json) whose images and "
                f"categories the results count, got {path}"
            )
        return read_detections(self.config.detections, path, min_score=self.config.min_score)

    def with_regions(self, records: Sequence[Record]) -> list[Record]:
        """See `RegionSource.with_regions`. Raises InputError for an image of another size than the truth says."""
        return [self._answer(record) for record in records]

    def _answer(self, record: Record) -> Record:
        image = self._image(record.sample.image.file_name)
        if image is None:
            return replace(record, notes=(*record.notes, NO_IMAGE_OF_THAT_NAME))
        size_hw = (record.height_px, record.width_px)
        if self.config.resized:
            image = image.scaled(size_hw)
        elif 0 not in (image.height_px, image.width_px) and (image.height_px, image.width_px) != size_hw:
            raise InputError(
                f"{record.sample.image.file_name} has {size_hw[1]}x{size_hw[0]} pixels, but its boxes are for "
                f"{image.width_px}x{image.height_px}: set source.resized=true if it was resized since"
            )
        found: dict[tuple[int, Box], Region] = {}
        for target in image.targets:
            indices = mentions_of(target, record.sample.captions, record.phrases)
            if not indices:
                continue
            for thing in things_of(target, size_hw):
                for index in indices:
                    region = Region(
                        phrase_index=index,
                        box_xywh_px=rle_box_xywh_px(thing.mask),
                        mask=thing.mask,
                        area_px=rle_area_px(thing.mask),
                        score=thing.score,
                        similarity=0.0,
                    )
                    found.setdefault((index, region.box_xywh_px), region)
        ordered = sorted(found.values(), key=lambda region: (region.phrase_index, -region.score))
        return replace(record, regions=tuple(ordered))

    def _image(self, file_name: str) -> TruthImage | None:
        images = self._truth.images
        if file_name in images:
            return images[file_name]
        for key, names in self._by_name.items():
            name = names.get(_key(key, file_name))
            if name is not None:
                return images[name]
        return None


@dataclass(frozen=True, slots=True)
class Thing:
    """One box of a target, as a mask, and its score."""

    mask: Rle
    score: float


def things_of(target: TruthTarget, size_hw: tuple[int, int]) -> list[Thing]:
    """The things of a target within an image of this size; boxes outside of it are left out."""
    scores = target.scores or (1.0,) * len(target.boxes_xywh_px)
    whole = None if target.mask is None else decode_mask(target.mask)
    found = []
    for box, score in zip(target.boxes_xywh_px, scores, strict=True):
        edges = _whole_px(box, size_hw)
        if edges is not None:
            found.append(Thing(_mask_in(edges, whole, size_hw), round(min(1.0, max(0.0, score)), 6)))
    return found


def _mask_in(edges: tuple[int, int, int, int], whole: NDArray[np.bool_] | None, size_hw: tuple[int, int]) -> Rle:
    """The part of a mask within a box; the box itself if there is nothing of it."""
    if whole is None or whole.shape != size_hw:
        return encode_box(edges, size_hw)
    x0, y0, x1, y1 = edges
    part = np.zeros(size_hw, np.bool_, order="F")
    part[y0:y1, x0:x1] = whole[y0:y1, x0:x1]
    return encode_mask(part) if part.any() else encode_box(edges, size_hw)


def _whole_px(box_xywh: Box, size_hw: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """A box with edges at whole pixels within the image, at least one pixel; None outside of it."""
    height, width = size_hw
    x0, y0, x1, y1 = xywh_to_xyxy(box_xywh)
    left, top = min(max(0, round(x0)), width - 1), min(max(0, round(y0)), height - 1)
    right, bottom = max(left + 1, min(width, round(x1))), max(top + 1, min(height, round(y1)))
    return None if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0 else (left, top, right, bottom)


def _key(kind: str, name: str) -> str:
    if kind == "base":
        return basename(name)
    return splitext(name if kind == "stem" else basename(name))[0]


def _unique(truth: GroundTruth, kind: str) -> dict[str, str]:
    """Part of a name -> the only image of the truth that is called so."""
    counts = Counter(_key(kind, name) for name in truth.images)
    return {_key(kind, name): name for name in truth.images if counts[_key(kind, name)] == 1}
