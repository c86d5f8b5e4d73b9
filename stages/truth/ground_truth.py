"""The form of every ground truth, and the matching of its targets with an image's phrases.

Annotators who mark phrases in captions also correct their spelling: Flickr30k Entities has
"gray" where Flickr8k's file of the same captions has "grey", "blond" for "blonde", and no
misprints. The two captions still match.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar

import cv2
import numpy as np

from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.masks import decode_mask, encode_mask
from phrasebox.stages.contract.records import Phrase, Rle
from phrasebox.stages.contract.values import Sides
from phrasebox.stages.phrases.filters import normalise

Match = Literal["phrase", "category"]
"""The rule by which a target matches phrases of a row, see `mentions_of`."""

SAME_CAPTION: Final = 0.95
"""The least share of equal letters and digits in two spellings of a caption (`difflib.SequenceMatcher.ratio`)."""

SAME_WORD: Final = 0.6
"""The same for two spellings of a word: "grey" and "gray" have 0.75, "blue" and "red" less than 0.3."""

Source = TypeVar("Source")


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthTarget:
    """A phrase of an image, and the places of its objects.

    Attributes:
        phrase: The normalised phrase (`phrasebox.stages.phrases.filters.normalise`); for `category` the
            category's name.
        boxes_xywh_px: Boxes of the objects, at least one: half open, pixels of the EXIF-rotated
            image.
        match: The rule for phrases that match.
        mask: Mask of all objects together; None if there are boxes only.
        caption: The caption with the phrase; None if any caption may have it.
        groups: Group -> member, for reports: {"number": "plural"}.
        scores: Scores of the boxes, 0 .. 1, if they come from a detector; empty if people drew
            them.
    """

    phrase: str
    boxes_xywh_px: tuple[Box, ...]
    match: Match
    mask: Rle | None = None
    caption: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthObject:
    """An object of an image, with or without a phrase.

    Attributes:
        box_xywh_px: Half open, pixels of the EXIF-rotated image.
        category: The normalised name of its category, if it is known.
        description: The category with the colour, "red car", if both are known.
        mask: Its mask; None if there is a box only.
    """

    box_xywh_px: Box
    category: str | None
    description: str | None
    mask: Rle | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """An image with its targets; it may have none.

    Attributes:
        file_name: The name in the files of the ground truth.
        width_px: Width of the EXIF-rotated image; 0 if it is not known.
        height_px: Its height.
        targets: The phrases with known places.
        present: The names of `GroundTruth.categories` that the image shows, with or without a
            target (a crowd, an object that no caption names).
        absent: Phrases that are known to be absent, although a caption may have them.
    """

    file_name: str
    width_px: int
    height_px: int
    targets: tuple[TruthTarget, ...]
    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()

    def resize(self, size_hw: Sides) -> TruthImage:
        """Return the ground truth of the resized image, without crop or border; masks by nearest neighbours.

        An image of this size, or of unknown size, is returned as it is.
        """
        if 0 in (self.height_px, self.width_px) or size_hw == (self.height_px, self.width_px):
            return self
        height, width = size_hw
        x_scale = width / self.width_px
        y_scale = height / self.height_px

        def resize_target(target: TruthTarget) -> TruthTarget:
            boxes = (
                (x * x_scale, y * y_scale, w * x_scale, h * y_scale) for x, y, w, h in target.boxes_xywh_px
            )
            mask = target.mask
            if mask is not None:
                pixels = decode_mask(mask).astype(np.uint8)
                size_wh = (width, height)
                pixels = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_NEAREST)
                mask = encode_mask(pixels)
            return replace(target, boxes_xywh_px=tuple(boxes), mask=mask)

        return replace(
            self,
            height_px=height,
            width_px=width,
            targets=tuple(map(resize_target, self.targets)),
        )


class ImagesOnDemand(UserDict[str, Any]):
    """Values by file name, made from their sources at each look-up: a dataset rarely has all images.

    A look-up raises the errors of `make`.
    """

    def __init__(self, sources: Mapping[str, Source], make: Callable[[Source], Any]) -> None:
        super().__init__(sources)
        self._make = make

    def __getitem__(self, file_name: str) -> Any:
        return self._make(self.data[file_name])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """The ground truth of all images, by file name; the look-up of an image with damaged entries raises InputError.

    Attributes:
        images: The images.
        categories: Names of categories with complete annotations: all their objects in all
            images. A phrase with such a head noun is absent from an image without the name in
            `present`, and a region for it is wrong. Phrases with other head nouns are left out.
        objects: The objects of each image; empty if there are phrases only.
        names: All names of categories. Annotations may be incomplete, unlike those of
            `categories`.
        descriptions: All `TruthObject.description`.
    """

    images: Mapping[str, TruthImage]
    categories: frozenset[str] = frozenset()
    objects: Mapping[str, tuple[TruthObject, ...]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    descriptions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSpelling:
    """The spelling of a caption of the ground truth in the captions of an image.

    Attributes:
        numbers: Numbers of the matching captions; empty if there is none.
        words: Word of the ground truth -> another spelling in them.
    """

    numbers: frozenset[int]
    words: Mapping[str, str] = field(default_factory=dict)

    def phrase(self, phrase: str) -> str:
        """Return a normalised phrase of the ground truth in the spelling of these captions."""
        if not self.words:
            return phrase
        return normalise(" ".join(self.words.get(word, word) for word in phrase.split()))


@lru_cache(maxsize=1024)
def bare(caption: str) -> str:
    """Return the caption's letters and digits.

    Every target of an image compares all captions, hence the cache.
    """
    return "".join(filter(str.isalnum, caption.casefold()))


@lru_cache(maxsize=1024)
def find_spelling(caption: str, captions: tuple[str, ...]) -> CaptionSpelling:
    """Find a caption of the ground truth among the captions of an image.

    Captions with equal letters and digits match. If there is none, the most similar one
    matches, the first among equals, if its similarity is at least `SAME_CAPTION` and that of
    each differing word at least `SAME_WORD`.

    >>> captions = ("A dog runs.", "A grey cat sits on a wooden chair.")
    >>> find_spelling("A gray cat sits on a wooden chair .", captions).words
    {'gray': 'grey'}
    """
    letters = bare(caption)
    same = frozenset(number for number, text in enumerate(captions) if bare(text) == letters)
    if same or not captions:
        return CaptionSpelling(numbers=same)
    similarities = [_similarity(letters, bare(text)) for text in captions]
    nearest = max(range(len(captions)), key=similarities.__getitem__)
    words = dict(_other_words(caption, captions[nearest]))
    if similarities[nearest] < SAME_CAPTION or any(
        _similarity(*pair) < SAME_WORD for pair in words.items()
    ):
        return CaptionSpelling(numbers=frozenset())
    return CaptionSpelling(numbers=frozenset([nearest]), words=words)


def _similarity(text: str, other: str) -> float:
    return SequenceMatcher(None, text, other, autojunk=False).ratio()


def _other_words(caption: str, other: str) -> Iterator[tuple[str, str]]:
    """Words of a caption and their counterparts in another, case folded."""
    words = caption.casefold().split()
    other_words = other.casefold().split()
    matcher = SequenceMatcher(None, words, other_words, autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind != "replace":
            continue
        if end - start == other_end - other_start:
            yield from zip(words[start:end], other_words[other_start:other_end], strict=True)
        elif end - start == 1:
            yield words[start], " ".join(other_words[other_start:other_end])


def mentions_of(
    target: TruthTarget,
    captions: Sequence[str],
    phrases: Sequence[Phrase],
) -> list[int]:
    """Return the numbers of an image's phrases that match a target."""
    if target.match == "category":
        return [n for n, phrase in enumerate(phrases) if target.phrase in (phrase.text, phrase.head)]
    if target.caption is None:
        spelling = CaptionSpelling(numbers=frozenset(range(len(captions))))
    else:
        spelling = find_spelling(target.caption, tuple(captions))
    numbers = spelling.numbers
    candidates = [
        n for n, phrase in enumerate(phrases) if phrase.is_said and phrase.caption_index in numbers
    ]
    text = spelling.phrase(target.phrase)
    return [n for n in candidates if phrases[n].text == text]
