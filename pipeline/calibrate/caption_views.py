"""Images with some of their captions alone, from the same heat maps.

Evidence of a region tells how captions name its object: the share of them that do, the number of
phrases and texts. All of it depends on the number of captions. Where all captions of an image name
an object, it is most likely the main object. With one caption all of its objects are such. So a fit to
images with five captions believes every phrase of an image with one. A fit to both does not.

A heat map is of a phrase, so an image with fewer captions needs no second pass of the model. Only
with `explain.contrast` it still lacks the heat that phrases of the other captions took from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from phrasebox.pipeline.dataset.rows import Row
from phrasebox.stages.contract.records import Record
from phrasebox.stages.scores.captioning import Captioning

FEWER: Final = (1,)
"""Numbers of captions, beside all of an image's, that a fit sees. On 1,000 photographs with one, two,
three and five captions, scores by a fit to one and five are off by 0.034, 0.032, 0.022 and 0.017.
Those by a fit to five alone are off by 0.241, 0.149, 0.103 and 0.024."""


class CaptionView(NamedTuple):
    """A row and its record with `captions` of its captions; with all of them if that is None."""

    row: Row
    record: Record
    captions: int | None = None


def views_of(row: Row, record: Record) -> Iterator[CaptionView]:
    """Yield a row with all captions, and with each number of `FEWER` if it has more."""
    yield CaptionView(row, record)
    captions = len(record.sample.captions)
    for number in FEWER:
        if number < captions:
            # The first caption of some datasets is of another kind than the next ones.
            part = with_captions(record, {(row["id"] + place) % captions for place in range(number)})
            yield CaptionView({**row, "captions": [*part.sample.captions]}, part, number)


def captionings_of(views: Iterable[CaptionView]) -> list[Captioning]:
    """Return how the images are captioned, with all captions and with each number of fewer ones."""
    records: dict[int | None, list[Record]] = {}
    for view in views:
        if view.record.phrases:
            records.setdefault(view.captions, []).append(view.record)
    return [Captioning.of(group) for group in records.values()]


def with_captions(record: Record, numbers: Collection[int]) -> Record:
    """Return a record with some of its captions, their phrases and the maps of these, as before regions were cut."""
    chosen = sorted(numbers)
    places = {number: place for place, number in enumerate(chosen)}
    phrases = tuple(
        replace(phrase, caption_index=places[phrase.caption_index])
        for phrase in record.phrases
        if phrase.caption_index in places
    )
    texts = {phrase.text for phrase in phrases}
    captions = tuple(record.sample.captions[number] for number in chosen)
    return replace(
        record,
        sample=replace(record.sample, captions=captions),
        caption_languages=tuple(
            record.caption_languages[number] for number in chosen if record.caption_languages
        ),
        phrases=phrases,
        heat_maps=tuple(heat_map for heat_map in record.heat_maps if heat_map.text in texts),
        caption_scores=tuple(record.caption_scores[number] for number in chosen if record.caption_scores),
        caption_presences=tuple(
            record.caption_presences[number] for number in chosen if record.caption_presences
        ),
        regions=(),
        absent=(),
    )
