"""Corrections by people (`pipeline.dataset.reviews`), applied before an export chooses regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.dataset.folder import Dataset
from pipeline.dataset.reviews import RegionKey, read_reviews
from pipeline.dataset.rows import Annotation, Row
from pipeline.dataset.selection import REGION, Selector
from pipeline.export.base import mask_of
from stages.contract.geometry import Box, whole_pixels, xywh_to_xyxy, xyxy_to_xywh
from stages.contract.masks import encode_mask

DELETED_REGIONS: Final = "regions that people deleted: left out"
CORRECTED_BOXES: Final = "regions whose box people corrected: their score is 1.0, their mask is cut to it"
REPLACED_MASKS: Final = (
    "regions with a box that a person moved away from the mask: their score is 1.0, their mask is the box"
)
DRAWN: Final = "person"  # `bbox_of` of a box that somebody drew
UNKNOWN_REGIONS: Final = "corrections of regions that are not in the dataset: not applied"

_FIELDS: Final = ("id", "phrase", "bbox", "area", "segmentation", "score")


class CorrectedDataset:
    """A dataset with the corrections of its reviewers.

    Raise InputError if the reviews cannot be read.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._by_key = read_reviews(dataset.path).corrections

    def tables(
        self, columns: Sequence[str], selector: Selector, notes: Counter[str]
    ) -> Iterator[tuple[Any, list[Row]]]:
        """Yield `Dataset.tables` with corrected boxes, and their rows with the chosen regions.

        Deleted regions stay in the tables, but not in the rows. `notes` count the corrections of
        chosen regions, and those that match no region in the dataset.
        """
        notes[UNKNOWN_REGIONS] += len(self._by_key)
        if self._by_key and "annotations" not in columns:
            columns = list(dict.fromkeys([*columns, *(REGION + name for name in _FIELDS)]))
        for table in self.dataset.tables(columns):
            corrections: dict[int, str] = {}
            if self._by_key:
                annotations = table["annotations"].combine_chunks()
                regions = [
                    [self._correct(region, corrections) for region in row]
                    for row in annotations.to_pylist()
                ]
                place = table.column_names.index("annotations")
                column = pa.array(regions, annotations.type)
                table = table.set_column(place, table.schema.field(place), column)  # noqa: PLW2901
            notes[UNKNOWN_REGIONS] -= len(corrections)
            rows = selector.choose(table).to_pylist()
            for row in rows if corrections else ():
                changes = [corrections.get(region["id"]) for region in row["annotations"]]
                notes.update(filter(None, changes))
                regions_and_changes = zip(row["annotations"], changes, strict=True)
                row["annotations"] = [
                    region for region, change in regions_and_changes if change != DELETED_REGIONS
                ]
            yield table, rows

    def _correct(self, region: Annotation, corrections: dict[int, str]) -> Annotation:
        """Return a region with its corrected box; add a note of its correction to `corrections`."""
        correction = self._by_key.get(RegionKey.of(region))
        if correction is None:
            return region
        if correction.box_xywh_px is None:
            corrections[region["id"]] = DELETED_REGIONS
            return region
        region, corrections[region["id"]] = replace_box(region, correction.box_xywh_px)
        return region


def replace_box(region: Annotation, box_xywh_px: Box) -> tuple[Annotation, str]:
    """Return a region with another box, and the note on its mask.

    The box is rounded to pixels within the image, and the score is 1, since a person drew it. The
    mask is cut to the box. If the rest spans less than half of the box, the box replaces the
    mask: COCO's readers need a mask in the box. Raise InputError if the mask is damaged.
    """
    mask = mask_of(region)
    height, width = mask.shape
    x0, y0, x1, y1 = whole_pixels(xywh_to_xyxy(box_xywh_px), (height, width))
    corrected_mask = np.zeros_like(mask)
    cut = mask[y0:y1, x0:x1]
    places = np.argwhere(cut)
    fills_box = len(places) and 2 * (np.ptp(places, axis=0) + 1).prod() >= cut.size
    corrected_mask[y0:y1, x0:x1] = cut if fills_box else True
    segmentation = {"size": [height, width], "counts": encode_mask(corrected_mask).counts}
    box = [float(edge) for edge in xyxy_to_xywh((x0, y0, x1, y1))]
    area = int(corrected_mask.sum())
    corrected_region = {
        **region,
        "bbox": box,
        "bbox_of": DRAWN,
        "area": area,
        "segmentation": segmentation,
        "score": 1.0,
    }
    return corrected_region, CORRECTED_BOXES if fills_box else REPLACED_MASKS
