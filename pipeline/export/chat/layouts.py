"""A conversation as a record of JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from stages.contract.geometry import Box
from stages.contract.values import Json

PHRASE_MARK: Final = "<ref-object>"
BOX_MARK: Final = "<bbox>"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The layout of records.

    Attributes:
        record: Function: conversation, name of the image, id -> record.
        is_list: Whether a file is one JSON list; otherwise each line is a record.
        has_marks: Whether marks in the text stand for the phrases and boxes of `objects`.
    """

    record: Callable[[Conversation, str, str], Json]
    is_list: bool = False
    has_marks: bool = False

    @property
    def extension(self) -> str:
        """The extension of files."""
        return "json" if self.is_list else "jsonl"


def _messages(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of ms-swift, which also LLaMA-Factory reads."""
    question = {"role": "user", "content": f"<image>{conversation.question}"}
    answer = {"role": "assistant", "content": conversation.answer}
    return {"messages": [question, answer], "images": [image]}


def _marked_messages(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of ms-swift with `objects`."""
    boxes = [[float(edge) for edge in box] for box in conversation.boxes]
    objects = {"ref": [*conversation.phrases], "bbox": boxes}
    return {**_messages(conversation, image, name), "objects": objects}


def _turns(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of LLaVA and of Qwen's own trainer."""
    question = {"from": "human", "value": f"<image>\n{conversation.question}"}
    answer = {"from": "gpt", "value": conversation.answer}
    return {"id": name, "image": image, "conversations": [question, answer]}


def _prefix_and_suffix(conversation: Conversation, image: str, name: str) -> Json:
    """Return a record of big_vision."""
    return {"image": image, "prefix": conversation.question, "suffix": conversation.answer}


MESSAGES: Final = Layout(record=_messages)
MARKED_MESSAGES: Final = Layout(record=_marked_messages, has_marks=True)
TURNS: Final = Layout(record=_turns)
LIST_OF_TURNS: Final = Layout(record=_turns, is_list=True)
PREFIX_AND_SUFFIX: Final = Layout(record=_prefix_and_suffix)
