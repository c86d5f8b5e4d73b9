"""Which phrases and regions of a dataset answer which targets of the truth.

Images: the same file name, or the same last part of it where that is unique on both sides.

Targets, by `Target.match`:

phrase      the row's phrase with the same normalised text; with `caption`, one that stands in that caption
category    each phrase of the row whose text, or else whose head noun, is the category's name is asked for
            separately, and any thing of the category is right for it. A category that no caption names is not
            asked for.
expression  the phrase that is the whole caption, else the caption's first phrase

A target's caption is the row's caption with the same letters and digits: Flickr30k Entities has its captions
tokenised, other sources of the same captions do not.

A target whose phrase the row does not have, whose map is empty or whose row has an error is asked for too and
counts as missed in every metric: what the pipeline loses on the way is part of the figure.

A phrase that answers no target, and whose head noun or text is a category that the truth annotates everywhere
and of which nothing is in the image, is known to be absent: its regions are wrong. It counts for scores and for
COCO's average precision. All other phrases are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.contract.errors import InputError
from stages.contract.geometry import Box
from stages.contract.masks import decode_mask
from stages.contract.records import HeatMap, Phrase, Rle
from stages.dataset.evaluate.truth import Target, Truth, TruthImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A region of the dataset: box and mask in pixels, score 0 .. 1, cosine -1 .. 1."""

    box_xywh_px: Box
    mask: Rle
    score: float
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Query:
    """One phrase asked of one image.

    image      number of the image, for resampling whole images
    size_hw    pixels
    phrase     the row's phrase; None if the row does not have it
    target     what is right; None for a phrase that is known to be absent
    answers    the phrase's regions, best score first
    heat_map   the phrase's map; None if there is none, or maps were not asked for
    plain_map  the map before the image's colours guided it, the same one where they did not
    """

    image: int
    size_hw: tuple[int, int]
    phrase: str | None
    target: Target | None
    answers: tuple[Answer, ...]
    heat_map: HeatMap | None = None
    plain_map: HeatMap | None = None

    @cached_property
    def true_mask(self) -> NDArray[np.bool_] | None:
        """bool (h, w); None where the truth has boxes only or nothing."""
        if self.target is None or self.target.mask is None:
            return None
        return decode_mask(self.target.mask)

    @cached_property
    def heat_px(self) -> NDArray[np.float32] | None:
        """The map at the size of the image, float32 (h, w), >= 0, bilinear between cell centres."""
        return _at_size(self.heat_map, self.size_hw)

    @cached_property
    def plain_heat_px(self) -> NDArray[np.float32] | None:
        """As `heat_px`, of the plain map."""
        return _at_size(self.plain_map, self.size_hw)


def _at_size(heat_map: HeatMap | None, size_hw: tuple[int, int]) -> NDArray[np.float32] | None:
    if heat_map is None or heat_map.fault:
        return None
    heat: NDArray[np.float32] = cv2.resize(heat_map.values, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return heat


def images_of_rows(file_names: Iterable[str], truth: Truth) -> dict[str, TruthImage]:
    """The truth's image for each file name of the dataset that has one.

    Raises InputError if not a single name is known to both.
    """
    names = list(file_names)
    found = {name: truth.images[name] for name in names if name in truth.images}
    by_last = _unique_last_parts(truth.images)
    unique = _unique_last_parts(names)
    for last, name in unique.items():
        if name not in found and last in by_last:
            found[name] = truth.images[by_last[last]]
    if names and not found:
        raise InputError(
            f"the truth has no image of the dataset: the dataset's first is {names[0]!r}, "
            f"the truth's {next(iter(truth.images), None)!r}"
        )
    return found


def _unique_last_parts(names: Iterable[str]) -> dict[str, str]:
    """Last part of a path -> the path, for last parts that occur once."""
    names = list(names)
    times = Counter(PurePosixPath(name).name for name in names)
    return {PurePosixPath(name).name: name for name in names if times[PurePosixPath(name).name] == 1}


def queries_of(
    number: int,
    row: Mapping[str, Any],
    image: TruthImage,
    categories: frozenset[str],
    phrases: Sequence[Phrase],
    maps: Mapping[str, HeatMap],
    plain_maps: Mapping[str, HeatMap] | None = None,
) -> list[Query]:
    """What is asked of one row.

    number      of the image
    row         of the dataset
    phrases     all phrases of the row, also those without a region
    maps        heat maps by the phrases' texts; empty if maps were not asked for
    plain_maps  the same before colours guided them; None if they did not

    Raises InputError if the truth speaks of an image of another size.
    """
    size_hw = (row["height"], row["width"])
    told_hw = (image.height_px, image.width_px)
    if row["error"] is None and 0 not in told_hw and told_hw != size_hw:
        raise InputError(
            f"{row['file_name']} has {size_hw[1]}x{size_hw[0]} pixels, but the truth is for "
            f"{told_hw[1]}x{told_hw[0]}: it must be for the image as stored, turned as its EXIF tag says"
        )
    answers: dict[str, list[Answer]] = {}
    for annotation in row["annotations"]:
        answers.setdefault(annotation["phrase"], []).append(_answer(annotation))
    asked: list[tuple[str | None, Target | None]] = []
    for target in image.targets:
        asked.extend((phrase, target) for phrase in _phrases_for(target, row, phrases))
    answered = {phrase for phrase, _ in asked}
    absent = dict.fromkeys(
        phrase.text
        for phrase in phrases
        if phrase.text not in answered
        and {phrase.text, phrase.head} & categories
        and not {phrase.text, phrase.head} & image.present
    )
    asked.extend((text, None) for text in absent)
    return [
        Query(
            image=number,
            size_hw=size_hw if 0 not in size_hw else told_hw,
            phrase=phrase,
            target=target,
            answers=tuple(sorted(_unique(answers.get(phrase or "", ())), key=lambda answer: -answer.score)),
            heat_map=maps.get(phrase or ""),
            plain_map=(maps if plain_maps is None else plain_maps).get(phrase or ""),
        )
        for phrase, target in asked
    ]


def _answer(annotation: Mapping[str, Any]) -> Answer:
    x, y, w, h = annotation["bbox"]
    coded = annotation["segmentation"]
    return Answer(
        box_xywh_px=(x, y, w, h),
        mask=Rle(size_hw=tuple(coded["size"]), counts=coded["counts"]),
        score=annotation["score"],
        similarity=annotation["similarity"],
    )


def _unique(answers: Iterable[Answer]) -> list[Answer]:
    """A phrase that stands in a row twice has its regions twice."""
    return list(dict.fromkeys(answers))


def _bare(caption: str) -> str:
    return "".join(character for character in caption.casefold() if character.isalnum())


def _phrases_for(target: Target, row: Mapping[str, Any], phrases: Sequence[Phrase]) -> list[str | None]:
    """Texts of the row's phrases that a target is asked by; [None] if it has none."""
    if target.match == "category":
        named = [phrase.text for phrase in phrases if target.phrase in (phrase.text, phrase.head)]
        return list(dict.fromkeys(named))
    wanted = None if target.caption is None else _bare(target.caption)
    captions = [_bare(caption) for caption in row["captions"]]
    near = [phrase for phrase in phrases if wanted is None or captions[phrase.caption_index] == wanted]
    same = [phrase.text for phrase in near if phrase.text == target.phrase]
    if same:
        return [same[0]]
    if target.match == "expression" and near:
        return [min(near, key=lambda phrase: phrase.start).text]
    return [None]
