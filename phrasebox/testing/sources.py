"""The contract of sources of regions: one answer for each record, with regions inside their image."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.masks import rle_area_px, rle_box_xywh_px
from phrasebox.stages.contract.records import ImageRef, Phrase, Pixels, Record, Region, Sample
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.contract.tables import records_to_table, table_to_records
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.sources.source import RegionSource
from phrasebox.testing.requirement import require
from phrasebox.testing.settings import check_settings

CAPTIONS: Final = ("A red car and two dogs", "a red car on a road")
PHRASES: Final = (
    Phrase(text="red car", caption_index=0, start=2, end=9, head="car"),
    Phrase(text="two dogs", caption_index=0, start=14, end=22, head="dog", plural=True),
    Phrase(text="red car", caption_index=1, start=2, end=9, head="car"),
)


def check_source(source: type[RegionSource[Any]], settings: Json | None = None) -> None:
    """Check all that sources promise, on the CPU. Raise AssertionError with the promise that does not hold.

    `settings` are values of its settings other than the defaults. A source with `needs_model` gets the
    bundled model `demo`.
    """
    check_settings(source.config_type, settings)
    require(
        source.regions_come_from, "regions_come_from says where regions come from, for the dataset's card"
    )
    require(source.score_means, "score_means says what the score of a region means")
    model = ModelConfig(name="demo", device="cpu", precision="fp32")
    config = source.config_type.model_validate(settings or {})
    planned = source(config, model, describe(model) if source.needs_model else None)
    planned.check()
    working = pickle.loads(pickle.dumps(planned))  # noqa: S301  what was pickled in the same line
    working.setup()
    try:
        check_answers(working, draw_records())
    finally:
        working.teardown()


def check_answers(source: RegionSource[Any], records: Sequence[Record]) -> None:
    """Check what a source that was set up answers; some records have regions, and one has an error."""
    answers = source.process(records)
    is_in_order = [answer.sample for answer in answers] == [record.sample for record in records]
    require(is_in_order, "each record has one answer, in order")
    for record, answer in zip(records, answers, strict=True):
        require(record.error is None or answer == record, "a record with an error passes through untouched")
    require(all(answer.pixels is None for answer in answers), "records leave without their pixels")
    require(any(record.pixels is not None for record in records), "records that come in stay as they are")
    require(any(answer.regions for answer in answers), "some image with phrases has regions")
    require(source.process([]) == [], "no records have no answers")
    single = [answer for record in records[::-1] for answer in source.process([record])]
    require(answers == single[::-1], "no record depends on the other records of the batch")
    travelled = table_to_records(records_to_table(answers))
    rows = [records_to_rows(one).to_pylist() for one in (answers, travelled)]
    require(rows[0] == rows[1], "answers are the same rows after they have travelled between workers")
    for answer in answers:
        for region in answer.regions:
            _check_region(region, answer)
        indices = [region.phrase_index for region in answer.regions]
        require(indices == sorted(indices), "regions are in the order of the phrases")


def _check_region(region: Region, record: Record) -> None:
    x, y, w, h = region.box_xywh_px
    is_inside = 0 <= x < x + w <= record.width_px and 0 <= y < y + h <= record.height_px
    require(is_inside, f"a box lies inside its image, and is not empty: {region.box_xywh_px}")
    size_hw = (record.height_px, record.width_px)
    require(region.mask.size_hw == size_hw, f"a mask has the size of its image: {size_hw}")
    require(region.box_xywh_px == rle_box_xywh_px(region.mask), "a box is that of its mask")
    require(region.area_px == rle_area_px(region.mask), "area_px counts the pixels of the mask")
    require(0 <= region.score <= 1, f"a score is in 0 .. 1: {region.score}")
    require(-1 <= region.similarity <= 1, f"a similarity is in -1 .. 1: {region.similarity}")
    require(
        0 <= region.phrase_index < len(record.phrases), "phrase_index is that of a phrase of the record"
    )


def draw_records() -> list[Record]:
    """Return three images with phrases, one without, and in the middle one with an error."""
    rng = np.random.default_rng(3)
    error = RowError(reason="bad_image", detail="x.jpg: damaged")
    records = []
    for number, (height, width) in enumerate([(40, 56), (33, 47), (40, 56), (64, 40), (5, 90)]):
        rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
        name = f"{number}.jpg"
        record = Record(
            sample=Sample(sample_id=name, source=name, captions=CAPTIONS, image=ImageRef(file_name=name)),
            width_px=2 * width,  # twice the pixels that the source sees
            height_px=2 * height,
            phrases=() if number == 3 else PHRASES,
            pixels=Pixels(rgb=rgb),
        )
        if number == 2:
            record = replace(record, pixels=None, width_px=0, height_px=0, error=error)
        records.append(record)
    return records
