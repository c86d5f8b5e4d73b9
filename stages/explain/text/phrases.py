"""The importance of the phrases of records, and which of them are left out for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.contract.records import Record
from stages.explain.text.importance import LaunchedImportance, WordImportance
from stages.shared.model.device import to_device


@dataclass(frozen=True, slots=True)
class AskedImportance:
    """What the device was asked of the captions of some records.

    Attributes:
        asked: number of the record and of its caption, for each caption that has a phrase.
        launched: the importance of these captions.
    """

    asked: Sequence[tuple[int, int]]
    launched: LaunchedImportance

    def wait(self, records: Sequence[Record]) -> list[Record]:
        """The records that were asked about, with the importance of each of their phrases."""
        answers = dict(zip(self.asked, self.launched.wait(), strict=True))
        return [
            replace(
                record,
                phrases=tuple(
                    replace(phrase, importance=answers[number, phrase.caption_index].share_of(phrase.start, phrase.end))
                    for phrase in record.phrases
                ),
            )
            for number, record in enumerate(records)
        ]


def started_importance(records: Sequence[Record], embeddings: Tensor, importance: WordImportance) -> AskedImportance:
    """Let the device compute the importance of the phrases of records.

    Each caption that has a phrase is looked at once, as it stands, whatever the templates of the phrases are.

    Args:
        records: have captions and phrases.
        embeddings: (B, E) of their images in any scale; there may be more of them at the end.
        importance: computes it.
    """
    asked = [
        (number, index)
        for number, record in enumerate(records)
        for index in sorted({phrase.caption_index for phrase in record.phrases})
    ]
    captions = [records[number].sample.captions[index] for number, index in asked]
    images = to_device(torch.tensor([number for number, _ in asked]), embeddings.device)
    return AskedImportance(asked, importance.started(captions, embeddings[images]))


def without_unimportant(record: Record, least: float) -> Record:
    """The record without the phrases whose importance is below `least`, and without their heat maps.

    A phrase of unknown importance stays.
    """
    kept = tuple(phrase for phrase in record.phrases if phrase.importance is None or phrase.importance >= least)
    texts = {phrase.text for phrase in kept}
    return replace(
        record,
        phrases=kept,
        unimportant_phrases=record.unimportant_phrases + len(record.phrases) - len(kept),
        heat_maps=tuple(heat_map for heat_map in record.heat_maps if heat_map.text in texts),
    )
