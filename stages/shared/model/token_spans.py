"""Which characters of a caption the tokens of CLIP's tokenizer stand for.

The tokenizer cleans a caption (repairs broken characters, resolves HTML entities, joins white space, lower case), cuts
it into words, and each word into pieces. The pieces of a word are its bytes in order, so their places in the cleaned
text are known; the cleaned text is then aligned with the caption.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final

_WORD_END: Final = "</w>"
"""The mark that the vocabulary puts behind the last piece of a word."""

_SLACK_CHARS: Final = 256
_MOST_TIMES_LONGER: Final = 4
"""How much longer a caption may be than its cleaned text for all of it to be aligned. Alignment takes quadratic time,
and a caption of the web may begin with any amount of white space."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a caption.

    Attributes:
        start: its first character in the caption.
        end: the character behind its last; equal to `start` where no character of the caption is known.
        word: number of the word that it is a part of, from 0.
    """

    start: int
    end: int
    word: int


def pieces_of(tokenizer: Any, caption: str, most: int) -> list[Piece]:
    """The tokens of a caption between the first and the last one, in order.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`.
        caption: any text.
        most: tokens that the model sees of a caption; later ones are left out.
    """
    cleaned: str = tokenizer.clean_fn(caption)
    spans: list[tuple[int, int, int]] = []
    for number, match in enumerate(tokenizer.pat.finditer(cleaned)):
        if len(spans) >= most:
            break
        # Of each byte of the word, the character that it belongs to.
        owners = [place for place, letter in enumerate(match.group(), match.start()) for _ in letter.encode()]
        symbols = "".join(tokenizer.byte_encoder[byte] for byte in match.group().encode())
        sizes = [len(piece.removesuffix(_WORD_END)) for piece in tokenizer.bpe(symbols).split(" ")]
        ends = itertools.accumulate(sizes)
        spans += [(owners[end - size], owners[end - 1] + 1, number) for size, end in zip(sizes, ends, strict=True)]
    spans = spans[:most]
    if not spans:
        return []
    places = _aligned(caption, cleaned[: spans[-1][1]])
    return [Piece(*_joined(places[start:end]), word) for start, end, word in spans]


def _joined(places: list[tuple[int, int]]) -> tuple[int, int]:
    return min(start for start, _ in places), max(end for _, end in places)


def _aligned(caption: str, cleaned: str) -> list[tuple[int, int]]:
    """The characters of a caption, [start, end), that each character of its cleaned text came from."""
    low = "".join(small if len(small := letter.lower()) == 1 else letter for letter in caption)
    if low.startswith(cleaned):
        return [(place, place + 1) for place in range(len(cleaned))]
    low = low[: _MOST_TIMES_LONGER * len(cleaned) + _SLACK_CHARS]
    places = [(len(low), len(low))] * len(cleaned)
    for kind, a, b, c, d in SequenceMatcher(None, low, cleaned, autojunk=False).get_opcodes():
        for place in range(c, d):
            places[place] = (a + place - c, a + place - c + 1) if kind == "equal" else (a, b)
    return places
