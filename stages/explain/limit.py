"""The limit of phrases per image: those that are likely in the image, and few of them for the same object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.contract.records import Record

if TYPE_CHECKING:
    from stages.explain.base import Match


def limit_phrases(record: Record, matches: Mapping[str, Match]) -> Record:
    """Return a record whose phrases have at most `phrase_limit` different texts, by the matches of its texts.

    The likeliest text of every object comes first, then the second likeliest, and so on.
    """
    if not record.object_numbers:
        return record
    object_of = {
        phrase.text: number for phrase, number in zip(record.phrases, record.object_numbers, strict=True)
    }
    likeliest_first = sorted(object_of, key=lambda text: -matches[text].likelihood)
    repeats: Counter[int] = Counter()
    rank: dict[str, int] = {}
    for text in likeliest_first:
        rank[text] = repeats[object_of[text]]
        repeats[object_of[text]] += 1
    chosen = set(sorted(likeliest_first, key=rank.__getitem__)[: record.phrase_limit])
    phrases = tuple(phrase for phrase in record.phrases if phrase.text in chosen)
    dropped = record.dropped_phrases + len(record.phrases) - len(phrases)
    return replace(record, phrases=phrases, dropped_phrases=dropped, object_numbers=())
