"""Lists of words that people edit: a [section], then a line for each entry; # begins a comment."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator


def entries_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield the section and the text of each entry.

    >>> [*entries_of("[drop]\\nair  # not an object")]
    [('drop', 'air')]
    """
    section = ""
    for line in text.splitlines():
        entry = unicodedata.normalize("NFC", line.partition("#")[0]).strip()
        if entry.startswith("[") and entry.endswith("]"):
            section = entry[1:-1]
        elif entry:
            yield section, entry


def sections_of(text: str) -> dict[str, frozenset[str]]:
    """Return section -> its entries, case folded.

    >>> sections_of("[drop]\\nAir")
    {'drop': frozenset({'air'})}
    """
    sections: defaultdict[str, set[str]] = defaultdict(set)
    for section, entry in entries_of(text):
        sections[section].add(entry.casefold())
    return {name: frozenset(entries) for name, entries in sections.items()}
