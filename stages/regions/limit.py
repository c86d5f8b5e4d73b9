"""The limit of phrases per image: those that are likely in the image, and few of them for the same thing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from stages.contract.records import HeatMap, Record
from stages.regions.groups import link_phrases


def limit_phrases(record: Record) -> Record:
    """Return a record with heat maps whose phrases have at most `phrase_limit` different texts.

    The likeliest text of every thing comes first, then the second likeliest, and so on. How
    likely a text is in the image says its presence, or its cosine where presence is not known.
    """
    texts = dict.fromkeys(phrase.text for phrase in record.phrases)
    if not record.phrase_limit or len(texts) <= record.phrase_limit:
        return record
    numbers = link_phrases(record.sample.captions, record.phrases)
    thing_of = {phrase.text: number for phrase, number in zip(record.phrases, numbers, strict=True)}
    likely = {heat_map.text: _likelihood(heat_map) for heat_map in record.heat_maps}
    repeats: Counter[int] = Counter()
    rank: dict[str, tuple[int, float]] = {}
    for text in sorted(texts, key=lambda text: -likely[text]):
        rank[text] = (repeats[thing_of[text]], -likely[text])
        repeats[thing_of[text]] += 1
    chosen = set(sorted(texts, key=rank.__getitem__)[: record.phrase_limit])
    phrases = tuple(phrase for phrase in record.phrases if phrase.text in chosen)
    return replace(
        record,
        phrases=phrases,
        dropped_phrases=record.dropped_phrases + len(record.phrases) - len(phrases),
        heat_maps=tuple(heat_map for heat_map in record.heat_maps if heat_map.text in chosen),
    )


def _likelihood(heat_map: HeatMap) -> float:
    return heat_map.similarity if heat_map.presence is None else heat_map.presence
