"""The form of every ground truth, whatever file it comes from, and the phrases of an image that its targets name.

Annotators who mark phrases in captions also mend them: Flickr30k Entities has "gray" where Flickr8k's file of the same
captions has "grey", "blond" for "blonde", and no misprints. Such a caption is the same caption, with the same phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Final, Generic, Literal, TypeVar

import cv2
import numpy as np

from stages.contract.geometry import Box
from stages.contract.masks import decode_mask, encode_mask
from stages.contract.records import Phrase, Rle
from stages.phrases.filters import normalise

Match = Literal["phrase", "category", "expression"]
"""The way in which a target finds its phrase in a row, see `pipeline.evaluate.matching`."""

SAME_CAPTION: Final = 0.95
"""Share of letters and digits in which two captions agree, at least, to be one (`difflib.SequenceMatcher.ratio`)."""

SAME_WORD: Final = 0.6
"""The same for a word that stands for another in them: "grey" for "gray" is 0.75, "blue" for "red" less than 0.3."""

Source = TypeVar("Source")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthTarget:
    """A phrase of an image, and the places of the things that it means."""

    phrase: str  # normalised (`stages.phrases.filters.normalise`); with `category` the category's name
    boxes_xywh_px: tuple[Box, ...]  # one for each thing, at least one; half open, pixels of the EXIF-rotated image
    match: Match
    mask: Rle | None = None  # of all things together; None if there are boxes only
    caption: str | None = None  # the caption that holds the phrase; None if any caption may name it
    groups: Mapping[str, str] = field(default_factory=dict)  # group -> member, for the report: {"number": "plural"}
    scores: tuple[float, ...] = ()  # of each box, 0 .. 1, if a detector found it; empty if people drew the boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthThing:
    """A thing of an image by itself, whether or not a phrase means it."""

    box_xywh_px: Box  # half open, pixels of the EXIF-rotated image
    category: str | None  # the normalised name of its category, if it is known
    described: str | None  # the same with its colour, "red car", if that is known
    mask: Rle | None  # None if there is a box only


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainedPhrase:
    """A normalised phrase of a caption, also one without a box.

    Phrases of an image with the same `chain` name the same things; "" is for nothing visible.
    """

    caption: str
    phrase: str
    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """An image with its targets, of which there may be none.

    Attributes:
        present: Those of `GroundTruth.categories` that the image shows, also beside the targets (a crowd, a thing that
            no caption names).
        chained: All phrases in the order of the captions, if it is known which name the same thing.
    """

    file_name: str  # as in the files of the ground truth
    width_px: int  # size of the EXIF-rotated image; 0 if it is not known
    height_px: int
    targets: tuple[TruthTarget, ...]  # the phrases with known places
    present: frozenset[str] = frozenset()
    chained: tuple[ChainedPhrase, ...] = ()
    absent: frozenset[str] = frozenset()  # phrases that are known to be absent although a caption may name them

    def scaled(self, size_hw: tuple[int, int]) -> TruthImage:
        """Return the ground truth of the image as resized without a crop or a border; masks by nearest neighbours.

        An image of this size, or of unknown size, stays as it is.
        """
        if 0 in (self.height_px, self.width_px) or size_hw == (self.height_px, self.width_px):
            return self
        height, width = size_hw
        x_scale = width / self.width_px
        y_scale = height / self.height_px

        def resized(target: TruthTarget) -> TruthTarget:
            boxes = ((x * x_scale, y * y_scale, w * x_scale, h * y_scale) for x, y, w, h in target.boxes_xywh_px)
            mask = target.mask
            if mask is not None:
                pixels = decode_mask(mask).astype(np.uint8)
                mask = encode_mask(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST))
            return replace(target, boxes_xywh_px=tuple(boxes), mask=mask)

        return replace(self, height_px=height, width_px=width, targets=tuple(map(resized, self.targets)))


class ImagesOnDemand(Mapping[str, Made], Generic[Source, Made]):
    """Values by file name, made from their sources at each look-up, which raises the errors of `make`.

    A dataset seldom has all images.
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
    """The ground truth of all images, by file name; the look-up of an image with damaged entries raises InputError.

    Attributes:
        categories: Names of which every thing in every image is annotated. A phrase with such a head noun is known to
            be absent from an image that does not list the name in `present`, and a region for it is wrong. Empty if
            not everything is annotated; such phrases are then left out.
        names: All names that things are classed by. Unlike `categories` they may leave out much that images show.
    """

    images: Mapping[str, TruthImage]
    categories: frozenset[str] = frozenset()
    things: Mapping[str, tuple[TruthThing, ...]] = field(default_factory=dict)  # empty if there are phrases only
    names: frozenset[str] = frozenset()
    descriptions: frozenset[str] = frozenset()  # all `TruthThing.described`


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """The spelling of one caption of the ground truth in the captions of an image."""

    numbers: frozenset[int]  # the same captions; empty if there is none
    words: Mapping[str, str] = field(default_factory=dict)  # those that they spell otherwise -> their spelling

    def phrase(self, phrase: str) -> str:
        """Return a normalised phrase of the ground truth as these captions have it."""
        if not self.words:
            return phrase
        return normalise(" ".join(self.words.get(word, word) for word in phrase.split()))


