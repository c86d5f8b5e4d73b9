"""COCO instances JSON: annotations/instances_SPLIT.json; and FiftyOne's folder of it.

https://cocodataset.org/#format-data, with the captions in the images and MDETR's
`tokens_positive` in the annotations.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from phrasebox.pipeline.dataset.rows import Annotation, Row, absent_phrases
from phrasebox.pipeline.export.base import (
    OBJECT_PHRASES,
    PHRASE_KEYS,
    CategoryField,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    WithImages,
    join_captions,
    join_spans,
    polygons_of,
    shorten_float,
)
from phrasebox.pipeline.export.files import ExportFolder, compact_json
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.values import Json

_INFO: Final = {"description": "Regions for the phrases of captions, made by phrasebox from CLIP alone"}

ONLY_CATEGORY: Final = {"id": 1, "name": "object", "supercategory": "object"}
"""The category of formats without meaningful categories."""


class CocoConfig(FormatConfig):
    """Settings of `coco`.

    RLE is the default because it loses nothing and because pycocotools, faster-coco-eval,
    torchvision, detectron2, mmdetection, FiftyOne, datumaro and supervision 0.31 read it whatever
    `iscrowd` is (older ones only with 1).
    """

    segmentation: Literal["rle", "polygons"] = Field(
        "rle", description="RLE is exact, polygons fill holes."
    )
    classes: CategoryField = "phrase"
    first_id: Literal[0, 1] = Field(
        1,
        description="Id of the first category. With 0, as Open-GroundingDino's validation counts with "
        "use_coco_eval = False, label_list.py has the line for its configuration.",
    )
    ids: Literal["hash", "source"] = Field(
        "hash",
        description="Ids of images. `source` takes the sample ids, which must be whole numbers, so that results "
        "and the instances of COCO itself fit together.",
    )
    attributes: bool = Field(
        False,
        description="Also write phrase, head and score as `attributes` of an annotation, which Datumaro and CVAT read.",
    )
    images: WithImages = False


class CocoLayout(Exporter):
    """A COCO JSON for each split, with dense category ids from `first_id`.

    `caption` holds all captions, one on each line; `tokens_positive`, the [start, end) of each
    phrase of a region, counts in it. `captions` is a list of them, for `caption_index` and
    `span`.

    As in LVIS, `neg_category_ids` are the categories that are absent from an image: its absent
    phrases. Categories in `not_exhaustive_category_ids` may lack annotations: those of unchosen
    regions, and of further names of its objects. Other categories are unknown.
    """

    json_file: ClassVar[str]  # name of the JSON, with `{split}`

    def __init__(self, config: Any, job: ExportJob) -> None:
        self._first_id = getattr(config, "first_id", 1)
        super().__init__(config, job)

    def open_split(self, split: str) -> CocoFile:
        """Return the JSON of a split, with the categories."""
        names = self.job.categories.names
        entries = enumerate(zip(names, self.job.categories.heads, strict=True), start=self._first_id)
        categories = (
            {"id": number, "name": name, "supercategory": head} for number, (name, head) in entries
        )
        return CocoFile(self.job.folder, self.json_file.format(split=split), categories)

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        file = self.files[sample.split]
        row = sample.row
        categories = self.job.categories
        positive = {categories.index_of(region) for region in sample.regions}
        mentions = (mention for region in sample.regions for mention in region.get(OBJECT_PHRASES, ()))
        incomplete = categories.indices(map(categories.name_of, sample.unchosen_regions))
        incomplete |= categories.indices(map(categories.name_of, mentions)) - positive
        negative = categories.indices(absent_phrases(row)) - positive - incomplete
        image_id = self.image_id_of(row)
        file.image(
            {
                "id": image_id,
                "file_name": self.image_name(sample),
                "width": row["width"],
                "height": row["height"],
                "caption": join_captions(row["captions"]),
                "captions": row["captions"],
                "sample_id": row["sample_id"],
                "neg_category_ids": [self._first_id + index for index in sorted(negative)],
                "not_exhaustive_category_ids": [self._first_id + index for index in sorted(incomplete)],
            }
        )
        for region in sample.regions:
            category_id = categories.index_of(region) + self._first_id
            fields = {
                "tokens_positive": join_spans(row["captions"], region),
                **self.fields_of(region),
            }
            file.annotation(coco_annotation(region, image_id, category_id, **fields))

    def image_id_of(self, row: Row) -> int:
        """Return the id of a row's image."""
        image_id: int = row["id"]
        return image_id

    def fields_of(self, region: Annotation) -> Json:
        """Return the fields of an annotation that settings change."""
        return {}


