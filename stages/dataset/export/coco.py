"""COCO instances JSON: annotations/instances_SPLIT.json and, if wanted, images/SPLIT/.

https://cocodataset.org/#format-data, with the captions in the images and MDETR's `tokens_positive` in the annotations.
"""

from __future__ import annotations

from typing import ClassVar

from stages.dataset.export.base import ChosenSample, Config, Exporter, Job
from stages.dataset.export.categories import Naming
from stages.dataset.export.coco_file import CocoSplits, Segmentation, Tolerance
from stages.dataset.export.image_files import ImageFolders


class CocoConfig(Config):
    """Settings of `coco`."""

    segmentation: Segmentation = "rle"
    """RLE by default, for it loses nothing and pycocotools, faster-coco-eval, torchvision, detectron2, mmdetection and
    FiftyOne, datumaro and supervision 0.31 read it whatever `iscrowd` is. Older versions of supervision read it only
    with `iscrowd` 1, and other readers not at all: they want polygons."""

    tolerance_px: Tolerance = 0.0
    """Of polygons; exact by default, and several times as long as RLE."""

    classes: Naming = "phrase"
    """What the categories are."""

    images: bool = False
    """Also write the images. Without them `file_name` is what the dataset says, below its image root."""


class Coco(Exporter):
    """COCO instances."""

    summary: ClassVar[str] = (
        "annotations/instances_SPLIT.json, for pycocotools, torchvision, detectron2, mmdetection, supervision, "
        "datumaro; captions and tokens_positive in it"
    )
    masks: ClassVar[str] = "exact as RLE; segmentation=polygons fills holes"
    config_type: ClassVar[type[Config]] = CocoConfig

    def __init__(self, config: CocoConfig, job: Job) -> None:
        super().__init__(config, job)
        self._images = ImageFolders(job.target, job.splits, "images/{split}", written=config.images)
        self._splits = CocoSplits(job, "annotations/instances_{split}.json", config.segmentation, config.tolerance_px)

    def add(self, sample: ChosenSample) -> None:
        """See `Exporter.add`."""
        self._splits.add(sample, self._images.place(sample))

    def close(self) -> None:
        """See `Exporter.close`."""
        self._splits.close()

    def abandon(self) -> None:
        """See `Exporter.abandon`."""
        self._splits.abandon()
