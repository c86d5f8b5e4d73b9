"""The stage behind a source of regions: it numbers the things that phrases name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from stages.contract.records import Phrase, Record
from stages.contract.stage import Stage
from stages.regions.config import RegionsConfig
from stages.regions.groups import linked


class LinkStage(Stage):
    """Gives regions that another stage has made their `group`; of the settings only `group` counts.

    Phrases of the captions are linked as for heat maps (`groups.linked`). What no caption says is a thing of its own.
    Regions are not shared within a group: each phrase keeps those that the source gave it.
    """

    name: ClassVar[str] = "regions"

    def __init__(self, config: RegionsConfig) -> None:
        self.config = config

    def process(self, batch: Sequence[Record]) -> list[Record]:
        """See `Stage.process`."""
        return [self._linked(record) for record in batch]

    def _linked(self, record: Record) -> Record:
        if record.error is not None or not record.regions or self.config.group == "none":
            return record
        numbers = numbered(record.sample.captions, record.phrases)
        regions = tuple(replace(region, group=numbers[region.phrase_index]) for region in record.regions)
        return replace(record, regions=regions)


def numbered(captions: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """The number of the thing that each phrase names, those that no caption says behind the others."""
    said = [phrase for phrase in phrases if phrase.is_said]
    numbers = dict(zip(map(id, said), linked(captions, said), strict=True))
    unsaid = dict.fromkeys(phrase.text for phrase in phrases if not phrase.is_said)
    first = max(numbers.values(), default=-1) + 1
    beyond = {text: first + place for place, text in enumerate(unsaid)}
    return [numbers[id(phrase)] if phrase.is_said else beyond[phrase.text] for phrase in phrases]
