"""What a page shows of a row: outlines, labels and their places, captions in parts. The HTML is left to templates."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from stages.contract.records import Rle
from stages.images.pictures import mask_path

COLOURS: Final = 12
"""Number of colours: classes c0 .. c11 of the style sheet."""

COLUMNS: Final = (
    "id", "sample_id", "file_name", "width", "height", "captions", "annotations", "phrase_count", "warnings", "error",
    "error_detail",
)  # fmt: skip
"""Columns of a row that `sample_view` needs."""

_OUTLINE_SIDE_PX: Final = 640
_MOST_LETTERS: Final = 28

# Widths of letters in the widest font that a browser may take, DejaVu Sans Bold, as parts of the text's height.
_LETTER: Final = 0.72
_WIDE_LETTER: Final = 1.1
_LETTERS: Final = {
    **dict.fromkeys("ijlI.,:;'|! ", 0.4),
    **dict.fromkeys("frt()[]-", 0.5),
    **dict.fromkeys("mwMW@%…", _WIDE_LETTER),
}

LABEL_HALO: Final = 0.16
"""How far the coloured edge of a label reaches beyond its letters, as a part of their height: half of the style sheet's
stroke-width."""
_DESCENT: Final = 0.24
_LABEL_STEP: Final = 1.2
"""Distance of base lines at which no label's edge lies on the letters of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionPart:
    """A part of a caption that belongs to the same regions throughout. Its colour is that of the innermost phrase."""

    text: str
    regions: tuple[int, ...]
    colour: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionView:
    """A region as it is drawn. What several captions say in the same words is drawn once.

    Attributes:
        number: Place in the row's `annotations` of the first entry for this phrase and this mask.
        annotation: The entry there.
        times: Number of entries for this phrase and this mask.
        area_share: Share of the image that the region covers, 0 .. 1.
        path: SVG path data of the mask, px.
        label: Text at the box.
        label_xy_px: Where the label's base line starts.
        colour: Number of the phrase's colour.
        found: Whether the search finds this region, in any of its captions.
    """

    number: int
    annotation: Mapping[str, Any]
    times: int
    area_share: float
    path: str
    label: str
    label_xy_px: tuple[float, float]
    colour: int
    found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """A sample as a page shows it.

    Attributes:
        number: Number of its row in the dataset.
        row: The row, with `COLUMNS`.
        text_px: Height of labels in pixels of the image.
    """

    number: int
    row: Mapping[str, Any]
    captions: list[list[CaptionPart]]
    regions: list[RegionView]
    mark: str
    text_px: float


def sample_view(
    row: Mapping[str, Any], number: int, mark: str | None, found: Collection[int] | None, *, lines: int = 26
) -> SampleView:
    """What is shown of a row.

    Args:
        row: Has `COLUMNS`.
        number: Number of the row in the dataset.
        mark: The mark that somebody gave it.
        found: Ids of the annotations that the search finds; None for all.
        lines: Lines of labels that fit into the longer side of the image.
    """
    annotations = row["annotations"]
    text_px = max(row["width"], row["height"]) / lines
    numbers: dict[Any, list[int]] = {}  # of equal annotations
    for number_there, one in enumerate(annotations):
        numbers.setdefault((one["phrase"], *one["bbox"], one["segmentation"]["counts"]), []).append(number_there)
    drawn = [annotations[equal[0]] for equal in numbers.values()]
    first = {each: equal[0] for equal in numbers.values() for each in equal}
    labels = [_label(one["phrase"], one["score"], row["width"] / (text_px or 1)) for one in drawn]
    places = label_places([one["bbox"] for one in drawn], labels, text_px, (row["width"], row["height"]))
    phrases = dict.fromkeys(one["phrase"] for one in drawn)
    colours = {phrase: index % COLOURS for index, phrase in enumerate(phrases)}
    regions = [
        RegionView(
            number=equal[0],
            annotation=one,
            times=len(equal),
            area_share=one["area"] / max(1, row["width"] * row["height"]),
            path=_path(one["segmentation"]),
            label=label,
            label_xy_px=label_xy_px,
            colour=colours[one["phrase"]],
            found=found is None or any(annotations[each]["id"] in found for each in equal),
        )
        for equal, one, label, label_xy_px in zip(numbers.values(), drawn, labels, places, strict=True)
    ]
    captions = [
        caption_parts(
            caption, [(first[n], one) for n, one in enumerate(annotations) if one["caption_index"] == i], colours
        )
        for i, caption in enumerate(row["captions"])
    ]
    return SampleView(number=number, row=row, captions=captions, regions=regions, mark=mark or "", text_px=text_px)


