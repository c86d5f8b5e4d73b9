"""Captions with phrases that people marked up, and the F1 of exact spans."""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from benchmarks.photos.phrases import Span, without_determiner

Marked = tuple[str, dict[Span, str]]
"""A caption, and the number of the object of each phrase."""


def read_marked(name: str, mark: str, language: str = "en") -> Iterator[Marked]:
    """Read a file of captions beside this one; `mark` is a pattern with the groups number and words."""
    for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        text = ""
        objects = {}
        last = 0
        for match in re.finditer(mark, line):
            text += line[last : match.start()]
            start = len(text)
            text += match["words"]
            objects[without_determiner(text, (start, len(text)), language)] = match["number"]
            last = match.end()
        yield text + line[last:], objects


def f1_of(marked: Sequence[AbstractSet[Any]], predicted: Sequence[AbstractSet[Any]]) -> float:
    right = sum(len(gold & spans) for gold, spans in zip(marked, predicted, strict=True))
    return 2 * right / sum(len(gold) + len(spans) for gold, spans in zip(marked, predicted, strict=True))
