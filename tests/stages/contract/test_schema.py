from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.contract.errors import ROW_ERRORS, RowError, SchemaError
from stages.contract.levels import quantise
from stages.contract.masks import encode_mask, rle_area_px, rle_box_xywh_px
from stages.contract.records import (
    Absent,
    HeatMap,
    ImageRef,
    Phrase,
    Pixels,
    Record,
    Region,
    Sample,
    stable_id,
)
from stages.contract.schema import (
    DATASET_FIELDS,
    ENTRIES,
    OPTIONAL_FIELDS,
    ColumnOption,
    check_version,
    dataset_schema,
    mapped_record,
    records_to_rows,
)
from stages.contract.tables import RECORD_SCHEMA, records_to_table, table_to_records
from tests.build.datasets import Json
from tests.messages import expect_error

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
finite = st.floats(-1, 1, width=32)


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3).map(tuple)


def arrays(dtype: type, *shape: int, most: int = 5) -> st.SearchStrategy[Any]:
    sides = st.tuples(*[st.integers(1, most)] * 2).map(lambda sides: (*sides, *shape))
    return hnp.arrays(dtype, sides, elements=finite if dtype is np.float32 else None)


counts = st.integers(0, 2**31 - 1)
shares = st.none() | st.floats(0, 1)
images = st.builds(
    ImageRef,
    file_name=texts,
    url=st.none() | texts,
    offset=st.integers(0, 2**62),
    size=st.integers(-1, 2**62),
    content=st.none() | st.binary(max_size=20),
)
errors = st.builds(RowError, reason=st.sampled_from(sorted(ROW_ERRORS)), detail=texts)
phrases = st.builds(
    Phrase,
    text=texts.filter(bool),
    caption_index=counts,
    start=st.integers(0, 99),
    end=st.integers(100, 199),
    head=texts,
    plural=st.booleans(),
)
heat_maps = st.builds(
    HeatMap,
    text=texts,
    values=arrays(np.float32),
    similarity=finite,
    fault=st.sampled_from(["", "constant"]),
    presence=shares,
)
records = st.builds(
    Record,
    sample=st.builds(Sample, sample_id=texts, source=texts, captions=some(texts), image=images),
    width_px=counts,
    height_px=counts,
    phrases=some(phrases),
    dropped_phrases=counts,
    pixels=st.none() | st.builds(Pixels, rgb=arrays(np.uint8, 3)),
    heat_maps=some(heat_maps),
    error=st.none() | errors,
)


def plain(record: Record) -> Any:
    """The record with its arrays as nested lists, so that == works."""
    arrays = [
        (m.text, m.values.dtype, m.values.tolist(), m.similarity, m.presence, m.fault)
        for m in record.heat_maps
    ]
    pixels = None if record.pixels is None else (record.pixels.rgb.dtype, record.pixels.rgb.tolist())
    return replace(record, heat_maps=(), pixels=None), arrays, pixels


@settings(max_examples=40)
@given(st.lists(records, max_size=4))
def test_records_survive_the_way_between_workers(batch: list[Record]) -> None:
    table = records_to_table(batch)
    assert table.schema == RECORD_SCHEMA
    assert table["id"].to_pylist() == [record.sample.id for record in batch]
    assert [plain(record) for record in table_to_records(table)] == [plain(record) for record in batch]


@settings(max_examples=20)
@given(st.lists(records, min_size=3, max_size=5), st.integers(0, 2))
def test_parts_of_a_batch_and_batches_in_parts_are_read(batch: list[Record], start: int) -> None:
    """As Ray hands them on: slices, and several pieces one after the other."""
    table = records_to_table(batch)
    assert [plain(one) for one in table_to_records(table.slice(start, 2))] == [
        plain(one) for one in batch[start:][:2]
    ]
    again = pa.concat_tables([table.slice(start), table.slice(0, start), table.slice(0, 0)])
    assert [plain(one) for one in table_to_records(again)] == [
        plain(one) for one in batch[start:] + batch[:start]
    ]


def places_of(column: Any) -> list[int | None]:
    """Where the memory of a column lies."""
    return [buffer and buffer.address for chunk in column.chunks for buffer in chunk.buffers()]


def test_columns_that_no_stage_changed_are_handed_on() -> None:
    given = [make_record(regions=()), make_record(pixels=Pixels(rgb=np.zeros((2, 2, 3), np.uint8)))]
    table = records_to_table(given)
    before = table_to_records(table)
    after = records_to_table([replace(one, pixels=None) for one in before], (before, table))
    changed = {name for name in table.column_names if places_of(after[name]) != places_of(table[name])}
    assert changed == {"id", "pixels"}
    assert [plain(one) for one in table_to_records(after)] == [
        plain(replace(one, pixels=None)) for one in given
    ]


