"""Datasets that somebody has made to do harm, or by a faulty program: a good one, changed in one place each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.build.datasets import Json, change_manifest, change_rows, copy_of
from tests.pipeline.export.datasets import demo_fingerprint
from tests.stages.write.rows import annotated, failed, without_phrases, write_shards
from tests.synthetic import count, write_manifest

Rows = list[Json]
BAD_ROW = 1  # in the second shard

MASK_BOMB = "PPPPPP8PPPPPP8"
"""14 characters that draw the mask of the audit, of 131,072 pixels a side."""


def write_good(folder: Path) -> Path:
    """Eight rows in two shards with heat maps and images, of another user."""
    records = [*(annotated(number) for number in range(6)), without_phrases(6), failed(7)]
    write_shards(records, folder / "data", ["heat_maps", "image"], rows_per_file=4)
    write_manifest(
        folder, count(folder), rows_per_file=4, embed_images=True, fingerprint=demo_fingerprint()
    )
    change_manifest(folder, signature="0" * 64)
    return folder


def row(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW].update(values)


def region(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW]["annotations"][1].update(values)


def mask(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW]["annotations"][1]["segmentation"].update(values)


def phrase(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW]["phrases"][1].update(values)


def heat_map(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW]["heat_maps"][1].update(values)


def sized(width: int, height: int, **values: Any) -> Callable[[Rows], None]:
    """A row whose image and mask are said to be of a size."""

    def change(rows: Rows) -> None:
        row(width=width, height=height)(rows)
        for entry in rows[BAD_ROW]["annotations"]:
            entry["segmentation"].update(size=[height, width], **values)

    return change


def embedded(**values: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW]["image"].update(values)


def append(name: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[BAD_ROW][name].append(value)


def many_maps(rows: Rows) -> None:
    """Of which each alone would be small."""
    empty = {**rows[BAD_ROW]["heat_maps"][0], "size": [1024, 1024], "levels": None}
    rows[BAD_ROW]["heat_maps"] += [{**empty, "phrase": f"p{number}"} for number in range(200)]


def same_ids(rows: Rows) -> None:
    for entry in rows[:3]:
        entry["id"] = 5
        for annotation in entry["annotations"]:
            annotation["image_id"] = 5


NAN = float("nan")

ROWS: dict[str, Callable[[Rows], None]] = {
    "box null": region(bbox=None),
    "box short": region(bbox=[1.0, 2.0]),
    "box with null": region(bbox=[1.0, None, 2.0, 2.0]),
    "box NaN": region(bbox=[NAN, 2.0, 3.0, 4.0]),
    "box infinite": region(bbox=[0.0, 2.0, float("inf"), 4.0]),
    "box outside": region(bbox=[35.0, 2.0, 6.0, 4.0]),
    "box negative": region(bbox=[-1.0, 2.0, 6.0, 4.0]),
    "box empty": region(bbox=[1.0, 2.0, 0.0, 4.0]),
    "learned box outside": region(bbox=[1.0, 2.0, 1e9, 4.0], bbox_of="learned"),
    "phrase null": region(phrase=None),
    "phrase empty": region(phrase=""),
    "head null": region(head=None),
    "score null": region(score=None),
    "score NaN": region(score=NAN),
    "score above 1": region(score=7.0),
    "similarity NaN": region(similarity=NAN),
    "presence NaN": region(presence=NAN),
    "caption_index beyond": region(caption_index=9),
    "caption_index negative": region(caption_index=-1),
    "caption_index null": region(caption_index=None),
    "span null": region(span=None),
    "span short": region(span=[1]),
    "span reversed": region(span=[8, 2]),
    "span beyond": region(span=[0, 10_000]),
    "annotation id null": region(id=None),
    "annotation id 0": region(id=0),
    "image_id of another": region(image_id=77),
    "category_id null": region(category_id=None),
    "annotation null": append("annotations", None),
    "annotations null": row(annotations=None),
    "captions null": row(captions=None),
    "a caption null": append("captions", None),
    "absent null": row(absent=None),
    "warnings null": row(warnings=[None]),
    "name null": row(file_name=None),
    "sample_id null": row(sample_id=None),
    "id null": row(id=None),
    "id too large": row(id=2**60),
    "width 0": row(width=0),
    "height negative": row(height=-30),
    "width null": row(width=None),
    "file_name absolute": row(file_name="/etc/passwd"),
    "file_name above": row(file_name="../../../etc/passwd"),
    "file_name above in the middle": row(file_name="a/../../b.jpg"),
    "file_name a URL": row(file_name="http://example.org/a.jpg"),
    "file_name of the file protocol": row(file_name="FILE:/etc/passwd"),
    "file_name with NUL": row(file_name="a\0.jpg"),
    "path of the image absolute": embedded(path="/etc/passwd"),
    "counts null": mask(counts=None),
    "counts empty": mask(counts=""),
    "counts of another size": mask(counts="0P"),
    "counts damaged": mask(counts="0é"),
    "counts cut": lambda rows: mask(counts=rows[BAD_ROW]["annotations"][1]["segmentation"]["counts"] + "P")(
        rows
    ),
    "mask size null": mask(size=None),
    "mask size short": mask(size=[30]),
    "mask of another size": mask(size=[40, 30]),
    "mask null": region(segmentation=None),
    "mask bomb": mask(size=[131_072, 131_072], counts=MASK_BOMB),
    "mask bomb of 46,000": mask(size=[46_000, 46_000], counts=MASK_BOMB),
    "mask bomb with its image": sized(131_072, 131_072, counts=MASK_BOMB),
    "size that overflows": sized(2**31 - 1, 2**31 - 1),
    "mask size negative": mask(size=[-30, -40]),
    "heat map bomb": heat_map(size=[60_000, 60_000], levels=None),
    "heat map that overflows": heat_map(size=[2**31 - 1, 2**31 - 1], levels=None),
    "heat maps that are many": many_maps,
    "heat map of nothing": heat_map(size=[0, 2]),
    "heat map of another size": heat_map(levels=b"abc"),
    "heat map size null": heat_map(size=None),
    "heat map shifted by NaN": heat_map(shift_cells=NAN),
    "phrase of the heat map null": heat_map(phrase=None),
    "phrase plural null": phrase(plural=None),
    "span of a phrase reversed": phrase(span=[9, 3]),
    "caption_presence NaN": row(caption_presence=[NAN]),
    "caption_score infinite": row(caption_score=[float("inf")]),
    "phrase_count negative": row(phrase_count=-1),
    "three images with one id": same_ids,
    "an annotation twice": lambda rows: rows[BAD_ROW]["annotations"].append(
        rows[BAD_ROW]["annotations"][0]
    ),
}
"""Name -> change of the rows of the second shard."""


def cast(name: str, kind: Any) -> Callable[[Any], Any]:
    return lambda table: table.set_column(
        table.schema.get_field_index(name), name, pa.array([None] * table.num_rows, kind)
    )


def not_utf_8(table: Any) -> Any:
    names = pa.array([b"\xff.jpg"] * table.num_rows, pa.binary()).view(pa.string())
    return table.set_column(table.schema.get_field_index("file_name"), "file_name", names)


TABLES: dict[str, Callable[[Any], Any]] = {
    "id as text": cast("id", pa.string()),
    "width as a float": cast("width", pa.float64()),
    "captions as text": cast("captions", pa.string()),
    "annotations as text": cast("annotations", pa.string()),
    "annotations without masks": cast(
        "annotations", pa.list_(pa.struct([("bbox", pa.list_(pa.float32()))]))
    ),
    "captions twice": lambda table: table.append_column("captions", table["captions"]),
    "no captions": lambda table: table.drop_columns(["captions"]),
    "no annotations": lambda table: table.drop_columns(["annotations"]),
    "heat maps as bytes": cast("heat_maps", pa.binary()),
    "file_name not UTF-8": not_utf_8,
}
"""Name -> change of the second shard."""

HOSTILE = (*ROWS, *TABLES)


def make_hostile(good: Path, name: str, folder: Path) -> Path:
    """A copy of a good dataset with the change of this name."""
    dataset = copy_of(good, folder)
    shard = dataset / "data" / "00001.parquet"
    if name in ROWS:
        change_rows(shard, ROWS[name])
    else:
        pq.write_table(TABLES[name](pq.read_table(shard)), shard)
    return dataset
