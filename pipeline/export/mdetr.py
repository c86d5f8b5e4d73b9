"""Mixed-grounding JSON as MDETR, GLIP and YOLO-World read it: SPLIT.json, one image entry for each caption.

By things (`per="group"`), there is one entry for each image, whose `caption` holds all captions.

MDETR's `datasets/coco.py` and `mixed.py`, GLIP's `MixedDataset`, YOLO-World's `YOLOv5MixedGroundingDataset`. Boxes are
[x, y, w, h] px, `tokens_positive` are [start, end) characters of the entry's `caption`. YOLO-World makes the class text
of a region from the words of its spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pipeline.export.base import (
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    Tolerance,
    phrase_entry,
    polygons_of,
)
from pipeline.export.coco import CocoFile
from pipeline.export.images import ImageFolders
from stages.contract.records import stable_id

_CATEGORIES: Final = ({"id": 1, "name": "object", "supercategory": "object"},)


class MdetrConfig(FormatConfig):
    """Settings of `mdetr`."""

    tolerance_px: Tolerance = 1.0
    """Tolerance of the polygons, which most readers of the format ignore; the exact mask is in `rle`."""

    images: bool = False
    """Also write the images. Without them `file_name` is the dataset's, relative to its image root."""


class Mdetr(Exporter):
    """Mixed grounding."""

    name = "mdetr"
    summary = "SPLIT.json with an entry for each image and caption, for MDETR, GLIP and YOLO-World"
    masks = "polygons within a pixel, which MDETR's masks want, holes filled; exact as RLE in a field `rle`"
    needs_words = True
    config_type = MdetrConfig

    def __init__(self, config: MdetrConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        self._images = ImageFolders(job, "images/{split}", written=config.images)
        self._files = self.for_splits(lambda split: CocoFile(job.folder.file(f"{split}.json"), _CATEGORIES))

    def add(self, sample: ChosenSample) -> None:
        """See `Exporter.add`."""
        row, file = sample.row, self._files[sample.split]
        file_name = self._images.place(sample)
        # A caption without regions beside one with regions would be a picture without objects.
        for index, caption, regions in sample.texts():
            image_id = stable_id(f"{row['sample_id']}\ncaption {index}")
            file.image(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "width": row["width"],
                    "height": row["height"],
                    "caption": caption,
                    "dataset_name": "phrasebox",
                    "tokens_negative": [[0, len(caption)]],
                    "tokens_positive_eval": _different(spans for _, spans in regions),
                    "sentence_id": index,
                    "original_img_id": row["id"],
                }
            )
            for region, spans in regions:
                file.annotation(self._annotation(region, spans, image_id))

    def _annotation(self, region: dict[str, Any], spans: list[list[int]], image_id: int) -> dict[str, Any]:
        return {
            "id": region["id"],
            "image_id": image_id,
            "category_id": 1,
            "bbox": region["bbox"],
            "area": region["area"],
            "segmentation": polygons_of(region, self.job.report, self.config.tolerance_px),
            "iscrowd": 0,
            "tokens_positive": spans,
            "rle": region["segmentation"],
            **phrase_entry(region),
        }


def _different(phrases: Iterable[list[list[int]]]) -> list[list[list[int]]]:
    """The different phrases, or things, each as its spans, in the order of the caption."""
    return [list(map(list, each)) for each in sorted({tuple(map(tuple, spans)) for spans in phrases})]
