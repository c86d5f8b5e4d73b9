"""What a ground truth is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stages.contract.geometry import Box
from stages.contract.records import Rle

Match = Literal["phrase", "category", "expression"]
"""How a target finds its phrase in a row, see `stages.dataset.evaluate.matching`.

phrase      the row's phrase with the same normalised text (in `caption`, where the target has one)
category    every phrase of the row whose text or head noun is the category's name
expression  the caption is one referring expression: the phrase with its whole text, else its first phrase
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A phrase of an image, and where it truly is.

    phrase         normalised (`stages.phrases.filters.normalise`); for `category` the category's name
    boxes_xywh_px  one per thing, at least one; half open, pixels of the EXIF-rotated image
    mask           of all things together; None where the truth has boxes only
    caption        the caption it stands in; None if any caption may name it
    groups         group -> member, for the report: {"number": "plural", "combination": "unseen"}
    """

    phrase: str
    boxes_xywh_px: tuple[Box, ...]
    match: Match
    mask: Rle | None = None
    caption: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.boxes_xywh_px:
            raise ValueError(f"expected at least one box for {self.phrase!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """An image of the truth.

    targets  may be empty: nothing that a phrase could name is in it
    present  those of `Truth.categories` of which something is in it, be it in a target or not (a crowd, a thing
             that no caption names)
    """

    file_name: str
    width_px: int
    height_px: int
    targets: tuple[Target, ...]
    present: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Images by file name, and the names whose absence it knows.

    categories  names of which every thing in every image is annotated: where a phrase has such a head noun and
                nothing of the name is `present`, it is known to be absent, and a region for it is wrong. Empty
                where that is not known; such phrases are then left out.
    """

    images: Mapping[str, TruthImage]
    categories: frozenset[str] = frozenset()
