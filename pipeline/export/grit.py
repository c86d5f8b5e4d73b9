"""Parquet in the columns of GRIT (Kosmos-2): one row for each caption with regions.

https://huggingface.co/datasets/zzliang/GRIT: `noun_chunks` and `ref_exps` are lists of [start,
end, x0, y0, x1, y1, score]: characters [start, end) of `caption`, box edges as shares 0 .. 1 of
width and height. `ref_exps` holds, as there, the expressions that lie in no other. GRIT's two
CLIP similarities are null: they belong to other models.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.export.base import ChosenSample, Exporter, shorten_float
from phrasebox.pipeline.export.files import ParquetParts
from phrasebox.stages.contract.geometry import xywh_to_xyxy
from phrasebox.stages.contract.records import stable_id

_ROWS_PER_FILE: Final = 100_000
_CHUNKS: Final = pa.list_(pa.list_(pa.float64()))

_SCHEMA: Final = pa.schema(
    [
        ("key", pa.string()),
        ("clip_similarity_vitb32", pa.float64()),
        ("clip_similarity_vitl14", pa.float64()),
        ("id", pa.int64()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("noun_chunks", _CHUNKS),
        ("ref_exps", _CHUNKS),
        ("segmentations", pa.list_(pa.string())),
    ]
)
"""GRIT's columns, and `segmentations`: COCO's compressed counts, one for each of `noun_chunks`."""


class Grit(Exporter):
    """GRIT's Parquet."""

    summary = "data/SPLIT-*.parquet with noun_chunks and ref_exps as in GRIT, for Kosmos-2 and FG-CLIP; images by name"
    masks = "exact as RLE counts in a column `segmentations` beside GRIT's own"
    next_step = 'datasets.load_dataset("{out}")'
    needs_words = True
    takes_groups = False  # its boxes stand in the captions

    def open_split(self, split: str) -> ParquetParts:
        """Return the Parquet files of a split."""
        return ParquetParts(self.job.folder, split, _SCHEMA, _ROWS_PER_FILE, 1000)

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        row = sample.row
        for index, caption, regions in sample.texts():
            chunks = [_chunk(region, row) for region, _ in regions]
            spans = {(start, end) for _, [(start, end)] in regions}
            self.files[sample.split].add(
                {
                    "key": row["sample_id"],
                    "id": stable_id(f"{row['sample_id']}\ncaption {index}"),
                    "url": row["file_name"],
                    "caption": caption,
                    "width": row["width"],
                    "height": row["height"],
                    "noun_chunks": chunks,
                    "ref_exps": [
                        chunk for chunk in chunks if not _lies_in_another(chunk[0], chunk[1], spans)
                    ],
                    "segmentations": [region["segmentation"]["counts"] for region, _ in regions],
                }
            )


def _chunk(region: Annotation, row: Row) -> list[float]:
    x0, y0, x1, y1 = xywh_to_xyxy(region["bbox"])
    width = row["width"]
    height = row["height"]
    return [
        *region["span"],
        x0 / width,
        y0 / height,
        x1 / width,
        y1 / height,
        shorten_float(region["score"]),
    ]


def _lies_in_another(start: float, end: float, spans: set[tuple[int, int]]) -> bool:
    return any(first <= start and end <= last and (first, last) != (start, end) for first, last in spans)