def test_columns_between_workers() -> None:
    """They may be in any order, and others beside them; missing ones are named."""
    record = make_record(regions=())
    table = records_to_table([record]).append_column("more", pa.array([1]))
    image = table["sample"].type.field("image").type
    assert image.field("content").type == pa.large_binary(), "a batch may hold 2 GB of images"
    assert [plain(r) for r in table_to_records(table.select(table.column_names[::-1]))] == [plain(record)]
    with expect_error(SchemaError):
        table_to_records(table.drop_columns(["phrases", "error"]))


def make_record(**changes: Any) -> Record:
    """A 10x8 image with a region for "red car", none for "sky", and a caption each."""
    captions = ("A red car.", "a car under the Sky")
    mask = np.zeros((8, 10), bool)
    mask[2:5, 1:7] = True
    rle = encode_mask(mask)
    box = rle_box_xywh_px(rle)
    area = rle_area_px(rle)
    region = Region(phrase_index=0, box_xywh_px=box, mask=rle, area_px=area, score=0.75, similarity=0.25)
    image = ImageRef(file_name="a/b.jpg", content=b"JPEG")
    sample = Sample(sample_id="k1", source="a.jsonl:1", captions=captions, image=image)
    red_car = Phrase(text="red car", caption_index=0, start=0, end=9, head="car")
    sky = Phrase(text="sky", caption_index=1, start=16, end=19, head="sky")
    hot = HeatMap(text="red car", values=np.ones((2, 2), np.float32), similarity=0.25)
    cold = HeatMap(text="sky", values=np.zeros((2, 2), np.float32), similarity=0.125, fault="empty")
    annotation: Json = {"phrases": (red_car, sky), "heat_maps": (hot, cold), "regions": (region,)}
    annotation |= {"caption_scores": (0.5, None), "caption_presences": (0.123457, None)}
    return Record(**{"sample": sample, "width_px": 10, "height_px": 8, **annotation, **changes})


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
        "width": 10,
        "height": 8,
        "captions": ["A red car.", "a car under the Sky"],
        "annotations": [
            {
                "id": stable_id("k1\n0"),
                "image_id": stable_id("k1"),
                "category_id": stable_id("red car"),
                "bbox": [1.0, 2.0, 6.0, 3.0],
                "area": 18,
                "segmentation": {"size": [8, 10], "counts": make_record().regions[0].mask.counts},
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
        "caption_score": [0.5, None],
        "phrase_count": 2,
        "error": None,
        "error_detail": None,
        "warnings": ["no region for 'sky': its heat map is zero everywhere"],
    }


def test_the_row_of_an_image_in_which_a_phrase_is_absent() -> None:
    record = make_record()
    region = replace(record.regions[0], presence=0.875, group=2)
    row = row_of(
        replace(
            record, regions=(region,), absent=(Absent(phrase_index=1, presence=0.25, similarity=0.125),)
        )
    )
    assert (row["annotations"][0]["presence"], row["annotations"][0]["group"]) == (0.875, 2)
    sky = {"phrase": "sky", "head": "sky", "caption_index": 1, "span": [16, 19]}
    assert row["absent"] == [{**sky, "presence": 0.25, "similarity": 0.125}]
    assert (row["warnings"], row["phrase_count"]) == ([], 2)


def test_rows_of_failed_samples_and_of_images_without_phrases() -> None:
    error = RowError(reason="missing_image", detail="a.jsonl:1: no file a/b.jpg")
    sample = Sample(
        sample_id="k1", source="a.jsonl:1", captions=("a dog",), image=ImageRef(file_name="a/b.jpg")
    )
    row = row_of(Record(sample=sample, error=error))
    assert (row["error"], row["error_detail"]) == (error.reason, error.detail)
    assert (row["annotations"], row["warnings"]) == ([], [])
    assert (row["width"], row["height"], row["phrase_count"], row["captions"]) == (0, 0, 0, ["a dog"])

    row = row_of(make_record(phrases=(), heat_maps=(), regions=()))
    assert (row["annotations"], row["phrase_count"], row["warnings"], row["error"]) == ([], 0, [], None)
    assert records_to_rows([]).num_rows == records_to_table([]).num_rows == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("constant", "the similarity of all patches is the same"),
        ("empty", "its heat map is zero everywhere"),
        ("not_finite", "its heat map is not finite"),
        ("", "no part of its heat map passed the cleaning"),
    ],
)
def test_phrases_without_a_region_are_explained_once(fault: str, reason: str) -> None:
    record = make_record()
    sky = replace(record.heat_maps[1], fault=fault)
    phrases = (*record.phrases, replace(record.phrases[1], caption_index=0, start=2, end=5))
    row = row_of(replace(record, heat_maps=(record.heat_maps[0], sky), phrases=phrases))
    assert row["warnings"] == [f"no region for 'sky': {reason}"]
    assert row["phrase_count"] == 3


def test_dropped_phrases_are_counted_in_the_warnings() -> None:
    row = row_of(make_record(dropped_phrases=3))
    assert row["warnings"][-1:] == ["3 phrases over the limit per image were dropped"]
    assert row["phrase_count"] == 2


