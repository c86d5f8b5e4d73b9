"""Settings of `chat`, and the wordings of its questions.

`questions/` has a YAML file of questions for each kind of style, which a user's file replaces.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self, cast

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from phrasebox.pipeline.config.run_config import load_config
from phrasebox.pipeline.export.base import FormatConfig, WithImages
from phrasebox.pipeline.export.chat.styles import STYLES, Style, StyleName
from phrasebox.stages.contract.errors import ConfigError

Task = Literal["locate", "ground", "describe"]
TASKS: Final[tuple[Task, ...]] = ("locate", "ground", "describe")

FOLDER: Final = Path(__file__).parent / "questions"
_PLACES: Final[dict[Task, set[str]]] = {
    "locate": {"{phrase}"},
    "ground": {"{caption}", "{phrases}"},
    "describe": {"{box}"},
}
"""Task -> what can stand in its questions."""

_PLACE: Final = re.compile(r"\{\w+\}")
_MARKUP: Final = re.compile("<(image|video|audio|bbox|ref-object)>")


class Templates(BaseModel, extra="forbid", frozen=True):
    """Wordings of the questions of a style, one of which is chosen for each question."""

    locate: tuple[str, ...] = Field((), description="Where is {phrase}?")
    ground: tuple[str, ...] = Field(
        (), description="A caption with boxes; {caption} and {phrases} are what it says."
    )
    describe: tuple[str, ...] = Field((), description="What does {box} show?")
    absent: str | None = Field(
        None, description="Answer to `locate` for what is not in the image; by default it is not asked."
    )

    @field_validator(*TASKS)
    @classmethod
    def _check_places(cls, questions: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        task = cast(Task, info.field_name)
        expected = " or ".join(sorted(_PLACES[task]))
        for question in questions:
            places = set(_PLACE.findall(question))
            if (task != "ground" and not places) or places - _PLACES[task]:
                raise ValueError(f"expected {expected} and nothing else in braces, got {question!r}")
            if _MARKUP.search(question):
                raise ValueError(f"the export itself adds the marks of images and boxes, got {question!r}")
        return questions

    def of(self, task: Task) -> tuple[str, ...]:
        """Return the questions of a task; none if it is not asked."""
        questions: tuple[str, ...] = getattr(self, task)
        return questions


def load_templates(path: str, name: str) -> Templates:
    """Return the templates of a file; by default those of phrasebox with a name.

    Raise ConfigError if the file cannot be used.
    """
    try:
        templates: Templates = load_config(Path(path) if path else FOLDER / f"{name}.yaml", (), Templates)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if error.key else str(error), key="templates") from error
    return templates


def fill(question: str, **values: str) -> str:
    """Return a question with its places filled, once: braces in the values stay.

    >>> fill("Where is {phrase}?", phrase="a {caption}")
    'Where is a {caption}?'
    """
    return _PLACE.sub(lambda place: values[place[0][1:-1]], question)


class ChatConfig(FormatConfig):
    """Settings of `chat`."""

    style: StyleName = Field("ms-swift", description="The model or trainer that reads the file.")
    tasks: tuple[Task, ...] = Field(
        (),
        description="What is asked: `locate`, where a phrase is; `ground`, a caption with its boxes; `describe`, what "
        "a box shows. None of them stands for all that the style has questions for.",
    )
    negatives: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the phrases that are absent from an image that `locate` asks for.",
    )
    seed: int = Field(0, ge=0, description="Another seed chooses other wordings and other absent phrases.")
    templates: str = Field(
        "", description='YAML file of questions; by default "" those of phrasebox for the style.'
    )
    min_pixels: int = Field(
        56 * 56, ge=1, description="Least pixels of an image in the trainer, for the boxes of qwen2.5-vl."
    )
    max_pixels: int = Field(
        14 * 14 * 4 * 1280,
        ge=1,
        description="Most pixels of an image in the trainer, for the boxes of qwen2.5-vl.",
    )
    padding: Literal["square", "none"] = Field(
        "square", description="Whether the trainer pads an image to a square, for the boxes of llava."
    )
    images: WithImages = False

    @model_validator(mode="after")
    def _check_pixels(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self

    @property
    def entry(self) -> Style:
        """The entry of the style in `STYLES`."""
        return STYLES[self.style]

    @cached_property
    def wordings(self) -> Templates:
        """The questions. Raise ConfigError if the file cannot be used."""
        return load_templates(self.templates, self.entry.templates)

    @property
    def asked_tasks(self) -> tuple[Task, ...]:
        """The tasks that are asked. Raise ConfigError if there are no questions for one of them."""
        with_questions = tuple(task for task in TASKS if self.wordings.of(task))
        if missing := [task for task in self.tasks if task not in with_questions]:
            raise ConfigError(f"{self.style} has no questions for {', '.join(missing)}", key="tasks")
        return self.tasks or with_questions

    @property
    def suffix(self) -> str:
        """What follows the split in the name of a file."""
        pixels = f"-{self.min_pixels}-{self.max_pixels}px" if self.entry.needs_pixels else ""
        return f"{pixels}.json" if self.entry.is_list else f"{pixels}.jsonl"
