"""The styles: how a trainer or model writes boxes, phrases with boxes, and records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from phrasebox.pipeline.export.chat.coordinates import (
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
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.values import Json

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


PHRASE_MARK: Final = "<ref-object>"
BOX_MARK: Final = "<bbox>"
MARKUP: Final = "<>"
PHRASE_SEPARATOR: Final = " ; "  # Between the phrases of PaliGemma's prompts and answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A question about an image and its answer.

    Attributes:
        question: The question.
        answer: The answer.
        phrases: The phrases of all `PHRASE_MARK`s, in the order of the text.
        boxes: x0, y0, x1, y1 px of all `BOX_MARK`s, in the order of the text.
    """

    question: str
    answer: str
    phrases: Sequence[str] = ()
    boxes: Sequence[Box] = ()


Layout = Callable[[Conversation, str, str], Json]
"""Function: conversation, name of the image, id -> record."""


def messages(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of ms-swift, which also LLaMA-Factory reads."""
    question = {"role": "user", "content": f"<image>{conversation.question}"}
    answer = {"role": "assistant", "content": conversation.answer}
    return {"messages": [question, answer], "images": [image]}


def marked_messages(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of ms-swift with `objects`."""
    boxes = [[float(edge) for edge in box] for box in conversation.boxes]
    objects = {"ref": [*conversation.phrases], "bbox": boxes}
    return {**messages(conversation, image, name), "objects": objects}


def turns(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of LLaVA and of Qwen's own trainer."""
    question = {"from": "human", "value": f"<image>\n{conversation.question}"}
    answer = {"from": "gpt", "value": conversation.answer}
    return {"id": name, "image": image, "conversations": [question, answer]}


def prefix_and_suffix(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of big_vision."""
    return {"image": image, "prefix": conversation.question, "suffix": conversation.answer}


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
        join_phrases: Function: the texts of phrases with boxes -> answer; None if they stand in
            the caption, and an answer to `locate` holds boxes only.
        write_label: Function: phrase -> its text in answers.
        reserved: Characters that a phrase must not have, since they have a meaning.
        is_list: Whether a file is one JSON list; otherwise each line is a record.
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
    join_phrases: Callable[[Iterable[str]], str] | None = None
    write_label: Callable[[str], str] = str
    reserved: str = MARKUP
    is_list: bool = False
    has_space_within: bool = False
    needs_pixels: bool = False

    @property
    def has_marks(self) -> bool:
        """Whether marks in the text stand for the phrases and boxes of the record."""
        return self.layout is marked_messages

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


def _list_json(entries: Iterable[str]) -> str:
    return f"[{', '.join(entries)}]"


_SWIFT_PIXELS: Final = "pixels of the image as x0, y0, x1, y1, which ms-swift scales for the model"
_QWEN3: Final = Style(
    coordinates="0 .. 1000 of the image's sides as x0, y0, x1, y1",
    reader="Qwen's qwen-vl-finetune",
    layout=turns,
    templates="json",
    write_box=write_thousandths,
    write_phrase=_json_entries,
    join_phrases=_list_json,
    write_label=escape_json,
)

STYLES: Final[dict[StyleName, Style]] = {
    "ms-swift": Style(
        coordinates=_SWIFT_PIXELS,
        reader="ms-swift",
        layout=marked_messages,
        templates="ms-swift",
        write_box=write_mark,
        write_phrase=lambda label, boxes: label + "".join(boxes),
    ),
    "ms-swift-json": replace(
        _QWEN3,
        coordinates=_SWIFT_PIXELS,
        reader="ms-swift with QWENVL_BBOX_FORMAT=new",
        layout=marked_messages,
        write_box=write_mark,
    ),
    "qwen3-vl": _QWEN3,
    "qwen2.5-vl": replace(
        _QWEN3,
        coordinates="pixels of the resized image as x0, y0, x1, y1",
        write_box=write_resized_pixels,
        needs_pixels=True,
    ),
    "llava": Style(
        coordinates="shares 0 .. 1 of the padded image's sides as x0, y0, x1, y1",
        reader="LLaVA's llava/train/train.py",
        layout=turns,
        is_list=True,
        templates="llava",
        write_box=write_hundredths,
        write_phrase=lambda label, boxes: f"{label} {', '.join(boxes)}",
        join_boxes=", ".join,
    ),
    "paligemma": Style(
        coordinates="1024 bins of the image's sides as y0, x0, y1, x1",
        reader="big_vision, or transformers' PaliGemmaProcessor,",
        layout=prefix_and_suffix,
        templates="paligemma",
        write_box=write_paligemma,
        write_phrase=lambda label, boxes: PHRASE_SEPARATOR.join(f"{box} {label}" for box in boxes),
        join_phrases=PHRASE_SEPARATOR.join,
        reserved=MARKUP + ";",
    ),
    "florence-2": Style(
        coordinates="1000 bins of the image's sides as x0, y0, x1, y1",
        reader="transformers' Florence2Processor",
        layout=prefix_and_suffix,
        templates="florence-2",
        write_box=write_florence,
        write_phrase=lambda label, boxes: label + "".join(boxes),
        join_phrases="".join,
    ),
    "kosmos-2": Style(
        coordinates="first and last cell of a grid of 32 x 32",
        reader="transformers' Kosmos2Processor",
        layout=prefix_and_suffix,
        templates="kosmos-2",
        write_box=write_kosmos,
        write_phrase=lambda label, boxes: f"<phrase> {label}</phrase>{_kosmos_object(boxes)}",
        join_boxes=_kosmos_object,
        has_space_within=True,
    ),
    "molmo": Style(
        coordinates="a point in each region, in percent of the image's sides as x, y",
        reader="ms-swift with a Molmo model",
        layout=messages,
        templates="molmo",
        write_box=write_point,
        write_phrase=_points,
        join_phrases="".join,
        reserved=MARKUP + '"',
    ),
}