@lru_cache(maxsize=1024)
def bare(caption: str) -> str:
    """Return the caption's letters and digits. Each target of an image requires those of all its captions."""
    return "".join(filter(str.isalnum, caption.casefold()))


@lru_cache(maxsize=1024)
def spelled(caption: str, captions: tuple[str, ...]) -> Spelled:
    """Find a caption of the ground truth among the captions of an image.

    Every caption with the same letters and digits is the same one. If there is none, it is the most similar one, from
    `SAME_CAPTION` on, the first of equals, unless a word is another and not another spelling (`SAME_WORD`).
    """
    wanted = bare(caption)
    same = frozenset(number for number, each in enumerate(captions) if bare(each) == wanted)
    if same or not captions:
        return Spelled(numbers=same)
    alike = [_alike(wanted, bare(each)) for each in captions]
    nearest = max(range(len(captions)), key=alike.__getitem__)
    words = dict(_other_words(caption, captions[nearest]))
    if alike[nearest] < SAME_CAPTION or any(_alike(*each) < SAME_WORD for each in words.items()):
        return Spelled(numbers=frozenset())
    return Spelled(numbers=frozenset([nearest]), words=words)


def _alike(text: str, other: str) -> float:
    return SequenceMatcher(None, text, other, autojunk=False).ratio()


def _other_words(caption: str, other: str) -> Iterator[tuple[str, str]]:
    """Words of a caption and their counterparts in another, case folded."""
    ours = caption.casefold().split()
    theirs = other.casefold().split()
    for kind, start, end, other_start, other_end in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind != "replace":
            continue
        if end - start == other_end - other_start:
            yield from zip(ours[start:end], theirs[other_start:other_end], strict=True)
        elif end - start == 1:
            yield ours[start], " ".join(theirs[other_start:other_end])


def mentions_of(target: TruthTarget, captions: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """Return the numbers of those phrases of an image with these captions that answer a target."""
    if target.match == "category":
        return [n for n, phrase in enumerate(phrases) if target.phrase in (phrase.text, phrase.head)]
    if target.caption is None:
        own = Spelled(numbers=frozenset(range(len(captions))))
    else:
        own = spelled(target.caption, tuple(captions))
    near = [n for n, phrase in enumerate(phrases) if phrase.is_said and phrase.caption_index in own.numbers]
    wanted = own.phrase(target.phrase)
    named = [n for n in near if phrases[n].text == wanted]
    if not named and target.match == "expression" and near:
        return [min(near, key=lambda n: phrases[n].start)]
    return named
