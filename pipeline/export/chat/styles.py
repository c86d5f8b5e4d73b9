"""The styles: how a trainer or model writes boxes, phrases with boxes, and records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from pipeline.export.chat.coordinates import (
    BoxWriter,
    write_florence,
    write_hundredths,
    write_kosmos,
    write_mark,
    write_paligemma,
    write_point,
    write_resized_pixels,
    write_thousandths,
)
from pipeline.export.chat.layouts import (
    LIST_OF_TURNS,
    MARKED_MESSAGES,
    MESSAGES,
    PREFIX_AND_SUFFIX,
    TURNS,
    Layout,
)

StyleName = Literal[
    "ms-swift",
    "ms-swift-json",
    "qwen3-vl",
    "qwen2.5-vl",
    "llava",
    "paligemma",
    "florence-2",
    "kosmos-2",
    "molmo",
]


MARKUP: Final = "<>"
PHRASE_SEPARATOR: Final = " ; "  # Between the phrases of PaliGemma's prompts and answers


class Listing(NamedTuple):
    """What stands before, between and behind phrases in a list."""

    start: str
    between: str
    end: str

    def join(self, texts: Iterable[str]) -> str:
        """Return the list of some texts."""
        return self.start + self.between.join(texts) + self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A style.

    Attributes:
        coordinates: One line for people: unit, range and order of the coordinates.
        reader: The program that reads the records.
        layout: The layout of records.
        templates: Name of the file of questions in `questions/`.
        write_box: Function: region, frame -> text of its box.
        write_phrase: Function: phrase and the texts of its boxes -> text.
        join_boxes: Function: the texts of several boxes -> text.
        listing: How phrases with boxes are listed in answers; None if they stand in the caption,
            and an answer to `locate` holds boxes only.
        write_label: Function: phrase -> its text in answers.
        reserved: Characters that a phrase must not have, since they have a meaning.
        has_space_within: Whether the space before a phrase stands within its mark.
        needs_pixels: Whether boxes depend on the trainer's numbers of pixels.
    """

    coordinates: str
    reader: str
    layout: Layout
    templates: str
    write_box: BoxWriter
    write_phrase: Callable[[str, Sequence[str]], str]
    join_boxes: Callable[[Iterable[str]], str] = "".join
    listing: Listing | None = None
    write_label: Callable[[str], str] = str
    reserved: str = MARKUP
    has_space_within: bool = False
    needs_pixels: bool = False

    def can_write(self, phrase: str) -> bool:
        """Return whether a phrase has no reserved character."""
        return set(phrase).isdisjoint(self.reserved)


def escape_json(text: str) -> str:
    """Return a text as it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_entries(label: str, boxes: Sequence[str]) -> str:
    return ", ".join(f'{{"bbox_2d": {box}, "label": "{label}"}}' for box in boxes)


def _points(label: str, points: Sequence[str]) -> str:
    """Return Molmo's element of all points of a phrase, from left to right, as its formatter sorts them."""
    places = sorted([float(number) for number in point.split()] for point in points)
    if len(places) == 1:
        return f'<point x="{places[0][0]:.1f}" y="{places[0][1]:.1f}" alt="{label}">{label}</point>'
    numbered = " ".join(
        f'x{number}="{x:.1f}" y{number}="{y:.1f}"' for number, (x, y) in enumerate(places, start=1)
    )
    return f'<points {numbered} alt="{label}">{label}</points>'


def _kosmos_object(boxes: Iterable[str]) -> str:
    return f"<object>{'</delimiter_of_multi_objects/>'.join(boxes)}</object>"


_JSON_LIST: Final = Listing("[", ", ", "]")
_QWEN_TRAINER: Final = "Qwen's qwen-vl-finetune"

STYLES: Final[dict[StyleName, Style]] = {
    "ms-swift": Style(
        coordinates="pixels of the image as x0, y0, x1, y1, which ms-swift scales for the model",
        reader="ms-swift",
        layout=MARKED_MESSAGES,
        templates="ms-swift",
        write_box=write_mark,
        write_phrase=lambda label, boxes: label + "".join(boxes),
    ),
    "ms-swift-json": Style(
        coordinates="pixels of the image as x0, y0, x1, y1, which ms-swift scales for the model",
        reader="ms-swift with QWENVL_BBOX_FORMAT=new",
        layout=MARKED_MESSAGES,
        templates="json",
        write_box=write_mark,
        write_phrase=_json_entries,
        listing=_JSON_LIST,
        write_label=escape_json,
    ),
    "qwen3-vl": Style(
        coordinates="0 .. 1000 of the image's sides as x0, y0, x1, y1",
        reader=_QWEN_TRAINER,
        layout=TURNS,
        templates="json",
        write_box=write_thousandths,
        write_phrase=_json_entries,
        listing=_JSON_LIST,
        write_label=escape_json,
    ),
    "qwen2.5-vl": Style(
        coordinates="pixels of the resized image as x0, y0, x1, y1",
        reader=_QWEN_TRAINER,
        layout=TURNS,
        templates="json",
        write_box=write_resized_pixels,
        write_phrase=_json_entries,
        listing=_JSON_LIST,
        write_label=escape_json,
        needs_pixels=True,
    ),
    "llava": Style(
        coordinates="shares 0 .. 1 of the padded image's sides as x0, y0, x1, y1",
        reader="LLaVA's llava/train/train.py",
        layout=LIST_OF_TURNS,
        templates="llava",
        write_box=write_hundredths,
        write_phrase=lambda label, boxes: f"{label} {', '.join(boxes)}",
        join_boxes=", ".join,
    ),
    "paligemma": Style(
        coordinates="1024 bins of the image's sides as y0, x0, y1, x1",
        reader="big_vision, or transformers' PaliGemmaProcessor,",
        layout=PREFIX_AND_SUFFIX,
        templates="paligemma",
        write_box=write_paligemma,
        write_phrase=lambda label, boxes: PHRASE_SEPARATOR.join(f"{box} {label}" for box in boxes),
        listing=Listing("", PHRASE_SEPARATOR, ""),
        reserved=MARKUP + ";",
    ),
    "florence-2": Style(
        coordinates="1000 bins of the image's sides as x0, y0, x1, y1",
        reader="transformers' Florence2Processor",
        layout=PREFIX_AND_SUFFIX,
        templates="florence-2",
        write_box=write_florence,
        write_phrase=lambda label, boxes: label + "".join(boxes),
        listing=Listing("", "", ""),
    ),
    "kosmos-2": Style(
        coordinates="first and last cell of a grid of 32 x 32",
        reader="transformers' Kosmos2Processor",
        layout=PREFIX_AND_SUFFIX,
        templates="kosmos-2",
        write_box=write_kosmos,
        write_phrase=lambda label, boxes: f"<phrase> {label}</phrase>{_kosmos_object(boxes)}",
        join_boxes=_kosmos_object,
        has_space_within=True,
    ),
    "molmo": Style(
        coordinates="a point in each region, in percent of the image's sides as x, y",
        reader="ms-swift with a Molmo model",
        layout=MESSAGES,
        templates="molmo",
        write_box=write_point,
        write_phrase=_points,
        listing=Listing("", "", ""),
        reserved=MARKUP + '"',
    ),
}
