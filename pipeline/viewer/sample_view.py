"""What a page shows of a row: outlines by group, captions in parts. Templates make the HTML."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from stages.contract.records import Rle
from stages.contract.schema import is_said
from stages.shared.images.pictures import mask_path

COLOURS: Final = 12
"""Number of colours: classes c0 .. c11 of the style sheet."""

COLUMNS: Final = (
    "id", "sample_id", "file_name", "width", "height", "captions", "annotations", "phrase_count", "warnings", "error",
    "error_detail", "absent",
)  # fmt: skip
"""Columns of a row that `sample_view` needs."""

_OUTLINE_SIDE_PX: Final = 640
_MOST_LETTERS: Final = 28

_THINNEST_PX: Final = 1.2
_THICKEST_PX: Final = 3.6
"""Outlines of regions with a score of 0 and 1, in pixels of the screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionPart:
    """A part of a caption that belongs to the same phrase throughout, the innermost of those around it.

    Attributes:
        text: The part.
        regions: Numbers of the phrase's regions.
        group: Number of the thing that it names; None beside all phrases that are in the image.
        absent: The innermost phrase that is not in the image, an entry of the row's `absent`.
        ends: Whether that phrase ends here.
    """

    text: str
    regions: tuple[int, ...] = ()
    group: int | None = None
    absent: Mapping[str, Any] | None = None
    ends: bool = False

    @property
    def colour(self) -> int:
        """Number of the colour. Only of a part that has a group."""
        return (self.group or 0) % COLOURS


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionView:
    """A region as it is drawn. What several captions say in the same words is drawn once.

    Attributes:
        number: Place in the row's `annotations` of the first entry for this phrase and this mask.
        annotation: The entry there.
        captions: Numbers of the captions that say it, one for each entry; none of a pool of concepts.
        area_share: Share of the image that the region covers, 0 .. 1.
        path: SVG path data of the mask, px.
        outline_px: Width of the outline on the screen, which grows with the score.
        label: Text at the box, with a long phrase cut.
        group: Number of the thing that the phrase names: 0, 1, ... in the order of the captions.
        leads: Whether its phrase has the highest score of the group. The group is drawn with the regions of that one.
        found: Whether the search finds this region, in any of its captions; None if it asks for none in particular.
        importance: Mean of that of its phrase in these captions; None where none is known.
    """

    number: int
    annotation: Mapping[str, Any]
    captions: tuple[int, ...]
    area_share: float
    path: str
    outline_px: float
    label: str
    group: int
    leads: bool = False
    found: bool | None = None
    importance: float | None = None

    @property
    def colour(self) -> int:
        """Number of the colour, that of the group."""
        return self.group % COLOURS


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """A sample as a page shows it.

    Attributes:
        number: Number of its row in the dataset.
        row: The row, with `COLUMNS`.
        captions: Each in parts.
        regions: In the order of drawing, large ones first, so that small ones can be pointed at.
        mark: What somebody said of it, or "".
    """

    number: int
    row: Mapping[str, Any]
    captions: list[list[CaptionPart]]
    regions: list[RegionView]
    mark: str

    @property
    def groups(self) -> list[list[RegionView]]:
        """The regions by group, and in each the highest score first."""
        groups: dict[int, list[RegionView]] = {}
        for region in sorted(self.regions, key=lambda one: (one.group, -one.annotation["score"], one.number)):
            groups.setdefault(region.group, []).append(region)
        return list(groups.values())

    @property
    def things(self) -> int | None:
        """Number of groups; None in datasets without them."""
        known = {region.annotation["group"] for region in self.regions}
        return len(known) if known and None not in known else None

    @property
    def absent(self) -> list[Mapping[str, Any]]:
        """The phrases that are not in the image, each once."""
        return list({entry["phrase"]: entry for entry in self.row["absent"] or ()}.values())