class Coco(CocoLayout):
    """COCO instances."""

    summary = (
        "annotations/instances_SPLIT.json, for pycocotools, torchvision, detectron2, "
        "mmdetection, supervision, datumaro; captions and tokens_positive in it"
    )
    masks = "exact as RLE; segmentation=polygons fills holes"
    next_step = 'torchvision.datasets.CocoDetection("{images}", "{out}/annotations/instances_{split}.json")'
    config_type = CocoConfig
    json_file = "annotations/instances_{split}.json"
    image_folder = "images/{split}"

    def __init__(self, config: CocoConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        if config.first_id == 0:
            job.folder.text("label_list.py").write(f"label_list = {compact_json(job.categories.names)}\n")

    def image_id_of(self, row: Row) -> int:
        """Return the id of a row's image. Raise ConfigError if it is the sample id and no whole number."""
        if self.config.ids == "hash":
            return super().image_id_of(row)
        text = row["sample_id"]
        if not (text.isascii() and text.isdecimal() and str(int(text)) == text):
            raise ConfigError(
                f"the sample id {text!r} is no whole number; ids=hash numbers all samples", key="ids"
            )
        return int(text)

    def fields_of(self, region: Annotation) -> Json:
        """Return the mask as polygons, and the attributes, if the settings say so."""
        fields: Json = {}
        if self.config.segmentation == "polygons":
            fields["segmentation"] = polygons_of(region, self.notes)
        if self.config.attributes:
            attributes = {key: region[key] for key in ("phrase", "head")}
            fields["attributes"] = {**attributes, "score": shorten_float(region["score"])}
        return fields


class FiftyoneConfig(FormatConfig):
    """Settings of `fiftyone`."""

    classes: CategoryField = "phrase"


class Fiftyone(CocoLayout):
    """A folder for FiftyOne: SPLIT/data/ with images and SPLIT/labels.json.

    https://docs.voxel51.com/user_guide/import_datasets.html#cocodetectiondataset
    """

    summary = "SPLIT/data/ and SPLIT/labels.json, for FiftyOne's COCODetectionDataset"
    masks = "exact as RLE; import with label_types=segmentations"
    next_step = (
        'fiftyone.Dataset.from_dir(dataset_dir="{out}/{split}", dataset_type=fiftyone.types.COCODetectionDataset, '
        'label_types=["segmentations"], label_field="regions")'
    )
    needs_images = True
    config_type = FiftyoneConfig
    json_file = "{split}/labels.json"
    image_folder = "{split}/data"
    flat_images = True


def phrase_entry(region: Annotation) -> Json:
    """Return the fields of a region that COCO does not define.

    `presence` and `group` are left out if they are unknown, `refined` and `fallback` if the
    outline is that of the heat map, and `bbox_of` if the box is that of the mask. `phrases` are
    all phrases of an object, in an export by objects.
    """
    entry = {key: region[key] for key in PHRASE_KEYS}
    entry |= {
        key: shorten_float(region[key])
        for key in ("score", "similarity", "presence")
        if region[key] is not None
    }
    if region["group"] is not None:
        entry["group"] = region["group"]
    usual = (None, "none", "mask")
    entry |= {
        key: region[key] for key in ("refined", "fallback", "bbox_of") if region.get(key) not in usual
    }
    if OBJECT_PHRASES in region:
        entry["phrases"] = region[OBJECT_PHRASES]
    return entry


def coco_annotation(region: Annotation, image_id: int, category_id: int, **fields: Any) -> Json:
    """Return COCO's annotation; `fields` replace or add keys.

    `bbox` is [x, y, w, h] in px, `area` that of the mask, `iscrowd` 0.
    """
    entry = {"id": region["id"], "image_id": image_id, "category_id": category_id}
    entry |= {key: region[key] for key in ("bbox", "area", "segmentation")}
    return {**entry, "iscrowd": 0, **fields, **phrase_entry(region)}


class CocoFile:
    """A COCO JSON, written in one pass, with no entry in memory.

    Images go into the file, annotations into a temporary file until the images are complete.
    """

    def __init__(
        self, folder: ExportFolder, name: str, categories: Iterable[Json] = (ONLY_CATEGORY,)
    ) -> None:
        self._file = folder.text(name)
        spool = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n", dir=folder.path)  # noqa: SIM115
        self._annotations = folder.open_files.enter_context(spool)
        self._starts = {"image": "\n", "annotation": "\n"}
        self._file.write(f'{{"info":{compact_json(_INFO)},"licenses":[],"categories":[')
        self._file.write(",".join("\n" + compact_json(category) for category in categories))
        self._file.write('],\n"images":[')

    def image(self, entry: Json) -> None:
        """Add an entry of `images`."""
        self._file.write(self._starts["image"] + compact_json(entry))
        self._starts["image"] = ",\n"

    def annotation(self, entry: Json) -> None:
        """Add an entry of `annotations`."""
        self._annotations.write(self._starts["annotation"] + compact_json(entry))
        self._starts["annotation"] = ",\n"

    def close(self) -> None:
        """Complete the file."""
        self._file.write('],\n"annotations":[')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._file)
        self._file.write("]}\n")
