"""Mixed-grounding JSON as MDETR, GLIP and YOLO-World read it: SPLIT.json, one image entry for each caption.

MDETR's `datasets/coco.py` and `mixed.py`, GLIP's `MixedDataset`, YOLO-World's `YOLOv5MixedGroundingDataset`. Boxes are
[x, y, w, h] px, `tokens_positive` are [start, end) characters of the entry's `caption`. YOLO-World makes the class text
of a region from the words of its spans.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from stages.contract.records import stable_id
from stages.dataset.export.base import ChosenSample, Config, Exporter, Job
from stages.dataset.export.coco_file import CocoFile, Tolerance, phrase_entry, polygons_of
from stages.dataset.export.image_files import ImageFolders

_CATEGORIES: Final = ({"id": 1, "name": "object", "supercategory": "object"},)


class MdetrConfig(Config):
    """Settings of `mdetr`."""

    tolerance_px: Tolerance = 1.0
    """Of the polygons, which most readers of the format pass over; the exact mask is in `rle`."""

    images: bool = False
    """Also write the images. Without them `file_name` is what the dataset says, below its image root."""


class Mdetr(Exporter):
    """Mixed grounding."""

    summary: ClassVar[str] = "SPLIT.json with an entry for each image and caption, for MDETR, GLIP and YOLO-World"
    masks: ClassVar[str] = (
        "polygons within a pixel, which MDETR's masks want, holes filled; exact as RLE in a field `rle`"
    )
    config_type: ClassVar[type[Config]] = MdetrConfig

    def __init__(self, config: MdetrConfig, job: Job) -> None:
        super().__init__(config, job)
        self._images = ImageFolders(job.target, job.splits, "images/{split}", written=config.images)
        self._files = {split: CocoFile(job.target.file(f"{split}.json"), _CATEGORIES) for split in job.splits}

    def add(self, sample: ChosenSample) -> None:
        """See `Exporter.add`."""
        row, file = sample.row, self._files[sample.split]
        file_name = self._images.place(sample)
        for index, regions in sample.captions_with_regions():
            # A caption that names nothing beside one that does is no entry: it would be a picture without objects.
            if not regions and sample.regions:
                continue
            caption = row["captions"][index]
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
                    "tokens_positive_eval": [[span] for span in _spans(regions)],
                    "sentence_id": index,
                    "original_img_id": row["id"],
                }
            )
            for region in regions:
                file.annotation(self._annotation(region, image_id))

    def _annotation(self, region: dict[str, Any], image_id: int) -> dict[str, Any]:
        return {
            "id": region["id"],
            "image_id": image_id,
            "category_id": 1,
            "bbox": region["bbox"],
            "area": int(region["area"]),
            "segmentation": polygons_of(region, self.job.report, self.config.tolerance_px),
            "iscrowd": 0,
            "tokens_positive": [region["span"]],
            "rle": region["segmentation"],
            **phrase_entry(region),
        }

    def close(self) -> None:
        """See `Exporter.close`."""
        for file in self._files.values():
            file.close()

    def abandon(self) -> None:
        """See `Exporter.abandon`."""
        for file in self._files.values():
            file.abandon()


def _spans(regions: list[dict[str, Any]]) -> list[list[int]]:
    """Different spans in the order of the caption."""
    return [list(span) for span in sorted({tuple(region["span"]) for region in regions})]