def sample_view(row: Mapping[str, Any], number: int, mark: str | None, found: Collection[int] | None) -> SampleView:
    """What is shown of a row.

    Args:
        row: Has `COLUMNS`.
        number: Number of the row in the dataset.
        mark: The mark that somebody gave it.
        found: Ids of the annotations that the search finds; None for all.
    """
    annotations = row["annotations"]
    things = [_thing(one) for one in annotations]
    groups = {thing: place for place, thing in enumerate(dict.fromkeys(things))}
    numbers: dict[Any, list[int]] = {}  # of equal annotations
    for number_there, one in enumerate(annotations):
        numbers.setdefault((one["phrase"], *one["bbox"], one["segmentation"]["counts"]), []).append(number_there)
    regions = []
    for equal in numbers.values():
        one = annotations[equal[0]]
        known = [share for each in equal if (share := annotations[each]["importance"]) is not None]
        region = RegionView(
            number=equal[0],
            annotation=one,
            captions=tuple(annotations[each]["caption_index"] for each in equal if is_said(annotations[each])),
            area_share=one["area"] / max(1, row["width"] * row["height"]),
            path=_path(one["segmentation"]),
            outline_px=_THINNEST_PX + (_THICKEST_PX - _THINNEST_PX) * one["score"],
            label=_label(one["phrase"], one["score"]),
            group=groups[things[equal[0]]],
            found=None if found is None else any(annotations[each]["id"] in found for each in equal),
            importance=sum(known) / len(known) if known else None,
        )
        regions.append(region)
    first = {each: equal[0] for equal in numbers.values() for each in equal}
    said = [(first[each], groups[things[each]], one) for each, one in enumerate(annotations)]
    captions = [
        caption_parts(
            caption,
            [entry for entry in said if entry[2]["caption_index"] == index],
            [entry for entry in row["absent"] or () if entry["caption_index"] == index],
        )
        for index, caption in enumerate(row["captions"])
    ]
    return SampleView(
        number=number,
        row=row,
        captions=captions,
        regions=sorted(_with_leads(regions), key=lambda one: (-one.area_share, one.number)),
        mark=mark or "",
    )


def _thing(annotation: Mapping[str, Any]) -> int | str:
    """What the phrase names, as far as the row knows: in datasets without groups each phrase names another thing."""
    group: int | None = annotation["group"]
    phrase: str = annotation["phrase"]
    return phrase if group is None else group


def _with_leads(regions: Sequence[RegionView]) -> list[RegionView]:
    best: dict[int, Mapping[str, Any]] = {}
    for region in regions:
        if region.group not in best or region.annotation["score"] > best[region.group]["score"]:
            best[region.group] = region.annotation
    return [replace(one, leads=one.annotation["phrase"] == best[one.group]["phrase"]) for one in regions]


def _label(phrase: str, score: float) -> str:
    return f"{phrase if len(phrase) <= _MOST_LETTERS else phrase[: _MOST_LETTERS - 1].rstrip() + '…'} {score:.2f}"


def caption_parts(
    caption: str, annotations: Sequence[tuple[int, int, Mapping[str, Any]]], absent: Sequence[Mapping[str, Any]] = ()
) -> list[CaptionPart]:
    """Cut a caption at the borders of its phrases, which may lie in one another.

    Args:
        caption: The text.
        annotations: Number, group and fields of the regions whose phrase is in this caption.
        absent: Entries of `absent` of this caption.
    """
    edges = {0, len(caption)}
    for fields in (*(annotation for *_, annotation in annotations), *absent):
        edges.update(fields["span"])
    found = []
    for start, end in pairwise(sorted(edges)):
        around = [one for one in annotations if one[2]["span"][0] <= start and end <= one[2]["span"][1]]
        innermost = min(around, key=lambda one: _length(one[2]), default=None)
        missing = min(
            (one for one in absent if one["span"][0] <= start and end <= one["span"][1]), key=_length, default=None
        )
        part = CaptionPart(
            text=caption[start:end], absent=missing, ends=missing is not None and missing["span"][1] == end
        )
        if innermost is not None:
            _, group, annotation = innermost
            numbers = dict.fromkeys(
                number for number, _, one in around if list(one["span"]) == list(annotation["span"])
            )
            part = replace(part, regions=tuple(numbers), group=group)
        found.append(part)
    return found


def _length(fields: Mapping[str, Any]) -> int:
    start, end = fields["span"]
    return int(end - start)


def _path(segmentation: Mapping[str, Any]) -> str:
    rle = Rle(size_hw=tuple(segmentation["size"]), counts=segmentation["counts"])
    try:
        return mask_path(rle, _OUTLINE_SIDE_PX)
    except ValueError:
        return ""  # a damaged mask: the box is shown, and `phrasebox validate` names the row
