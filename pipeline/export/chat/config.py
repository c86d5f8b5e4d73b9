"""Settings of `chat`."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.export.base import FormatConfig, WithImages
from pipeline.export.chat.styles import STYLES, Style, StyleName
from pipeline.export.chat.templates import TASKS, Task, Templates, load_templates
from stages.contract.errors import ConfigError


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
        return f"{pixels}.{self.entry.layout.extension}"
