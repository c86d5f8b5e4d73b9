"""The stage that lays the boxes of people, or of a detector, over the regions of heat maps (`source.add_missing`)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from phrasebox.stages.contract.records import GIVEN, Record, Region
from phrasebox.stages.contract.stage import Stage
from phrasebox.stages.phrases.groups import link_phrases
from phrasebox.stages.sources.box_matching import match_boxes
from phrasebox.stages.sources.boxes import NO_IMAGE_OF_THAT_NAME, BoxIndex, BoxInImage, BoxSourceConfig
from phrasebox.stages.sources.source import region_of_mask


class BoxOverlay(Stage):
    """Replaces the regions of phrases that a box answers by that box, exactly as it was given; others stay as they are.

    Such a region has the score of the box, which is 1 for people's, and a presence of 1 where
    presences are known. Its phrase is not absent. The other phrases of its object get the
    box, too. Phrases with the same boxes are one object, and those with different boxes are
    several, whatever their words say. An image that the ground truth lacks keeps its regions, and
    its row says so in `warnings`.

    Args:
        config: Where the boxes are.
        links_phrases: Whether phrases of one object are linked.
    """

    name = "box_overlay"

    def __init__(self, config: BoxSourceConfig, *, links_phrases: bool) -> None:
        self.config = config
        self.links_phrases = links_phrases

    def check(self) -> None:
        """Raise InputError or ConfigError if the boxes cannot be read."""
        BoxIndex(self.config)

    def setup(self) -> None:
        """Read the boxes. Raise InputError or ConfigError."""
        self._index = BoxIndex(self.config)

    def teardown(self) -> None:
        """Forget the boxes."""
        del self._index

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`. Raise InputError for an image of another size than the ground truth says."""
        return [record if record.error is not None else self._overlay(record) for record in batch]

    def _overlay(self, record: Record) -> Record:
        image = self._index.image_of(record)
        if image is None:
            return replace(record, notes=(*record.notes, NO_IMAGE_OF_THAT_NAME))
        numbers = self._numbers_of(record)
        boxes = match_boxes(image, record, numbers)
        if not boxes:
            return record
        groups = number_objects_by_boxes(numbers, boxes) if self.links_phrases else None
        regions: list[Region] = []
        for index in range(len(record.phrases)):
            group = None if groups is None else groups[index]
            if index in boxes:
                regions += _regions_of_boxes(record, index, boxes[index], group)
            else:
                cut = (region for region in record.regions if region.phrase_index == index)
                regions += (replace(region, group=group) for region in cut)
        absent = tuple(entry for entry in record.absent if entry.phrase_index not in boxes)
        return replace(record, regions=tuple(regions), absent=absent)

    def _numbers_of(self, record: Record) -> Sequence[int]:
        """Return a number for each phrase, equal for those of one object, or without links for those with one text."""
        if self.links_phrases:
            return link_phrases(record.sample.captions, record.phrases)
        texts = list(dict.fromkeys(phrase.text for phrase in record.phrases))
        return [texts.index(phrase.text) for phrase in record.phrases]


def _regions_of_boxes(
    record: Record, index: int, boxes: Sequence[BoxInImage], group: int | None
) -> list[Region]:
    """Return the regions of a phrase that boxes answer, best first."""
    similarities = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
    has_presence = bool(record.absent) or any(region.presence is not None for region in record.regions)
    similarity = similarities.get(record.phrases[index].text, 0.0)
    return [
        replace(
            region_of_mask(index, box.mask, box.score, similarity),
            box_xywh_px=box.box_xywh_px,
            presence=1.0 if has_presence else None,
            group=group,
            box_of=GIVEN,
        )
        for box in sorted(boxes, key=lambda box: -box.score)
    ]


def number_objects_by_boxes(numbers: Sequence[int], boxes: Mapping[int, Sequence[BoxInImage]]) -> list[int]:
    """Return the number of the object of each phrase: by its boxes where it has some, else by its number.

    Args:
        numbers: The number of each phrase, equal for those that words make one object.
        boxes: Index of a phrase -> its boxes.
    """
    keys: list[Hashable] = [
        frozenset(box.box_xywh_px for box in boxes[index]) if index in boxes else number
        for index, number in enumerate(numbers)
    ]
    order: dict[Hashable, int] = {}
    return [order.setdefault(key, len(order)) for key in keys]
