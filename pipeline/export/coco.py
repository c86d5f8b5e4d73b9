"""COCO instances JSON: annotations/instances_SPLIT.json and, if wanted, images/SPLIT/; and FiftyOne's folder of it.

https://cocodataset.org/#format-data, with the captions in the images and MDETR's `tokens_positive` in the annotations.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pipeline.export.base import (
    Categories,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    Naming,
    Tolerance,
    dumped,
    phrase_entry,
    polygons_of,
)
from pipeline.export.images import ImageFolders
from pipeline.export.per_group import joined_caption, joined_spans

_INFO: Final = {"description": "Regions for the phrases of captions, made by phrasebox from CLIP alone; not reviewed"}


class CocoConfig(FormatConfig):
    """Settings of `coco`."""

    segmentation: Literal["rle", "polygons"] = "rle"
    """`rle` keeps every mask exactly; `polygons` fill holes. RLE is the default because it loses nothing and because
    pycocotools, faster-coco-eval, torchvision, detectron2, mmdetection, FiftyOne, datumaro and supervision 0.31 read it
    whatever `iscrowd` is. Older versions of supervision read it only with `iscrowd` 1, and some readers know only
    polygons."""

    tolerance_px: Tolerance = 0.0
    """Tolerance of polygons. The default is exact, and several times as long as RLE."""

    classes: Naming = "phrase"
    """What the categories are."""

    images: bool = False
    """Also write the images. Without them `file_name` is the dataset's, relative to its image root."""


class CocoLayout(Exporter):
    """A COCO JSON for each split, with dense category ids from 1 and the captions in the images.

    Attributes:
        json_file: Name of the JSON, with `{split}`.
        image_folder: Folder of the images, with `{split}`.
        images_are_flat: See `ImageFolders`.
    """

    json_file: ClassVar[str]
    image_folder: ClassVar[str]
    images_are_flat: ClassVar[bool] = False

    def __init__(self, config: Any, job: ExportJob) -> None:
        super().__init__(config, job)
        self._images = ImageFolders(
            job, self.image_folder, written=self.takes_images(config), flat=self.images_are_flat
        )
        self._files = self.for_splits(
            lambda split: CocoFile(job.folder.file(self.json_file.format(split=split)), _categories(job.categories))
        )

    def add(self, sample: ChosenSample) -> None:
        """See `Exporter.add`."""
        file = self._files[sample.split]
        file.image(_image_entry(sample, self._images.place(sample)))
        for region in sample.regions:
            category_id = self.job.categories.index_of(region) + 1
            file.annotation(_annotation_entry(sample, region, category_id, self.segmentation_of(region)))

    def segmentation_of(self, region: Mapping[str, Any]) -> Any:
        """What stands in an annotation's `segmentation`."""
        return region["segmentation"]


class Coco(CocoLayout):
    """COCO instances."""

    name = "coco"
    summary = (
        "annotations/instances_SPLIT.json, for pycocotools, torchvision, detectron2, mmdetection, supervision, "
        "datumaro; captions and tokens_positive in it"
    )
    masks = "exact as RLE; segmentation=polygons fills holes"
    config_type = CocoConfig
    json_file = "annotations/instances_{split}.json"
    image_folder = "images/{split}"

    def segmentation_of(self, region: Mapping[str, Any]) -> Any:
        """See `CocoLayout.segmentation_of`."""
        if self.config.segmentation == "rle":
            return region["segmentation"]
        return polygons_of(region, self.job.report, self.config.tolerance_px)


class FiftyoneConfig(FormatConfig):
    """Settings of `fiftyone`."""

    classes: Naming = "phrase"
    """What the labels are."""


class Fiftyone(CocoLayout):
    """A folder for FiftyOne: SPLIT/data/ with images and SPLIT/labels.json, its `COCODetectionDataset` layout.

    https://docs.voxel51.com/user_guide/import_datasets.html#cocodetectiondataset

        fiftyone.Dataset.from_dir(dataset_dir="OUT/train", dataset_type=fiftyone.types.COCODetectionDataset,
                                  label_types=["segmentations"], label_field="regions")
    """

    name = "fiftyone"
    summary = "SPLIT/data/ and SPLIT/labels.json, for FiftyOne's COCODetectionDataset"
    masks = "exact as RLE; import with label_types=segmentations"
    needs_images = True
    config_type = FiftyoneConfig
    json_file = "{split}/labels.json"
    image_folder = "{split}/data"
    images_are_flat = True


class CocoFile:
    """A COCO JSON, written in one pass: images go into the file, annotations beside it until the images are complete.

    Memory holds no entry. Close it exactly once, or `abandon` it.
    """

    def __init__(self, path: Path, categories: Iterable[Mapping[str, Any]]) -> None:
        self._beside = path.with_name(f"{path.name}.annotations")
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._annotations = self._beside.open("w", encoding="utf-8", newline="\n")
        self._first = {"image": True, "annotation": True}
        self._file.write(f'{{"info":{dumped(_INFO)},"licenses":[],"categories":[')
        for number, category in enumerate(categories):
            self._file.write(("," if number else "") + "\n" + dumped(category))
        self._file.write('],\n"images":[')

    def image(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry of `images`."""
        self._file.write(("\n" if self._first["image"] else ",\n") + dumped(entry))
        self._first["image"] = False

    def annotation(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry of `annotations`."""
        self._annotations.write(("\n" if self._first["annotation"] else ",\n") + dumped(entry))
        self._first["annotation"] = False

    def close(self) -> None:
        """Completes the file."""
        self._annotations.close()
        self._file.write('],\n"annotations":[')
        self._file.flush()
        with self._beside.open("rb") as annotations:
            shutil.copyfileobj(annotations, self._file.buffer)
        self._file.write("]}\n")
        self._file.close()
        self._beside.unlink()

    def abandon(self) -> None:
        """Closes the files as they are."""
        self._annotations.close()
        self._file.close()


def _categories(categories: Categories) -> Iterable[dict[str, Any]]:
    """COCO's categories, with dense ids from 1 in the order of the names."""
    for number, (name, head) in enumerate(zip(categories.names, categories.heads, strict=True), start=1):
        yield {"id": number, "name": name, "supercategory": head}


def _image_entry(sample: ChosenSample, file_name: str) -> dict[str, Any]:
    """COCO's image with the captions.

    `caption` holds all captions, each on a line of its own, so that `tokens_positive` counts in one text; `captions`
    holds them one by one, which `caption_index` and `span` of the annotations count in.
    """
    row = sample.row
    return {
        "id": row["id"],
        "file_name": file_name,
        "width": row["width"],
        "height": row["height"],
        "caption": joined_caption(row["captions"]),
        "captions": row["captions"],
        "sample_id": row["sample_id"],
    }


def _annotation_entry(
    sample: ChosenSample, region: Mapping[str, Any], category_id: int, segmentation: Any
) -> dict[str, Any]:
    """COCO's annotation: bbox [x, y, w, h] px, area of the mask, iscrowd 0; and the link to the caption.

    `tokens_positive` is [[start, end)] in the image's `caption`, of each phrase where a region has several.
    """
    return {
        "id": region["id"],
        "image_id": region["image_id"],
        "category_id": category_id,
        "bbox": region["bbox"],
        "area": region["area"],
        "segmentation": segmentation,
        "iscrowd": 0,
        "tokens_positive": joined_spans(sample.row["captions"], region),
        **phrase_entry(region),
    }
