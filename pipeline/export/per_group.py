"""Regions once for each thing, with all phrases that name it: one box, several phrases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

Per = Literal["phrase", "group"]
"""Whether a region stands once for each phrase of each caption, or once for each thing."""

NAMED: Final = "named"
"""Key of a merged region: the phrases of its thing, in the order of the captions, as dicts of `NAMING`."""

NAMING: Final = ("phrase", "head", "caption_index", "span")


def joined_caption(captions: Sequence[str]) -> str:
    """All captions of an image as one text, each on a line of its own, in which a thing's phrases are counted."""
    return "\n".join(captions)


def joined_spans(captions: Sequence[str], region: Mapping[str, Any]) -> list[list[int]]:
    """Where the phrases of a region are in the joined caption: one span, or those of all phrases of its thing."""
    spans = []
    for named in region.get(NAMED, (region,)):
        before = sum(len(caption) + 1 for caption in captions[: named["caption_index"]])
        start, end = named["span"]
        spans.append([before + start, before + end])
    return spans


def merged(regions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The regions of each thing of one image, in the order of the things.

    A thing's regions are those of the phrase with the best score, the first of equals, and lead the others' where each
    phrase has its own (`regions.group=phrases`). It is called by the phrase with the best score of those with its most
    frequent head. In datasets without groups, each phrase of a caption is a thing.

    Args:
        regions: `annotations` of one row.

    Returns:
        Annotations with `phrase`, `head`, `caption_index` and `span` of that name, and the key `NAMED`.
    """
    things: dict[Any, dict[tuple[int, ...], list[Mapping[str, Any]]]] = {}
    for region in regions:
        place = (region["caption_index"], *region["span"])
        thing = place if region["group"] is None else region["group"]
        things.setdefault(thing, {}).setdefault(place, []).append(region)
    found: list[dict[str, Any]] = []
    for places in things.values():
        ranked = sorted(places.values(), key=lambda ours: -max(region["score"] for region in ours))
        heads = Counter(ours[0]["head"] for ours in places.values())
        name = min(ranked, key=lambda ours: -heads[ours[0]["head"]])[0]
        named = [{key: places[place][0][key] for key in NAMING} for place in sorted(places)]
        called = {key: name[key] for key in NAMING}
        found.extend({**region, **called, NAMED: named} for region in ranked[0])
    return found
