"""COCO instances JSON: annotations/instances_SPLIT.json and, if wanted, images/SPLIT/; and FiftyOne's folder of it.

https://cocodataset.org/#format-data, with the captions in the images and MDETR's `tokens_positive` in the annotations.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from pipeline.export.base import (
    NAMED,
    PHRASE_KEYS,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    Naming,
    Tolerance,
    WithImages,
    dumped,
    joined_caption,
    joined_spans,
    polygons_of,
    shortest,
)

_INFO: Final = {"description": "Regions for the phrases of captions, made by phrasebox from CLIP alone; not reviewed"}


class CocoConfig(FormatConfig):
    """Settings of `coco`.

    RLE is the default because it loses nothing and because pycocotools, faster-coco-eval, torchvision, detectron2,
    mmdetection, FiftyOne, datumaro and supervision 0.31 read it whatever `iscrowd` is. Older versions of supervision
    read it only with `iscrowd` 1, and some readers know only polygons.
    """

    segmentation: Literal["rle", "polygons"] = Field(default="rle", description="RLE is exact, polygons fill holes.")
    tolerance_px: Tolerance = Field(default=0.0, description="Of polygons. The default is exact, and longer than RLE.")
    classes: Naming = "phrase"
    images: WithImages = False


class CocoLayout(Exporter):
    """A COCO JSON for each split, with dense category ids from 1 and the captions in the images.

    `caption` holds all captions, each on a line of its own, so that `tokens_positive`, the [start, end) of each phrase
    of a region, counts in one text. `captions` holds them one by one, which `caption_index` and `span` count in.

    Attributes:
        json_file: Name of the JSON, with `{split}`.
    """

    json_file: ClassVar[str]

    def __init__(self, config: Any, job: ExportJob) -> None:
        super().__init__(config, job)
        named = enumerate(zip(job.categories.names, job.categories.heads, strict=True), start=1)
        categories = [{"id": number, "name": name, "supercategory": head} for number, (name, head) in named]
        self._files = self.for_splits(
            lambda split: CocoFile(job.folder.file(self.json_file.format(split=split)), categories)
        )

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        file, row = self._files[sample.split], sample.row
        file.image(
            {
                "id": row["id"],
                "file_name": self.image_name(sample),
                "width": row["width"],
                "height": row["height"],
                "caption": joined_caption(row["captions"]),
                "captions": row["captions"],
                "sample_id": row["sample_id"],
            }
        )
        for region in sample.regions:
            category_id = self.job.categories.index_of(region) + 1
            spans = joined_spans(row["captions"], region)
            segmentation = self.segmentation_of(region)
            file.annotation(
                coco_annotation(
                    region, region["image_id"], category_id, segmentation=segmentation, tokens_positive=spans
                )
            )

    def segmentation_of(self, region: Mapping[str, Any]) -> Any:
        """Return what stands in an annotation's `segmentation`."""
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
        """Return the mask as RLE or as polygons."""
        if self.config.segmentation == "rle":
            return region["segmentation"]
        return polygons_of(region, self.job.report, self.config.tolerance_px)


class FiftyoneConfig(FormatConfig):
    """Settings of `fiftyone`."""

    classes: Naming = "phrase"


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
    flat_images = True


def phrase_entry(region: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the dataset knows of a region and COCO has no name for.

    `presence` and `group` are left out where they are unknown. `phrases` are all those of a thing, in an export by
    things.
    """
    known = {name: region[name] for name in ("presence", "group") if region[name] is not None}
    if "presence" in known:
        known["presence"] = shortest(known["presence"])
    if NAMED in region:
        known["phrases"] = region[NAMED]
    return {
        **{key: region[key] for key in PHRASE_KEYS},
        "score": shortest(region["score"]),
        "similarity": shortest(region["similarity"]),
        **known,
    }


def coco_annotation(region: Mapping[str, Any], image_id: int, category_id: int, **more: Any) -> dict[str, Any]:
    """Return COCO's annotation: bbox [x, y, w, h] px, area of the mask, iscrowd 0; `more` replaces or adds keys."""
    entry = {"id": region["id"], "image_id": image_id, "category_id": category_id}
    entry |= {key: region[key] for key in ("bbox", "area", "segmentation")}
    return {**entry, "iscrowd": 0, **more, **phrase_entry(region)}


class CocoFile:
    """A COCO JSON, written in one pass: images go into the file, annotations beside it until the images are complete.

    Memory holds no entry. Close it exactly once, or `abandon` it.
    """

    def __init__(self, path: Path, categories: Iterable[Mapping[str, Any]]) -> None:
        self._beside = path.with_name(f"{path.name}.annotations")
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._annotations = self._beside.open("w", encoding="utf-8", newline="\n")
        self._starts = {"image": "\n", "annotation": "\n"}
        self._file.write(f'{{"info":{dumped(_INFO)},"licenses":[],"categories":[')
        self._file.write(",".join("\n" + dumped(category) for category in categories))
        self._file.write('],\n"images":[')

    def image(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of `images`."""
        self._file.write(self._starts["image"] + dumped(entry))
        self._starts["image"] = ",\n"

    def annotation(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of `annotations`."""
        self._annotations.write(self._starts["annotation"] + dumped(entry))
        self._starts["annotation"] = ",\n"

    def close(self) -> None:
        """Complete the file."""
        self._annotations.close()
        self._file.write('],\n"annotations":[')
        self._file.flush()
        with self._beside.open("rb") as annotations:
            shutil.copyfileobj(annotations, self._file.buffer)
        self._file.write("]}\n")
        self._file.close()
        self._beside.unlink()

    def abandon(self) -> None:
        """Close the files as they are."""
        self._annotations.close()
        self._file.close()