def label_places(
    boxes_xywh_px: Sequence[Sequence[float]], labels: Sequence[str], text_px: float, size_wh_px: tuple[int, int]
) -> list[tuple[float, float]]:
    """Find where each label's base line starts: at the top of its box, or else below or above the labels in its way.

    Labels stay within the image. They lie over one another only where the image has no room for all.
    """
    width_px, height_px = size_wh_px
    halo, step = LABEL_HALO * text_px, _LABEL_STEP * text_px
    highest, lowest = text_px, height_px - _DESCENT * text_px - halo
    taken: list[tuple[float, float, float]] = []  # left, right, base line
    for (x, y, _, _), label in zip(boxes_xywh_px, labels, strict=True):
        length = label_width(label) * text_px
        left = max(halo, min(x + text_px / 4, width_px - halo - length))
        right = left + length
        beside = [line for start, end, line in taken if left - 2 * halo < end and start < right + 2 * halo]
        first = max(highest, min(y + text_px, lowest))
        next_to = (line + way * step for line in beside for way in (1, -1))
        within = (base for base in next_to if highest <= base <= lowest)
        nearest = sorted(within, key=lambda base: (round(abs(base - first), 6), -base))
        free = (base for base in (first, *nearest) if all(abs(base - line) >= step * (1 - 1e-9) for line in beside))
        taken.append((left, right, next(free, first)))
    return [(left, base) for left, _, base in taken]


def label_width(label: str) -> float:
    """Width of a label in the widest of the fonts that browsers take, in multiples of the letters' height."""
    return sum(map(_letter_width, label))


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return _WIDE_LETTER
    return 0 if unicodedata.combining(letter) else _LETTERS.get(letter, _LETTER)


def _label(phrase: str, score: float, room: float) -> str:
    """Phrase and score. A long phrase, or one in a narrow image, is cut.

    Args:
        phrase: The region's phrase.
        score: Its score.
        room: Width of the image in multiples of the letters' height.
    """
    number = f" {score:.2f}"
    room -= label_width(number) + 2 * LABEL_HALO
    if len(phrase) <= _MOST_LETTERS and label_width(phrase) <= room:
        return phrase + number
    kept = phrase[: _MOST_LETTERS - 1]
    while kept and label_width(f"{kept}…") > room:
        kept = kept[:-1]
    return f"{kept.rstrip()}…{number}" if kept else number.strip()


def caption_parts(
    caption: str, annotations: Sequence[tuple[int, Mapping[str, Any]]], colours: Mapping[str, int]
) -> list[CaptionPart]:
    """Cut a caption at the borders of its phrases, which may lie in one another.

    Args:
        caption: The text.
        annotations: Number and fields of the regions whose phrase is in this caption.
        colours: Phrase -> number of its colour.
    """
    edges = {0, len(caption)}
    for _, annotation in annotations:
        edges.update(annotation["span"])
    found = []
    for start, end in pairwise(sorted(edges)):
        inside = [(number, a) for number, a in annotations if a["span"][0] <= start and end <= a["span"][1]]
        innermost = min(inside, key=lambda one: one[1]["span"][1] - one[1]["span"][0], default=None)
        found.append(
            CaptionPart(
                text=caption[start:end],
                regions=tuple(dict.fromkeys(number for number, _ in inside)),
                colour=None if innermost is None else colours[innermost[1]["phrase"]],
            )
        )
    return found


def _path(segmentation: Mapping[str, Any]) -> str:
    rle = Rle(size_hw=tuple(segmentation["size"]), counts=segmentation["counts"])
    try:
        return mask_path(rle, _OUTLINE_SIDE_PX)
    except ValueError:
        return ""  # a damaged mask: the box is shown, and `phrasebox validate` names the row
