"""Corrections by people (`phrasebox.pipeline.dataset.reviews`), applied before exports and loaders choose regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.reviews import RegionKey, read_reviews
from phrasebox.pipeline.dataset.rows import Annotation, mask_of
from phrasebox.pipeline.dataset.selection import REGION, Selector, keep_regions, regions_in
from phrasebox.stages.contract.geometry import Box, whole_pixels, xywh_to_xyxy, xyxy_to_xywh
from phrasebox.stages.contract.masks import encode_mask

DELETED_REGIONS: Final = "regions that people deleted: left out"
CORRECTED_BOXES: Final = "regions whose box people corrected: their score is 1.0, their mask is cut to it"
REPLACED_MASKS: Final = (
    "regions with a box that a person moved away from the mask: their score is 1.0, their mask is the box"
)
DRAWN: Final = "person"  # `bbox_of` of a box that somebody drew
UNKNOWN_REGIONS: Final = "corrections of regions that are not in the dataset: not applied"

_FIELDS: Final = ("id", "phrase", "bbox", "area", "segmentation", "score")


class Corrections:
    """The corrections of a dataset's reviewers.

    Raise InputError if the reviews cannot be read.

    Attributes:
        by_key: Region -> its correction.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.by_key = read_reviews(dataset.path).corrections
        self._ids = pa.array(sorted({key.annotation_id for key in self.by_key}), pa.int64())

    def columns(self, columns: Sequence[str]) -> list[str]:
        """Return the paths of columns, and of those that corrections need."""
        needs_more = self.by_key and "annotations" not in columns
        return list(dict.fromkeys([*columns, *(REGION + name for name in _FIELDS if needs_more)]))

    def correct(self, table: Any) -> CorrectedTable:
        """Return a table of rows with corrected boxes; deleted regions are still in it."""
        notes: dict[int, str] = {}
        annotations = table["annotations"].combine_chunks()
        if self.by_key and pc.any(pc.is_in(annotations.flatten().field("id"), self._ids)).as_py():
            regions = [
                row and [self._correct(region, notes) for region in row] for row in annotations.to_pylist()
            ]
            place = table.column_names.index("annotations")
            column = pa.array(regions, annotations.type)
            table = table.set_column(place, table.schema.field(place), column)
        return CorrectedTable(table, notes)

    def _correct(self, region: Annotation, notes: dict[int, str]) -> Annotation:
        """Return a region with its corrected box; add a note of its correction."""
        correction = self.by_key.get(RegionKey.of(region))
        if correction is None:
            return region
        if correction.box_xywh_px is None:
            notes[region["id"]] = DELETED_REGIONS
            return region
        region, notes[region["id"]] = replace_box(region, correction.box_xywh_px)
        return region


class CorrectedTable(NamedTuple):
    """Rows with corrected boxes.

    Attributes:
        table: The rows; deleted regions are still in it.
        notes: Id of a corrected or deleted region -> what was done with it.
    """

    table: Any
    notes: Mapping[int, str]

    def choose(self, selector: Selector, counts: Counter[str] | None = None) -> Any:
        """Return the table with only the chosen regions in `annotations`, and without deleted ones.

        counts: Counts the notes of chosen regions.
        """
        chosen = selector.choose(self.table)
        if not self.notes:
            return chosen
        notes = [self.notes.get(number) for number in regions_in(chosen)[0].field("id").to_pylist()]
        if counts is not None:
            counts.update(filter(None, notes))
        return keep_regions(chosen, np.array([note != DELETED_REGIONS for note in notes], np.bool_))


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
