"""The objects of a sample that can be asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from phrasebox.pipeline.dataset.rows import Annotation
from phrasebox.pipeline.export.base import OBJECT_PHRASES, ChosenSample
from phrasebox.pipeline.export.chat.config import ChatConfig
from phrasebox.stages.contract.geometry import Box, xywh_to_xyxy

MOST_ASPECT: Final = 200  # Qwen's resizing rejects longer images
RESERVED: Final = "phrases with characters that the style reserves, such as < and >: left out"
OUTSIDE: Final = "objects with a box beyond the image: left out"
TOO_LONG: Final = f"images with a side over {MOST_ASPECT} times the other, which Qwen rejects: left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedObject:
    """An object of an image.

    Attributes:
        phrases: Its different phrases, in the order of the captions.
        mentions: Caption index and [start, end) of its phrases in the captions.
        regions: Its regions.
    """

    phrases: tuple[str, ...]
    mentions: tuple[tuple[int, int, int], ...]
    regions: tuple[Annotation, ...]


def is_too_long(sample: ChosenSample, config: ChatConfig) -> bool:
    """Return whether the trainer rejects the image for its shape."""
    sides = (sample.row["width"], sample.row["height"])
    return config.entry.needs_pixels and max(sides) > MOST_ASPECT * min(sides)


def usable_objects(sample: ChosenSample, config: ChatConfig, notes: Counter[str]) -> list[NamedObject]:
    """Return the objects with a phrase that the style can write, and with no box beyond the image.

    The notes count the others.
    """
    if is_too_long(sample, config):
        notes[TOO_LONG] += 1
        return []
    regions_by_phrases: dict[tuple[tuple[str, int, int, int], ...], list[Annotation]] = {}
    for region in sample.regions:
        entries = region.get(OBJECT_PHRASES, (region,))
        key = tuple((entry["phrase"], entry["caption_index"], *entry["span"]) for entry in entries)
        regions_by_phrases.setdefault(key, []).append(region)
    objects = []
    for key, regions in regions_by_phrases.items():
        phrases = dict.fromkeys(phrase for phrase, *_ in key)
        plain_phrases = tuple(filter(config.entry.can_write, phrases))
        notes[RESERVED] += len(phrases) - len(plain_phrases)
        is_inside = all(_is_inside(region, sample) for region in regions)
        notes[OUTSIDE] += not is_inside
        if plain_phrases and is_inside:
            mentions = tuple((index, start, end) for _, index, start, end in key if end)
            objects.append(NamedObject(phrases=plain_phrases, mentions=mentions, regions=tuple(regions)))
    return objects


def _is_inside(region: Annotation, sample: ChosenSample) -> bool:
    x0, y0, x1, y1 = xywh_to_xyxy(region["bbox"])
    return bool(0 <= x0 < x1 <= sample.row["width"] and 0 <= y0 < y1 <= sample.row["height"])


def in_order(regions: Iterable[Annotation]) -> list[Annotation]:
    """Return regions with different boxes from left to right, of two with one left edge the upper first."""
    regions_by_box = {edges_of(region): region for region in regions}
    return [regions_by_box[edges] for edges in sorted(regions_by_box)]


def edges_of(region: Annotation) -> Box:
    """Return the box of a region as x0, y0, x1, y1 px."""
    return xywh_to_xyxy(tuple(region["bbox"]))
