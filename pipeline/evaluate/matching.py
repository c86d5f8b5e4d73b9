"""The phrases and regions of a dataset that answer the targets of the ground truth.

An image of the dataset is matched with one of the ground truth by its file name, see
`match_images`.

How a target finds its phrase depends on `TruthTarget.match`:

phrase      The row's phrase with the same normalised text. A target with a `caption` takes it from that caption only.
category    Every phrase with the category's name as its text or head noun is a query of its own, and any object of the
            category counts as right. A category that no caption names makes no query.

A target's caption is the row's caption with the same letters and digits, because captions of
Flickr30k Entities are tokenised and other sources of these captions are not. If there is none,
it is the row's caption with another spelling of a word (`phrasebox.stages.truth.ground_truth`).

A target still makes a query, and counts as missed in every metric, if the row lacks its phrase,
if the phrase's map is empty or if the row has an error: losses of the pipeline are part of the
figures.

A phrase that answers no target is known to be absent in two cases: the ground truth lists it;
or its head noun or text is a category that the ground truth annotates everywhere, and nothing
of that category is in the image. Its regions are wrong; they count for the scores. All other
phrases are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from posixpath import basename, splitext
from types import MappingProxyType

import cv2
import numpy as np

from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.evaluate.text_only import TextOnly
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box, resize_shifted, xywh_to_xyxy
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import HeatMap, Phrase, Rle
from phrasebox.stages.contract.values import Bools, Floats32, Sides
from phrasebox.stages.truth.ground_truth import GroundTruth, TruthImage, TruthTarget, mentions_of


def draw_map(heat_map: HeatMap, size_hw: Sides) -> Floats32:
    """Return a heat map at another size, float32 (h, w), bilinear between the places of its values."""
    if heat_map.shift_cells:
        return resize_shifted(heat_map.values, size_hw, heat_map.shift_cells)
    heat: Floats32 = cv2.resize(heat_map.values, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return heat


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A region of the dataset: box and mask in pixels, score 0 .. 1, cosine -1 .. 1."""

    box_xywh_px: Box
    mask: Rle
    score: float
    similarity: float


