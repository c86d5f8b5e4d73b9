"""Corrections by people (`pipeline.dataset.reviews`), applied before an export chooses regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.folder import Dataset
from pipeline.dataset.reviews import RegionKey, read_reviews
from pipeline.dataset.selection import REGION, Selector
from pipeline.export.base import mask_of
from stages.contract.geometry import Box, xywh_to_xyxy, xyxy_to_xywh
from stages.contract.masks import encode_mask

DELETED: Final = "regions that people deleted: left out"
MOVED: Final = "regions whose box people corrected: their score is 1.0, their mask is cut to it"
BOXED: Final = "regions whose box people moved off the mask: their score is 1.0, the box stands for the mask"
UNKNOWN: Final = "corrections of regions that are not in the dataset: not applied"

_NEEDED: Final = ("id", "phrase", "bbox", "area", "segmentation", "score")


class Corrected:
    """A dataset as people have corrected it. Raise InputError if their reviews cannot be read."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._by_key = read_reviews(dataset.path).corrections

    def tables(
        self, columns: Sequence[str], selector: Selector, notes: Counter[str]
    ) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """Yield `Dataset.tables` with the corrected boxes, each with its rows, which have the chosen regions.

        Deleted regions stay in the tables, but not in the rows. `notes` count the corrections of chosen regions, and
        those of no region in the dataset.
        """
        needed = () if not self._by_key or "annotations" in columns else (REGION + name for name in _NEEDED)
        ids = pa.array(sorted({key.annotation_id for key in self._by_key}), pa.int64())
        notes[UNKNOWN] += len(self._by_key)
        for table in self.dataset.tables(list(dict.fromkeys([*columns, *needed]))):
            annotations = table["annotations"].combine_chunks()
            corrections: dict[int, str] = {}
            if self._by_key and pc.any(pc.is_in(annotations.flatten().field("id"), ids)).as_py():
                regions = [
                    [self._corrected(region, corrections) for region in row or ()] for row in annotations.to_pylist()
                ]
                place = table.column_names.index("annotations")
                name = table.schema.field("annotations")
                table = table.set_column(place, name, pa.array(regions, annotations.type))  # noqa: PLW2901
            notes[UNKNOWN] -= len(corrections)
            rows = selector.choose(table).to_pylist()
            for row in rows if corrections else ():
                changes = [corrections.get(region["id"]) for region in row["annotations"]]
                notes.update(change for change in changes if change)
                regions_and_changes = zip(row["annotations"], changes, strict=True)
                row["annotations"] = [region for region, change in regions_and_changes if change != DELETED]
            yield table, rows

    def _corrected(self, region: dict[str, Any], corrections: dict[int, str]) -> dict[str, Any]:
        """Return a region with its corrected box, if it has one; note its correction by its id."""
        correction = self._by_key.get(RegionKey.of(region))
        if correction is None:
            return region
        if correction.box_xywh_px is None:
            corrections[region["id"]] = DELETED
            return region
        region, corrections[region["id"]] = moved(region, correction.box_xywh_px)
        return region


def moved(region: dict[str, Any], box_xywh_px: Box) -> tuple[dict[str, Any], str]:
    """Return a region with another box, and what became of its mask: `MOVED` or `BOXED`.

    The box is in whole pixels within the image, and the score is 1, since a person drew it. The mask is cut to the box;
    where it reaches over less than half of the box, the box replaces it, since COCO's readers need a mask that is in
    the box. Raise InputError if the mask is damaged.
    """
    mask = mask_of(region)
    height, width = mask.shape
    x0, y0, x1, y1 = map(round, xywh_to_xyxy(box_xywh_px))
    x0 = min(x0, width - 1)
    y0 = min(y0, height - 1)
    x1 = max(x0 + 1, min(x1, width))
    y1 = max(y0 + 1, min(y1, height))
    inside = np.zeros_like(mask)
    cut = mask[y0:y1, x0:x1]
    places = np.argwhere(cut)
    reaches = len(places) and 2 * (np.ptp(places, axis=0) + 1).prod() >= cut.size
    inside[y0:y1, x0:x1] = cut if reaches else True
    segmentation = {"size": [height, width], "counts": encode_mask(inside).counts}
    box = [float(edge) for edge in xyxy_to_xywh((x0, y0, x1, y1))]
    changed = {**region, "bbox": box, "area": int(inside.sum()), "segmentation": segmentation, "score": 1.0}
    return changed, MOVED if reaches else BOXED
