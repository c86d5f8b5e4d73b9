"""A folder for FiftyOne: SPLIT/data/ with images and SPLIT/labels.json, its `COCODetectionDataset` layout.

https://docs.voxel51.com/user_guide/import_datasets.html#cocodetectiondataset

    fiftyone.Dataset.from_dir(dataset_dir="OUT/train", dataset_type=fiftyone.types.COCODetectionDataset,
                              label_types=["segmentations"], label_field="regions")
"""

from __future__ import annotations

from stages.dataset.export.base import FormatConfig, Naming
from stages.dataset.export.coco import CocoLayout


class FiftyoneConfig(FormatConfig):
    """Settings of `fiftyone`."""

    classes: Naming = "phrase"
    """What the labels are."""


class Fiftyone(CocoLayout):
    """FiftyOne's COCO layout."""

    name = "fiftyone"
    summary = "SPLIT/data/ and SPLIT/labels.json, for FiftyOne's COCODetectionDataset"
    masks = "exact as RLE; import with label_types=segmentations"
    needs_images = True
    config_type = FiftyoneConfig
    json_file = "{split}/labels.json"
    image_folder = "{split}/data"