def test_annotations_have_unique_ids_and_exact_areas() -> None:
    """Also beyond the numbers that float32 counts."""
    record = make_record()
    row = row_of(
        replace(record, regions=tuple(replace(record.regions[0], area_px=16_777_217 + n) for n in range(3)))
    )
    assert [annotation["area"] for annotation in row["annotations"]] == [16_777_217, 16_777_218, 16_777_219]
    ids = [annotation["id"] for annotation in row["annotations"]]
    assert len(set(ids)) == 3
    assert all(0 < number < 2**53 for number in (*ids, row["id"]))


def test_images_are_embedded_but_for_failed_samples() -> None:
    """Readers of the dataset would open the path, or decode bytes that cannot be decoded."""
    assert row_of(make_record(), "image")["image"] == {"bytes": b"JPEG", "path": "a/b.jpg"}
    error = RowError(reason="bad_image", detail="a.jsonl:1: not an image")
    assert row_of(make_record(error=error, regions=(), phrases=()), "image")["image"] is None
    sample = Sample(sample_id="k1", source="a", image=ImageRef(file_name="a/b.jpg"))
    assert row_of(Record(sample=sample, error=error), "image")["image"] is None


def test_phrases_and_heat_maps_are_stored_where_they_are_wanted() -> None:
    values = np.array([[0, 1], [2, 4]], np.float32)
    red_car = HeatMap(text="red car", values=values, similarity=0.25, shift_cells=0.5, presence=0.75)
    row = row_of(make_record(heat_maps=(red_car, make_record().heat_maps[1])), "heat_maps")
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
    maps = (shifted, make_record().heat_maps[1])
    record = make_record(phrases=(dog, make_record().phrases[1]), heat_maps=maps, regions=())
    back = mapped_record(row_of(record, "heat_maps"))
    assert (back.phrases, back.width_px, back.height_px) == (record.phrases, 10, 8)
    assert (back.sample.sample_id, back.sample.captions) == ("k1", record.sample.captions)
    levels = quantise(values)
    assert levels is not None
    np.testing.assert_array_equal(back.heat_maps[0].values, levels)
    assert not back.heat_maps[1].values.any()
    assert [one.shift_cells for one in back.heat_maps] == [1 / 3, 0.0]
    assert [one.similarity for one in back.heat_maps] == [np.float32(0.1), 0.125]
    assert [one.presence for one in back.heat_maps] == [0.123457, None]
    assert back.caption_presences == (0.123457, None)
    assert row_of(back, "heat_maps")["heat_maps"] == row_of(record, "heat_maps")["heat_maps"]


def test_a_stored_error_comes_back() -> None:
    error = RowError(reason="bad_image", detail="a.jsonl:1: not an image")
    failed = make_record(error=error, regions=(), heat_maps=(), width_px=0, height_px=0)
    back = mapped_record(row_of(failed, "heat_maps"))
    assert (back.error, back.phrases, back.heat_maps) == (error, failed.phrases, ())


@pytest.mark.parametrize(
    "change",
    [
        {"levels": b"abc"},
        {"size": [-2, -2]},
        {"levels": None, "size": [0, 2]},
    ],
)
def test_a_heat_map_that_does_not_fill_its_grid_is_rejected(change: Json) -> None:
    heat_map = replace(make_record().heat_maps[0], values=np.eye(2, dtype=np.float32))
    row = row_of(make_record(heat_maps=(heat_map,)), "heat_maps")
    row["heat_maps"][0].update(change)
    with expect_error(SchemaError):
        mapped_record(row)


def test_every_field_says_its_unit_and_meaning_and_occurs_once() -> None:
    columns = (*DATASET_FIELDS, *OPTIONAL_FIELDS)
    lists = [field for field in columns if pa.types.is_list(field.kind)]
    assert {field.name for field in lists if pa.types.is_struct(field.kind.value_type)} == {*ENTRIES}
    for fields in (columns, *ENTRIES.values()):
        assert all(field.doc for field in fields)
        assert len({field.name for field in fields}) == len(fields)
    units = {field.name: field.unit for fields in (columns, *ENTRIES.values()) for field in fields}
    assert units["width"] == units["height"] == units["bbox"] == units["area"] == "px"
    assert (units["score"], units["similarity"], units["span"]) == ("0 .. 1", "-1 .. 1", "characters")


def test_one_version_is_read(tmp_path: Any) -> None:
    check_version("out", 1)
    for other in (None, 5, "1"):
        with expect_error(SchemaError):
            check_version("out", other)
    pq.write_table(records_to_rows([make_record()], ["image"]), tmp_path / "a.parquet")
    back = pq.read_schema(tmp_path / "a.parquet")
    assert back.field("width").metadata[b"unit"] == b"px"
    assert back.field("annotations").type.value_type.field("bbox").metadata[b"unit"] == b"px"
