"""Lists of concepts that regions may be called by, and what of a text they can name at all.

A pool is a text file with one concept a line, and behind tabs, if it is known, how often captions say it and the lemma
of its head noun:

    red car	 17	car
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.contract.errors import InputError
from stages.contract.records import Phrase
from stages.phrases.filters import normalise


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A line of a pool.

    Attributes:
        text: Normalised, as the text of a phrase.
        head: Lemma of its head noun; its last word where the file does not say.
        count: How often captions say it; 0 where the file does not say.
    """

    text: str
    head: str
    count: int = 0

    def as_phrase(self) -> Phrase:
        """The phrase that no caption says: its span is empty, see `Phrase`."""
        return Phrase(text=self.text, caption_index=0, start=0, end=0, head=self.head)


def read_pool(path: Path) -> list[Concept]:
    """The concepts of a file, each once, in its order; empty lines do not count.

    Raises:
        InputError: The file cannot be read, a line is damaged, or there is no concept.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"source.pool: {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"source.pool: {path} is not UTF-8 text: {error}") from error
    found: dict[str, Concept] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        words, *rest = line.split("\t")
        text = normalise(words)
        if not text or len(rest) > 2 or (rest and not rest[0].strip().isdecimal()):
            raise InputError(
                f"source.pool: {path}:{number}: expected a concept, and behind tabs its count and its head noun, "
                f"got {line[:80]!r}"
            )
        count = int(rest[0]) if rest else 0
        head = rest[1].strip() if len(rest) == 2 else ""
        found.setdefault(text, Concept(text=text, head=head or text.split()[-1], count=count))
    if not found:
        raise InputError(f"source.pool: {path} holds no concept")
    return list(found.values())


def pool_of(phrases: Iterable[Phrase], *, at_least: int = 1) -> list[Concept]:
    """The concepts of phrases, the most frequent first, equals by their text.

    Args:
        phrases: Of any number of captions.
        at_least: Rarer ones are left out.
    """
    counts: Counter[str] = Counter()
    heads: dict[str, Counter[str]] = {}
    for phrase in phrases:
        counts[phrase.text] += 1
        heads.setdefault(phrase.text, Counter())[phrase.head] += 1
    kept = sorted((-count, text) for text, count in counts.items() if count >= at_least)
    return [
        Concept(text=text, head=min(heads[text], key=lambda head: (-heads[text][head], head)), count=-count)
        for count, text in kept
    ]


def pool_lines(concepts: Iterable[Concept]) -> str:
    """The text of a pool's file."""
    return "".join(f"{concept.text}\t{concept.count}\t{concept.head}\n" for concept in concepts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What of some captions a pool can name.

    Attributes:
        mentions: Phrases of the captions.
        mentions_named: Those whose text is in the pool.
        texts: Different phrases.
        texts_named: Those in the pool.
    """

    mentions: int
    mentions_named: int
    texts: int
    texts_named: int


def coverage(concepts: Iterable[Concept], phrases: Iterable[Phrase]) -> Coverage:
    """What of the phrases of captions the concepts can name, word by word."""
    known = {concept.text for concept in concepts}
    counts = Counter(phrase.text for phrase in phrases)
    return Coverage(
        mentions=counts.total(),
        mentions_named=sum(count for text, count in counts.items() if text in known),
        texts=len(counts),
        texts_named=len(counts.keys() & known),
    )
