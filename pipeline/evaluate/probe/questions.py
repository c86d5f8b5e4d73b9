"""What the truth lets one ask of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import InputError
from stages.contract.geometry import Box, xywh_to_xyxy
from stages.contract.records import Rle
from stages.shared.truth.ground_truth import TruthImage, TruthThing


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The questions of an image: R regions and their names, and phrases.

    Attributes:
        boxes_rel: float64 (R, 4), x0, y0, x1, y1 as shares of the image's sides, within it and not empty.
        masks: Of each region; None where the truth has none.
        classes: Of each region; None where the truth does not class it.
        described: Of each region, colour and class; None where the truth tells no colour.
        candidates: int64, the regions with different boxes, among which the phrases are looked for.
        phrases: Text, and which of `candidates` it means: positions in that array. Only phrases that do not mean all
            of them, since there is nothing to find out about the others.
    """

    boxes_rel: NDArray[np.float64]
    masks: tuple[Rle | None, ...]
    classes: tuple[str | None, ...]
    described: tuple[str | None, ...]
    candidates: NDArray[np.int64]
    phrases: tuple[tuple[str, tuple[int, ...]], ...]


NOTHING = Questions(
    boxes_rel=np.zeros((0, 4)), masks=(), classes=(), described=(), candidates=np.zeros(0, np.int64), phrases=()
)
"""Of an image without truth, which is only retrieved."""


def asked_of(image: TruthImage, things: Sequence[TruthThing], size_hw: tuple[int, int], *, resized: bool) -> Questions:
    """The questions of an image.

    Regions are the truth's things, and behind them those boxes of phrases that belong to none. Boxes are cut off at the
    image's edges. Phrases are those of captions and the sentences of RefCOCO; names of categories are asked as classes.

    Args:
        image: Of the truth.
        things: Of the same image, see `GroundTruth.things`.
        size_hw: Of the image as it was opened.
        resized: Whether it was resized after the truth was drawn.

    Raises:
        InputError: The truth is for an image of another size.
    """
    true_hw = (image.height_px, image.width_px)
    if 0 in true_hw:
        true_hw = size_hw
    if true_hw != size_hw and not resized:
        raise InputError(
            f"{image.file_name} has {size_hw[1]}x{size_hw[0]} pixels, but the truth is for {true_hw[1]}x{true_hw[0]}: "
            "it must be for the image as stored, turned as its EXIF tag says, unless the image was resized afterwards "
            "(--resized)"
        )
    found: list[TruthThing] = []
    boxes: list[Box] = []
    named = [target for target in image.targets if target.match != "category"]
    loose = (
        TruthThing(box_xywh_px=box, category=None, described=None, mask=None)
        for target in named
        for box in target.boxes_xywh_px
    )
    first: dict[Box, int] = {}
    for thing in (*things, *loose):
        is_known = thing.category is None and thing.box_xywh_px in first
        box = _within(thing.box_xywh_px, true_hw)
        if box is not None and not is_known:
            first.setdefault(thing.box_xywh_px, len(found))
            found.append(thing)
            boxes.append(box)
    places = {region: place for place, region in enumerate(first.values())}
    phrases: list[tuple[str, tuple[int, ...]]] = []
    for target in named:
        meant = tuple(sorted({places[first[box]] for box in target.boxes_xywh_px if box in first}))
        if target.phrase and 0 < len(meant) < len(places):
            phrases.append((target.phrase, meant))
    return Questions(
        boxes_rel=np.array(boxes, np.float64).reshape(-1, 4),
        masks=tuple(thing.mask for thing in found),
        classes=tuple(thing.category for thing in found),
        described=tuple(thing.described for thing in found),
        candidates=np.array(list(first.values()), np.int64),
        phrases=tuple(phrases),
    )


def _within(box_xywh_px: Box, size_hw: tuple[int, int]) -> Box | None:
    """The part of a box that is in the image, as shares of its sides; None if there is none."""
    x0, y0, x1, y1 = xywh_to_xyxy(box_xywh_px)
    height, width = size_hw
    left, right = (min(max(x / width, 0.0), 1.0) for x in (x0, x1))
    top, bottom = (min(max(y / height, 0.0), 1.0) for y in (y0, y1))
    return (left, top, right, bottom) if left < right and top < bottom else None