class ImageHeat:
    """A heat map at the size of its image, in pixels. All queries of a phrase share it, and its parts are cached."""

    def __init__(self, heat_map: HeatMap, size_hw: Sides) -> None:
        self.heat_map = heat_map
        self.size_hw = size_hw

    @cached_property
    def px(self) -> Floats32:
        """The heat of every pixel, float32 (h, w)."""
        return draw_map(self.heat_map, self.size_hw)

    @cached_property
    def top(self) -> float:
        """The highest heat."""
        return float(self.px.max())

    @cached_property
    def peak(self) -> tuple[int, int]:
        """Row and column of the highest pixel; of several, the middle one."""
        highest = np.flatnonzero(self.px == self.top)
        row, column = divmod(int(highest[highest.size // 2]), self.size_hw[1])
        return row, column

    def mean_inside(self, mask: Rle) -> float:
        """Return the mean heat on a mask, 0 .. 1 of the highest; 0 on a map without heat."""
        if self.top <= 0:
            return 0.0
        return float(self.px[decode_mask(mask)].mean()) / self.top


@dataclass(frozen=True, kw_only=True)
class Query:
    """One phrase of one image, looked for in the dataset.

    Attributes:
        image: Number of the image; the bootstrap draws whole images.
        size_hw: Height and width of the image in pixels.
        phrase: Text of the phrase; None if the row does not have it.
        target: The right answer; None for a phrase that is known to be absent.
        answers: Regions of the phrase, best score first.
        heat: Heat map of the phrase; None if the map is empty, or if maps were not computed.
        other_boxes: Box of the best region of each other text of the image.
        text_only: Usual places in other images; None if they are not known.
        phrase_index: Place in the row of the first phrase with this text that answers the target.
    """

    image: int
    size_hw: Sides
    phrase: str | None
    target: TruthTarget | None
    answers: tuple[Answer, ...]
    heat: ImageHeat | None = None
    other_boxes: tuple[Box, ...] = ()
    text_only: TextOnly | None = None
    phrase_index: int | None = None

    @property
    def true_target(self) -> TruthTarget:
        """The target. Raise ValueError for an absent phrase."""
        if self.target is None:
            raise ValueError("expected a query with a target")
        return self.target

    @cached_property
    def area(self) -> Bools:
        """The pixels (h, w) of the target: its mask, or its boxes if it has none."""
        if self.true_target.mask is not None:
            return decode_mask(self.true_target.mask)
        area = np.zeros(self.size_hw, dtype=np.bool_)
        for box in self.true_target.boxes_xywh_px:
            x0, y0, x1, y1 = (max(0, round(edge)) for edge in xywh_to_xyxy(box))
            area[y0:y1, x0:x1] = True
        return area


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMatches:
    """The images that the dataset and the ground truth share.

    Attributes:
        images: File name in the dataset -> image of the ground truth.
        ambiguous: Number of images with a name that resembles one of the ground truth, but not
            one to one.
    """

    images: Mapping[str, TruthImage]
    ambiguous: int

    @property
    def counts(self) -> dict[str, int]:
        """The numbers, for the report."""
        return {"images": len(self.images), "ambiguous": self.ambiguous}


def match_images(file_names: Iterable[str], truth: GroundTruth) -> ImageMatches:
    """Match the images of the dataset with those of the ground truth by their file names.

    The whole name comes first, then the last part of the path, then both of them without the
    extension. A name that is only similar must be so one to one: "a/1.jpg" and "b/1.jpg" are
    both left out where the ground truth has "1.jpg".

    Raise InputError if no name matches.
    """
    names = list(dict.fromkeys(file_names))
    matches = {name: name for name in names if name in truth.images}
    ambiguous: set[str] = set()
    for key in (basename, lambda name: splitext(name)[0], lambda name: splitext(basename(name))[0]):
        groups = _group_names(names, key)
        matched_names = set(matches.values())
        for group_key, true_names in _group_names(truth.images, key).items():
            group = groups.get(group_key, [])
            candidates = [name for name in group if name not in matches]
            if len(group) == len(true_names) == 1 and candidates and true_names[0] not in matched_names:
                matches[candidates[0]] = true_names[0]
            else:
                ambiguous.update(candidates)
    if names and not matches:
        raise InputError(
            f"the ground truth has no image of the dataset: the dataset's first is {names[0]!r}, "
            f"the ground truth's {next(iter(truth.images), None)!r}"
        )
    images = {name: truth.images[matches[name]] for name in names if name in matches}
    return ImageMatches(images=images, ambiguous=len(ambiguous - matches.keys()))


def _group_names(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def check_size(file_name: str, size_hw: Sides, image: TruthImage) -> None:
    """Raise InputError if the ground truth is for an image of another size."""
    true_hw = (image.height_px, image.width_px)
    if 0 not in true_hw and true_hw != size_hw:
        raise InputError(
            f"{file_name} has {size_hw[1]}x{size_hw[0]} pixels, but the ground truth is for {true_hw[1]}x{true_hw[0]}: "
            "it must be for the image as stored, turned as its EXIF tag says, unless the image was resized afterwards "
            "(--resized)"
        )


def queries_of(
    number: int,
    row: Row,
    image: TruthImage,
    categories: frozenset[str],
    phrases: Sequence[Phrase],
    maps: Mapping[str, HeatMap] = MappingProxyType({}),
) -> list[Query]:
    """Return the queries of one row.

    Args:
        number: Number of the image.
        row: A row of the dataset.
        image: The same image in the ground truth.
        categories: `GroundTruth.categories`.
        phrases: All phrases of the row, also those without a region.
        maps: Heat maps by the phrases' texts, if maps were computed.

    Raise InputError if the ground truth is for an image of another size.
    """
    size_hw = (row["height"], row["width"])
    true_hw = (image.height_px, image.width_px)
    if row["error"] is None:
        check_size(row["file_name"], size_hw, image)
    size_hw = true_hw if 0 in size_hw else size_hw
    heats = {text: ImageHeat(heat_map, size_hw) for text, heat_map in maps.items() if not heat_map.fault}
    answers: dict[str, dict[Answer, None]] = {}  # a phrase that is in a row twice has its regions twice
    for annotation in row["annotations"]:
        answers.setdefault(annotation["phrase"], {})[_parse_answer(annotation)] = None
    pairs: list[tuple[int | None, TruthTarget | None]] = []
    for target in image.targets:
        indices = _first_indices(phrases, mentions_of(target, row["captions"], phrases))
        misses = [] if indices or target.match == "category" else [None]
        pairs += [(index, target) for index in (*indices.values(), *misses)]
    answered_texts = {phrases[index].text for index, _ in pairs if index is not None}
    for text, index in _first_indices(phrases, range(len(phrases))).items():
        if text not in answered_texts and _is_absent(phrases[index], image, categories):
            pairs.append((index, None))

    best_boxes = {
        text: max(regions, key=lambda region: region.score).box_xywh_px for text, regions in answers.items()
    }

    def query_of(index: int | None, target: TruthTarget | None) -> Query:
        phrase = None if index is None else phrases[index].text
        return Query(
            image=number,
            size_hw=size_hw,
            phrase=phrase,
            phrase_index=index,
            target=target,
            answers=tuple(sorted(answers.get(phrase or "", ()), key=lambda answer: -answer.score)),
            heat=heats.get(phrase or ""),
            other_boxes=tuple(box for text, box in best_boxes.items() if text != phrase),
        )

    return [query_of(*pair) for pair in pairs]


def _is_absent(phrase: Phrase, image: TruthImage, categories: frozenset[str]) -> bool:
    names = {phrase.text, phrase.head}
    return phrase.text in image.absent or bool(names & categories and not names & image.present)


def _parse_answer(annotation: Annotation) -> Answer:
    x, y, w, h = annotation["bbox"]
    mask = Rle(
        size_hw=tuple(annotation["segmentation"]["size"]), counts=annotation["segmentation"]["counts"]
    )
    scores = {name: annotation[name] for name in ("score", "similarity")}
    return Answer(box_xywh_px=(x, y, w, h), mask=mask, **scores)


def _first_indices(phrases: Sequence[Phrase], indices: Sequence[int]) -> dict[str, int]:
    """Return the index of the first phrase with each text, in the order of the texts."""
    indices_by_text: dict[str, int] = {}
    for index in indices:
        indices_by_text.setdefault(phrases[index].text, index)
    return indices_by_text
