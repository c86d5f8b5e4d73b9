"""A folder for FiftyOne: SPLIT/data/ with images and SPLIT/labels.json, its `COCODetectionDataset` layout.

https://docs.voxel51.com/user_guide/import_datasets.html#cocodetectiondataset

    fiftyone.Dataset.from_dir(dataset_dir="OUT/train", dataset_type=fiftyone.types.COCODetectionDataset,
                              label_types=["segmentations"], label_field="regions")
"""

from __future__ import annotations

from typing import ClassVar

from stages.dataset.export.base import ChosenSample, Config, Exporter, Job
from stages.dataset.export.categories import Naming
from stages.dataset.export.coco_file import CocoSplits
from stages.dataset.export.image_files import ImageFolders


class FiftyoneConfig(Config):
    """Settings of `fiftyone`."""

    classes: Naming = "phrase"
    """What the labels are."""


class Fiftyone(Exporter):
    """FiftyOne's COCO layout."""

    summary: ClassVar[str] = "SPLIT/data/ and SPLIT/labels.json, for FiftyOne's COCODetectionDataset"
    masks: ClassVar[str] = "exact as RLE; import with label_types=segmentations"
    config_type: ClassVar[type[Config]] = FiftyoneConfig

    def __init__(self, config: FiftyoneConfig, job: Job) -> None:
        super().__init__(config, job)
        self._images = ImageFolders(job.target, job.splits, "{split}/data", written=True)
        self._splits = CocoSplits(job, "{split}/labels.json")

    @classmethod
    def takes_images(cls, config: FiftyoneConfig) -> bool:
        """Always."""
        return True

    def add(self, sample: ChosenSample) -> None:
        """See `Exporter.add`."""
        self._splits.add(sample, self._images.place(sample))

    def close(self) -> None:
        """See `Exporter.close`."""
        self._splits.close()

    def abandon(self) -> None:
        """See `Exporter.abandon`."""
        self._splits.abandon()
