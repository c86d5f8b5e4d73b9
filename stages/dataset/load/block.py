"""A table of rows as plain arrays and lists, from which a sample is a matter of slices.

Going through dicts of Python objects would cost a hundred times as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.contract.errors import SchemaError
from stages.contract.masks import run_ends

_MASKS_AT_ONCE: Final = 64
"""Their run lengths stay in the processor's cache: a quarter faster than all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows and their regions, as they are stored; `starts[row]` to `starts[row + 1]` are the regions of a row.

    ids, sample_ids, file_names, captions, size_wh, errors, error_details   of the rows
    starts                    int64 (rows + 1,)
    boxes_xyxy_px             float32 (regions, 4), pixels of the original image
    spans                     int64 (regions, 2), half open, characters of the caption
    region_ids, caption_indices, scores, similarities, phrases, heads   of the regions
    run_ends, run_starts      see `stages.contract.masks.run_ends`; empty if they were not read
    images                    encoded, or None for each row that holds none; a reader may take them out
    """

    ids: NDArray[np.int64]
    sample_ids: list[str]
    file_names: list[str]
    captions: list[list[str]]
    size_wh: NDArray[np.int64]
    errors: list[str | None]
    error_details: list[str | None]
    starts: NDArray[np.int64]
    region_ids: NDArray[np.int64]
    boxes_xyxy_px: NDArray[np.float32]
    spans: NDArray[np.int64]
    caption_indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    similarities: NDArray[np.float32]
    phrases: list[str]
    heads: list[str]
    run_ends: NDArray[np.int64]
    run_starts: NDArray[np.int64]
    images: list[bytes | None]

    def __len__(self) -> int:
        return len(self.ids)


def block_of(table: Any) -> Block:
    """Raises SchemaError for values that the dataset contract does not allow."""
    annotations = table["annotations"].combine_chunks()
    counts = annotations.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    regions = annotations.flatten()
    fields = {name: regions.field(name) for name in (entry.name for entry in regions.type)}
    rows = {name: table[name].combine_chunks() for name in table.column_names if name != "annotations"}
    try:
        nothing = np.zeros(0, np.int64)
        runs = _runs(fields["segmentation"]) if "segmentation" in fields else (nothing, nothing)
        return Block(
            ids=_numbers(rows["id"], np.int64),
            sample_ids=rows["sample_id"].to_pylist(),
            file_names=rows["file_name"].to_pylist(),
            captions=rows["captions"].to_pylist(),
            size_wh=np.stack([_numbers(rows[name], np.int64) for name in ("width", "height")], axis=1),
            errors=rows["error"].to_pylist(),
            error_details=rows["error_detail"].to_pylist(),
            starts=starts,
            region_ids=_numbers(fields["id"], np.int64),
            boxes_xyxy_px=_corners(_rows_of(fields["bbox"], 4, np.float32)),
            spans=_rows_of(fields["span"], 2, np.int64),
            caption_indices=_numbers(fields["caption_index"], np.int64),
            scores=_numbers(fields["score"], np.float32),
            similarities=_numbers(fields["similarity"], np.float32),
            phrases=fields["phrase"].to_pylist(),
            heads=fields["head"].to_pylist(),
            run_ends=runs[0],
            run_starts=runs[1],
            images=_images(rows.get("image"), len(starts) - 1),
        )
    except ValueError as error:
        raise SchemaError(f"rows {rows['id'][0]} to {rows['id'][-1]}: {error}") from error


def _numbers(column: Any, kind: Any) -> NDArray[Any]:
    """Own, writable memory: torch refuses to see other."""
    if column.null_count:
        raise ValueError(f"{column.null_count} values are missing")
    return np.array(column.to_numpy(zero_copy_only=False), dtype=kind)


def _rows_of(column: Any, width: int, kind: Any) -> NDArray[Any]:
    """(n, width) of lists of one length."""
    values = _numbers(column.flatten(), kind)
    lengths = column.value_lengths()
    if lengths.null_count or not (lengths.to_numpy() == width).all():
        raise ValueError(f"expected lists of {width} values")
    return values.reshape(-1, width)


def _corners(boxes_xywh: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)


def _runs(segmentation: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = segmentation.field("counts")
    if counts.null_count:
        raise ValueError(f"{counts.null_count} masks are missing")
    _, offsets_buffer, text_buffer = counts.buffers()
    if not len(counts):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int32)[counts.offset : counts.offset + len(counts) + 1].astype(np.int64)
    text = np.frombuffer(text_buffer, np.uint8)
    pixels = _rows_of(segmentation.field("size"), 2, np.int64).prod(axis=1)
    ends, starts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for first in range(0, len(pixels), _MASKS_AT_ONCE):
        own = offsets[first : first + _MASKS_AT_ONCE + 1]
        found, places = run_ends(text[own[0] : own[-1]], own - own[0], pixels[first : first + _MASKS_AT_ONCE])
        ends.append(found)
        starts.append(places[1:] + starts[-1][-1])
    return np.concatenate(ends), np.concatenate(starts)


def _images(column: Any, rows: int) -> list[bytes | None]:
    if column is None:
        return [None] * rows
    images: list[bytes | None] = pa.array(column.field("bytes")).to_pylist()
    return images
