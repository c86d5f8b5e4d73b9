"""Phrases that are known before a run: a file with one JSON object a line, as `phrasebox phrases` writes it.

    {"caption": "Two dogs.", "phrases": [{"text": "two dogs", "start": 0, "end": 8, "head": "dog", "plural": true}]}

`start` and `end` are character offsets into the caption, half open. `head` is the last word of the text if it is left
out, and `plural` false. `language` names a language in which a caption is written and that is not the parser's. Other
keys are not read. Of several lines about one caption the last one counts, so corrections can be appended.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stages.contract.errors import InputError
from stages.contract.records import Phrase, stable_key
from stages.phrases.filters import normalise

_MOST_BYTES: Final = 64 * 1024 * 1024  # of a line


class KnownPhrase(BaseModel):
    """A phrase of a line; see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    start: int
    end: int
    head: str = ""
    plural: bool = False


class Line(BaseModel):
    """A line of the file; see the module."""

    model_config = ConfigDict(frozen=True)

    caption: str
    phrases: tuple[KnownPhrase, ...]
    language: str | None = None

    @model_validator(mode="after")
    def _lies_in_its_caption(self) -> Self:
        for phrase in self.phrases:
            if not 0 <= phrase.start < phrase.end <= len(self.caption):
                raise ValueError(f"expected 0 <= start < end <= {len(self.caption)}, the caption's length: {phrase}")
            if not normalise(phrase.text):
                raise ValueError(f"expected a text with words: {phrase}")
        return self

    def at(self, index: int) -> list[Phrase]:
        """Return the phrases of the caption, which is the image's caption with this index."""
        found = []
        for each in self.phrases:
            text = normalise(each.text)
            head = each.head or text.split()[-1]
            found.append(
                Phrase(text=text, caption_index=index, start=each.start, end=each.end, head=head, plural=each.plural)
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPhrases:
    """The places of the lines of a file. Small beside the file, and picklable; workers read the lines themselves."""

    path: Path
    keys: NDArray[np.int64]  # of the captions, see `stable_key`; in order
    starts: NDArray[np.int64]  # the first byte of each caption's line

    @classmethod
    def of(cls, path: Path) -> Self:
        """Check a file. Raise InputError, which names the line, if it cannot be read or a line is wrong."""
        found: dict[int, int] = {}
        start = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(iter(lambda: file.readline(_MOST_BYTES), b""), start=1):
                    if line.strip():
                        found[stable_key(_line(path, str(number), line).caption)] = start
                    start += len(line)
        except OSError as error:
            raise InputError(f"input.phrases: cannot read {path}: {error.strerror}") from error
        keys, starts = (np.fromiter(column, np.int64, len(found)) for column in (found.keys(), found.values()))
        order = np.argsort(keys)
        return cls(path=path.absolute(), keys=keys[order], starts=starts[order])

    def opened(self) -> Lines:
        """Return the lines. Raise InputError if the file is gone."""
        return Lines(self)


class Lines:
    """The lines of an open file by caption."""

    def __init__(self, known: KnownPhrases) -> None:
        self._known = known
        try:
            with known.path.open("rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(known.keys) else None
        except (OSError, ValueError) as error:
            raise InputError(f"input.phrases: cannot read {known.path}: {error}") from error

    def of(self, caption: str) -> Line | None:
        """Return the line of a caption; None if there is none. Raise InputError if the file has changed."""
        key = stable_key(caption)
        index = int(self._known.keys.searchsorted(key))
        if self._content is None or index == len(self._known.keys) or self._known.keys[index] != key:
            return None
        self._content.seek(int(self._known.starts[index]))
        line = _line(self._known.path, "a caption", self._content.readline())
        if line.caption != caption:
            raise InputError(f"input.phrases: {self._known.path} has changed since the run began")
        return line


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 of a file. Raise InputError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"input.phrases: cannot read {path}: {error.strerror}") from error


def _line(path: Path, place: str, line: bytes) -> Line:
    try:
        return Line.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        raise InputError(f"input.phrases: {path}:{place}: {key}{': ' if key else ''}{problem['msg']}") from error
