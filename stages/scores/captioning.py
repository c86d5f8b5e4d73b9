"""How images are captioned: by how many captions, and how often these name an object.

What a calibration makes of the evidence in captions holds for images that are captioned like
those of its fit: with one caption, every object is named by all captions of its image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple, Self

from pydantic import Field

from phrasebox.stages.contract.records import Record
from phrasebox.stages.phrases.groups import link_phrases

_Mean = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Captioning(NamedTuple):
    """Means over images or objects, above 0.

    Attributes:
        captions: Captions of an image.
        mentions: Phrases that name an object, in all captions of its image together.
    """

    captions: _Mean
    mentions: _Mean

    @classmethod
    def of(cls, records: Iterable[Record]) -> Self:
        """Return that of records with phrases; of others there is nothing to know. Raise ValueError without any."""
        counts = [
            (
                len(record.sample.captions),
                len(record.phrases),
                len({*link_phrases(record.sample.captions, record.phrases)}),
            )
            for record in records
            if record.phrases
        ]
        if not counts:
            raise ValueError("expected a record with phrases")
        captions, phrases, objects = map(sum, zip(*counts, strict=True))
        return cls(captions / len(counts), phrases / objects)

    @property
    def rounded(self) -> dict[str, float]:
        """Plain values, with two decimals."""
        return {"captions": round(self.captions, 2), "mentions": round(self.mentions, 2)}
