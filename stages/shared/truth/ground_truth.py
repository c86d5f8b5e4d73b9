"""The form of every ground truth, whatever file it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import cv2
import numpy as np

from stages.contract.geometry import Box
from stages.contract.masks import decode_mask, encode_mask
from stages.contract.records import Rle

Match = Literal["phrase", "category", "expression"]
"""How a target finds its phrase in a row, see `pipeline.evaluate.matching`."""

Source = TypeVar("Source")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthTarget:
    """A phrase of an image, and where the things are that it means.

    Attributes:
        phrase: Normalised (`stages.phrases.filters.normalise`); with `category` the category's name.
        boxes_xywh_px: One for each thing, at least one; half open, pixels of the EXIF-rotated image.
        match: How it finds its phrase in a row.
        mask: Of all things together; None where the truth has boxes only.
        caption: The caption that holds the phrase; None if any caption may name it.
        groups: Group -> member, for the report: {"number": "plural", "combination": "unseen"}.
        scores: Of each box, 0 .. 1, where a detector found it; empty where people drew them.
    """

    phrase: str
    boxes_xywh_px: tuple[Box, ...]
    match: Match
    mask: Rle | None = None
    caption: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.boxes_xywh_px:
            raise ValueError(f"expected at least one box for {self.phrase!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthThing:
    """A thing of an image by itself, whether or not a phrase means it.

    Attributes:
        box_xywh_px: Half open, pixels of the EXIF-rotated image.
        category: The normalised name of its category; None if the truth does not say.
        described: The same with its colour, "red car", where the truth knows it.
        mask: None where the truth has a box only.
    """

    box_xywh_px: Box
    category: str | None
    described: str | None
    mask: Rle | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainedPhrase:
    """A phrase of the truth, also one without a box.

    Attributes:
        caption: The caption that holds it.
        phrase: Normalised.
        chain: What it names: phrases of an image with the same chain name the same things. "" for nothing visible.
    """

    caption: str
    phrase: str
    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """An image of the truth.

    Attributes:
        file_name: As in the truth's own files.
        width_px: Of the EXIF-rotated image, as `height_px`; 0 if the truth does not say.
        height_px: See `width_px`.
        targets: May be empty, if nothing in the image has a name that a phrase could have.
        present: Those of `GroundTruth.categories` of which the image shows something, also what is in no target (a
            crowd, a thing that no caption names).
        chained: All phrases in the order of the captions, where the truth says which name the same thing.
        absent: Phrases that are known to be absent although a caption may name them.
    """

    file_name: str
    width_px: int
    height_px: int
    targets: tuple[TruthTarget, ...]
    present: frozenset[str] = frozenset()
    chained: tuple[ChainedPhrase, ...] = ()
    absent: frozenset[str] = frozenset()

    def scaled(self, size_hw: tuple[int, int]) -> TruthImage:
        """The same truth for the image after it was resized, without a crop or a border.

        Masks are resized by nearest neighbours. The image itself where it has this size, or where the truth does not
        say its size.
        """
        if 0 in (self.height_px, self.width_px) or size_hw == (self.height_px, self.width_px):
            return self
        height, width = size_hw
        x_scale, y_scale = width / self.width_px, height / self.height_px
        targets = tuple(
            replace(
                target,
                boxes_xywh_px=tuple(
                    (x * x_scale, y * y_scale, w * x_scale, h * y_scale) for x, y, w, h in target.boxes_xywh_px
                ),
                mask=None if target.mask is None else _scaled(target.mask, size_hw),
            )
            for target in self.targets
        )
        return replace(self, height_px=height, width_px=width, targets=targets)


def _scaled(mask: Rle, size_hw: tuple[int, int]) -> Rle:
    height, width = size_hw
    pixels = decode_mask(mask).astype(np.uint8)
    return encode_mask(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.bool_))


class ImagesOnDemand(Mapping[str, Made], Generic[Source, Made]):
    """What a truth knows of each image, by file name and made when it is looked up: a dataset seldom has all of them.

    Args:
        sources: What each image is made from.
        make: Makes it. What it raises for a damaged source is raised by the look-up.
    """

    def __init__(self, sources: Mapping[str, Source], make: Callable[[Source], Made]) -> None:
        self._sources = sources
        self._make = make

    def __getitem__(self, file_name: str) -> Made:
        return self._make(self._sources[file_name])

    def __contains__(self, file_name: object) -> bool:
        return file_name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """All images of a truth.

    Attributes:
        images: By file name. Looking up an image raises InputError if the truth's entries for it are damaged.
        categories: Names of which every thing in every image is annotated. A phrase with such a head noun is known to
            be absent from an image that does not list the name in `present`, and a region for it is wrong. Empty if
            the truth does not annotate everything; such phrases are then left out.
        things: The single things of each image, by the image's file name in the truth. Looking up an image raises as
            for `images`. Empty if the truth has boxes of phrases only.
        names: All names that things are classed by. Unlike `categories` they may leave out much that images show.
        descriptions: All `TruthThing.described` of its things.
    """

    images: Mapping[str, TruthImage]
    categories: frozenset[str] = frozenset()
    things: Mapping[str, tuple[TruthThing, ...]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    descriptions: frozenset[str] = frozenset()
