from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from phrasebox.stages.contract.errors import RowError, SchemaError
from phrasebox.stages.contract.levels import quantise
from phrasebox.stages.contract.records import (
    Absent,
    HeatMap,
    ImageRef,
    Phrase,
    Pixels,
    Record,
    Sample,
    stable_id,
)
from phrasebox.stages.contract.schema import (
    DATASET_FIELDS,
    ENTRIES,
    OPTIONAL_FIELDS,
    ColumnOption,
    dataset_schema,
    mapped_record,
    records_to_rows,
)
from phrasebox.stages.contract.tables import records_to_table, table_to_records
from tests.build.datasets import Json
from tests.build.records import HEIGHT, WIDTH, region
from tests.messages import expect_error

CAPTIONS = ("A red car.", "a car under the Sky")
RED_CAR = Phrase(text="red car", caption_index=0, start=0, end=9, head="car")
SKY = Phrase(text="sky", caption_index=1, start=16, end=19, head="sky")
REGION = region(0, (1, 2, 6, 3), score=0.75, similarity=0.25)
COLD = HeatMap(text="sky", values=np.zeros((2, 2), np.float32), similarity=0.125, fault="empty")
ERROR = RowError(reason="bad_image", detail="a.jsonl:1: not an image")


def make_record(**changes: Any) -> Record:
    """A 40x30 image with a region for "red car", none for "sky", and a caption each."""
    image = ImageRef(file_name="a/b.jpg", content=b"JPEG")
    record = Record(
        sample=Sample(sample_id="k1", source="a.jsonl:1", captions=CAPTIONS, image=image),
        width_px=WIDTH,
        height_px=HEIGHT,
        phrases=(RED_CAR, SKY),
        heat_maps=(HeatMap(text="red car", values=np.ones((2, 2), np.float32), similarity=0.25), COLD),
        caption_scores=(0.5, None),
        caption_presences=(0.123457, None),
        regions=(REGION,),
    )
    return replace(record, **changes)


def test_records_travel_between_workers_and_columns_that_no_stage_changed_are_handed_on() -> None:
    """Ray hands on slices, and several pieces one after the other."""
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    given = [make_record(heat_maps=(), pixels=Pixels(rgb=rgb)), make_record(heat_maps=(), error=ERROR)]
    table = records_to_table(given)
    records = table_to_records(table)
    np.testing.assert_array_equal(records[0].pixels.rgb, rgb)
    bare = [replace(record, pixels=None) for record in records]
    assert bare == [replace(record, pixels=None) for record in given]
    after = records_to_table(bare, (records, table))
    changed = {name for name in table.column_names if places_of(after[name]) != places_of(table[name])}
    assert changed == {"id", "pixels"}
    pieces = pa.concat_tables([after.slice(1), after.slice(0, 1), after.slice(0, 0)])
    assert table_to_records(pieces) == bare[::-1]
    [whole] = table_to_records(records_to_table([make_record()]))
    np.testing.assert_array_equal(whole.heat_maps[0].values, make_record().heat_maps[0].values)
    assert replace(whole, heat_maps=()) == make_record(heat_maps=())


def places_of(column: Any) -> list[int | None]:
    """Where the memory of a column lies."""
    return [buffer and buffer.address for chunk in column.chunks for buffer in chunk.buffers()]


def row_of(record: Record, *options: ColumnOption) -> Json:
    table = records_to_rows([record], options)
    assert table.schema == dataset_schema(options)
    [row] = table.to_pylist()
    return row


def test_the_row_of_an_annotated_image() -> None:
    row = row_of(make_record())
    assert row == {
        "id": stable_id("k1"),
        "sample_id": "k1",
        "file_name": "a/b.jpg",
        "width": WIDTH,
        "height": HEIGHT,
        "captions": [*CAPTIONS],
        "annotations": [
            {
                "id": stable_id("k1\n0"),
                "image_id": stable_id("k1"),
                "category_id": stable_id("red car"),
                "bbox": [1.0, 2.0, 6.0, 3.0],
                "area": 18,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": REGION.mask.counts},
                "iscrowd": 0,
                "phrase": "red car",
                "head": "car",
                "caption_index": 0,
                "span": [0, 9],
                "score": 0.75,
                "similarity": 0.25,
                "presence": None,
                "group": None,
                "bbox_of": "mask",
                "refined": "none",
                "fallback": None,
            }
        ],
        "absent": [],
        "caption_language": [],
        "caption_score": [0.5, None],
        "phrase_count": 2,
        "error": None,
        "error_detail": None,
        "warnings": ["no region for 'sky': its heat map is zero everywhere"],
    }


def test_the_row_of_an_image_in_which_a_phrase_is_absent() -> None:
    absent = Absent(phrase_index=1, presence=0.25, similarity=0.125)
    row = row_of(make_record(regions=(replace(REGION, presence=0.875, group=2),), absent=(absent,)))
    assert (row["annotations"][0]["presence"], row["annotations"][0]["group"]) == (0.875, 2)
    sky = {"phrase": "sky", "head": "sky", "caption_index": 1, "span": [16, 19]}
    assert row["absent"] == [{**sky, "presence": 0.25, "similarity": 0.125}]
    assert (row["warnings"], row["phrase_count"]) == ([], 2)


