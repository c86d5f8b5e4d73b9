"""Phrases from before a run: a file with one JSON object a line, as `phrasebox phrases` writes it.

    {"caption": "Two dogs.", "phrases": [{"text": "two dogs", "start": 0, "end": 8, "head": "dog", "plural": true}]}

`start` and `end` are character offsets into the caption, half open. `head` is the last word of
the text if it is left out, and `plural` false. `language` is the language of a caption if it is
not that of the run, `phrases.language`. Other keys are not read. Of several lines about one caption the last one
counts, so corrections can be appended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ValidationError, ValidationInfo, model_validator

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Phrase, stable_key
from phrasebox.stages.contract.values import Integers
from phrasebox.stages.files.json_files import first_problem
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE


class Line(BaseModel):
    """A line of the file; see the module."""

    caption: str
    phrases: tuple[Phrase, ...]
    language: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete_phrases(cls, values: Any, info: ValidationInfo) -> Any:
        phrases = values.get("phrases") if isinstance(values, dict) else None
        if not isinstance(phrases, list):
            return values
        if not all(isinstance(phrase, dict) for phrase in phrases):
            raise ValueError("phrases: expected a list of objects")
        language = info.context or values.get("language") or ENGLISH_CODE
        if not isinstance(language, str):
            return values
        texts = [normalise(str(phrase.get("text", "")), language) for phrase in phrases]
        completed = [
            {
                **phrase,
                "text": text,
                "head": phrase.get("head") or text.rpartition(" ")[2],
                "caption_index": 0,
                "language": language,
            }
            for phrase, text in zip(phrases, texts, strict=True)
        ]
        return {**values, "phrases": completed}

    @model_validator(mode="after")
    def _lies_in_its_caption(self) -> Self:
        for phrase in self.phrases:
            if not 0 <= phrase.start < phrase.end <= len(self.caption):
                raise ValueError(
                    f"expected 0 <= start < end <= {len(self.caption)}, the caption's length: {phrase}"
                )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecomputedPhrases:
    """The phrases of a file, by caption.

    Memory holds the offset of each line; the line is read with its caption.

    Attributes:
        keys: The keys of the captions in order, see `stable_key`.
        starts: The first byte of each caption's line.
        language: The language of all captions; None: lines name it, and otherwise it is English.
    """

    path: Path
    keys: Integers
    starts: Integers
    language: str | None = ENGLISH_CODE

    @classmethod
    def read(cls, path: Path, language: str | None = ENGLISH_CODE) -> Self:
        """Check a file, of captions in one language or, with None, in those that its lines name.

        Raise InputError, which names the line, if it cannot be read or a line is wrong.
        """
        offsets: dict[int, int] = {}
        start = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        offsets[stable_key(_line(f"{path}:{number}", line, language).caption)] = start
                    start += len(line)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", key="input.phrases") from error
        keys, starts = (np.array([*column], np.int64) for column in (offsets, offsets.values()))
        order = np.argsort(keys)
        return cls(path=path.absolute(), keys=keys[order], starts=starts[order], language=language)

    def of(self, caption: str) -> Line | None:
        """Return the line of a caption, or None.

        Raise InputError if the file has changed or cannot be read.
        """
        key = stable_key(caption)
        index = int(self.keys.searchsorted(key))
        if index == len(self.keys) or self.keys[index] != key:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(int(self.starts[index]))
                line = _line(str(self.path), file.readline(), self.language)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}", key="input.phrases") from error
        if line.caption != caption:
            raise InputError(f"{self.path} has changed since the run began", key="input.phrases")
        return line


def _line(place: str, line: bytes, language: str | None) -> Line:
    try:
        return Line.model_validate_json(line, context=language)
    except ValidationError as error:
        raise InputError(f"{place}: {first_problem(error)}", key="input.phrases") from error
