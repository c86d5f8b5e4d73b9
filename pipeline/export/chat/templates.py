"""Wordings of questions: a YAML file for each kind of style in `questions/`, which a user's file replaces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, cast

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from pipeline.config import load_config
from stages.contract.errors import ConfigError

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