def test_the_row_of_a_failed_sample_has_no_image() -> None:
    """Readers of the dataset would open the path, or decode bytes that cannot be decoded."""
    failed = make_record(error=ERROR, phrases=(), heat_maps=(), regions=(), width_px=0, height_px=0)
    row = row_of(failed, "image")
    assert (row["error"], row["error_detail"]) == (ERROR.reason, ERROR.detail)
    assert (row["annotations"], row["warnings"], row["image"]) == ([], [], None)
    assert (row["width"], row["height"], row["phrase_count"], row["captions"]) == (0, 0, 0, [*CAPTIONS])
    assert row_of(make_record(), "image")["image"] == {"bytes": b"JPEG", "path": "a/b.jpg"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("constant", "the similarity of all patches is the same"),
        ("not_finite", "its heat map is not finite"),
        ("", "no part of its heat map passed the cleaning"),
    ],
)
def test_phrases_without_a_region_are_explained_once(fault: str, reason: str) -> None:
    phrases = (RED_CAR, SKY, replace(SKY, caption_index=0, start=2, end=5))
    maps = (replace(COLD, fault=fault),)
    row = row_of(make_record(heat_maps=maps, phrases=phrases, dropped_phrases=3))
    assert row["warnings"] == [
        f"no region for 'sky': {reason}",
        "3 phrases over the limit per image were dropped",
    ]
    assert row["phrase_count"] == 3


def test_annotations_have_unique_ids_and_exact_areas() -> None:
    """Also beyond the numbers that float32 counts."""
    areas = [16_777_217, 16_777_218]
    row = row_of(make_record(regions=tuple(replace(REGION, area_px=area) for area in areas)))
    assert [annotation["area"] for annotation in row["annotations"]] == areas
    assert len({annotation["id"] for annotation in row["annotations"]}) == 2


def test_phrases_and_heat_maps_are_stored_where_they_are_wanted() -> None:
    values = np.array([[0, 1], [2, 4]], np.float32)
    red_car = HeatMap(text="red car", values=values, similarity=0.25, shift_cells=0.5, presence=0.75)
    row = row_of(make_record(heat_maps=(red_car, COLD)), "heat_maps")
    assert row["phrases"] == [
        {"phrase": "red car", "head": "car", "caption_index": 0, "span": [0, 9], "plural": False},
        {"phrase": "sky", "head": "sky", "caption_index": 1, "span": [16, 19], "plural": False},
    ]
    levels = bytes([0, 64, 128, 255])
    entries = [tuple(entry.values()) for entry in row["heat_maps"]]
    assert entries == [
        ("red car", [2, 2], levels, 0.5, 0.25, 0.75),
        ("sky", [2, 2], None, 0.0, 0.125, None),
    ]
    assert [*row["heat_maps"][0]] == ["phrase", "size", "levels", "shift_cells", "similarity", "presence"]
    assert not {"phrases", "heat_maps"} & row_of(make_record()).keys()


def test_a_stored_record_is_the_record_in_levels() -> None:
    values = np.random.default_rng(0).random((7, 5), np.float32)
    dog = Phrase(text="two dogs", caption_index=1, start=0, end=5, head="dog", plural=True)
    shifted = HeatMap(text="two dogs", values=values, similarity=0.1, shift_cells=1 / 3, presence=0.123457)
    record = make_record(phrases=(dog, SKY), heat_maps=(shifted, COLD), error=ERROR)
    back = mapped_record(row_of(record, "heat_maps"))
    assert (back.phrases, back.width_px, back.height_px) == (record.phrases, WIDTH, HEIGHT)
    assert (back.sample.sample_id, back.sample.captions, back.error) == ("k1", CAPTIONS, ERROR)
    np.testing.assert_array_equal(back.heat_maps[0].values, quantise(values))
    assert not back.heat_maps[1].values.any()
    facts = [(one.shift_cells, one.similarity, one.presence) for one in back.heat_maps]
    assert facts == [(1 / 3, np.float32(0.1), 0.123457), (0.0, 0.125, None)]
    assert back.caption_presences == (0.123457, None)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": b"abc"},
        {"size": [-2, -2]},
        {"levels": None, "size": [0, 2]},
    ],
)
def test_a_heat_map_that_does_not_fill_its_grid_is_rejected(change: Json) -> None:
    heat_map = replace(COLD, text="red car", values=np.eye(2, dtype=np.float32), fault="")
    row = row_of(make_record(heat_maps=(heat_map,)), "heat_maps")
    row["heat_maps"][0].update(change)
    with expect_error(SchemaError):
        mapped_record(row)


def test_every_field_says_its_unit_and_meaning_and_occurs_once() -> None:
    for fields in ((*DATASET_FIELDS, *OPTIONAL_FIELDS), *ENTRIES.values()):
        assert all(field.doc for field in fields)
        assert len({field.name for field in fields}) == len(fields)
    schema = dataset_schema()
    bbox = schema.field("annotations").type.value_type.field("bbox")
    assert schema.field("width").metadata[b"unit"] == bbox.metadata[b"unit"] == b"px"
