"""What phrases can be about, as columns of a truth table: which captions and phrases are true of which
scenes.

Columns: the colour-kind pairs, the kinds, the colours; the same again for "at least two of them"; then the
number of things. A caption is true of a scene as far as this table knows if the scene has everything that the
caption claims and nothing that it denies; such a pair must not be trained apart even if the caption was
written for another scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from stages.model.scenes.captions import Caption
from stages.model.scenes.scene import SceneObject
from stages.model.scenes.vocabulary import COLOUR_NAMES, HELDOUT_PAIRS, KINDS, NUMBER_WORDS, PLURALS

_KIND_INDEX: Final = {kind: k for k, kind in enumerate(KINDS)}
_COLOUR_INDEX: Final = {colour: k for k, colour in enumerate(COLOUR_NAMES)}
PAIRS: Final = len(KINDS) * len(COLOUR_NAMES)
"""Number of colour-kind pairs, the first columns; pair (k, c) is column k * colours + c."""

CONCEPTS: Final = PAIRS + len(KINDS) + len(COLOUR_NAMES)
"""Columns of the first block; the second, "at least two", is as wide."""

COLUMNS: Final = 2 * CONCEPTS + 7
"""Width of the truth table; the last seven are "exactly n things", n = 0-6."""

_NUMBER_VALUES: Final = {word: number for number, word in NUMBER_WORDS.items()}


def concept_column(kind: str | None, colour: str | None) -> int:
    """Column of a kind and colour, of a kind (colour None) or of a colour (kind None).

    Raises:
        ValueError: both are None.
        KeyError: an unknown name.
    """
    if kind is not None and colour is not None:
        return _KIND_INDEX[kind] * len(COLOUR_NAMES) + _COLOUR_INDEX[colour]
    if kind is not None:
        return PAIRS + _KIND_INDEX[kind]
    if colour is not None:
        return PAIRS + len(KINDS) + _COLOUR_INDEX[colour]
    raise ValueError("expected a kind or a colour, got neither")


def present(objects: Sequence[SceneObject]) -> npt.NDArray[np.float32]:
    """Row of the truth table for a scene: float32 (COLUMNS,), 0 or 1."""
    counts: Counter[int] = Counter()
    for thing in objects:
        counts[concept_column(thing.kind, thing.colour)] += 1
        counts[concept_column(thing.kind, None)] += 1
        counts[concept_column(None, thing.colour)] += 1
    row = np.zeros(COLUMNS, np.float32)
    for column, count in counts.items():
        row[column] = 1.0
        if count > 1:
            row[CONCEPTS + column] = 1.0
    row[2 * CONCEPTS + min(len(objects), 6)] = 1.0
    return row


def claims(caption: Caption) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What a caption says is there, and what it says is not: two float32 (COLUMNS,), 0 or 1."""
    claimed, denied = np.zeros(COLUMNS, np.float32), np.zeros(COLUMNS, np.float32)
    for mention in caption.mentions:
        column = concept_column(mention.kind, mention.colour)
        if mention.absent:
            denied[column] = 1.0
            continue
        claimed[column] = 1.0
        if len(mention.objects) > 1:
            claimed[CONCEPTS + column] = 1.0
    if not caption.mentions:
        number = next(_NUMBER_VALUES[word] for word in caption.text.lower().split() if word in _NUMBER_VALUES)
        claimed[2 * CONCEPTS + number] = 1.0
    return claimed, denied


def bank_columns() -> list[int]:
    """Columns of the first block in the phrase bank: all but the pairs that training never shows."""
    hidden = {concept_column(kind, colour) for kind, colour in HELDOUT_PAIRS}
    return [column for column in range(CONCEPTS) if column not in hidden]


def bank_wordings(column: int) -> tuple[str, ...]:
    """Six ways to ask for a column of the first block, the bare phrase first and most often."""
    if column < PAIRS:
        kind, colour = KINDS[column // len(COLOUR_NAMES)], COLOUR_NAMES[column % len(COLOUR_NAMES)]
        one, many = f"{colour} {kind}", f"{colour} {PLURALS[kind]}"
    elif column < PAIRS + len(KINDS):
        kind = KINDS[column - PAIRS]
        one, many = kind, PLURALS[kind]
    else:
        colour = COLOUR_NAMES[column - PAIRS - len(KINDS)]
        one, many = f"{colour} thing", f"{colour} things"
        return (one, f"something {colour}", colour, f"the {one}", many, f"two {many}")
    article = "an" if one[0] in "aeiou" else "a"
    return (one, one, f"{article} {one}", f"the {one}", many, f"two {many}")
