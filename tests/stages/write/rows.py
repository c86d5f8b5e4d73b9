"""Finished records and datasets without a model, for the tests of what is written."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import HeatMap, ImageRef, Phrase, Record, Sample
from phrasebox.stages.contract.schema import ColumnOption, records_to_rows
from phrasebox.stages.write import ShardWriter
from tests.build.records import HEIGHT, WIDTH, encoded, region

CAPTION = "The  Red car beside two dogs"


def annotated(number: int, regions: int = 2) -> Record:
    """A record with the phrases "red car" and "dogs" and up to two regions."""
    phrases = (
        Phrase(text="red car", caption_index=0, start=0, end=12, head="car"),
        Phrase(text="two dogs", caption_index=0, start=20, end=28, head="dog", plural=True),
    )
    scores = {"score": 0.5, "similarity": 0.25}
    both = (region(0, (number % 9, 3, 10, 12), **scores), region(1, (20, number % 7, 8, 5), **scores))
    maps = tuple(
        HeatMap(text=phrase.text, values=np.eye(2, dtype=np.float32), similarity=0.25) for phrase in phrases
    )
    image = ImageRef(file_name=f"{number}.jpg", content=encoded())
    return Record(
        sample=Sample(sample_id=f"s{number}", source="test", captions=(CAPTION,), image=image),
        width_px=WIDTH,
        height_px=HEIGHT,
        phrases=phrases,
        heat_maps=maps,
        regions=both[:regions],
    )


def without_phrases(number: int) -> Record:
    """A record whose caption names nothing."""
    image = ImageRef(content=encoded())
    sample = Sample(sample_id=f"s{number}", source="test", captions=("beautiful!",), image=image)
    return Record(sample=sample, width_px=WIDTH, height_px=HEIGHT)


def failed(number: int, reason: str = "missing_image") -> Record:
    """A record with an error."""
    sample = Sample(
        sample_id=f"s{number}", source="test", captions=(CAPTION,), image=ImageRef(file_name="gone.jpg")
    )
    return Record(sample=sample, error=RowError(reason=reason, detail="test: no file gone.jpg"))


def mixed() -> list[Record]:
    """Nine records: five with regions, one without, one without phrases, two failed."""
    images = [annotated(0), annotated(1), annotated(2, 1), annotated(3), annotated(4)]
    return [
        *images[:3],
        annotated(5, 0),
        without_phrases(6),
        failed(7),
        *images[3:],
        failed(8, "bad_image"),
    ]


def write_shards(
    records: Sequence[Record],
    data: Path,
    options: Collection[ColumnOption] = (),
    *,
    rows_per_file: int = 4,
    **parts: Any,
) -> Any:
    """The records as shards; returns their table. parts: Further arguments of `ShardWriter`."""
    data.mkdir(parents=True, exist_ok=True)
    table = records_to_rows(records, options)
    writer = ShardWriter(data, rows_per_file, **parts)
    writer.write(table)
    writer.close()
    return table
