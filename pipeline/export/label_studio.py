"""Label Studio tasks with pre-annotations: SPLIT.json, and label_config.xml for the labelling interface.

https://labelstud.io/guide/predictions: boxes are percent of the image's sides. All boxes of an
image are in one prediction, since the interface shows one at a time. A box carries all phrases of
its object as labels. The labels are loaded from the task: those of its captions, with or without
a box. Phrases judged absent are ticked below the image.

`phrasebox.stages.truth.label_studio` reads the corrected tasks as ground truth.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from pydantic import Field

from phrasebox.pipeline.dataset.rows import Annotation, Row, absent_phrases
from phrasebox.pipeline.export.base import (
    OBJECT_PHRASES,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    Per,
    WithImages,
    join_captions,
    shorten_float,
)
from phrasebox.pipeline.export.files import RecordList
from phrasebox.stages.contract.values import Json

_INTERFACE: Final = """<View>
  <Text name="captions" value="$captions"/>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="label" toName="image" choice="multiple" value="$phrases"/>
  <Header value="Not in the image:"/>
  <Choices name="absent" toName="image" choice="multiple" value="$phrases" showInline="true"/>
</View>
"""


class LabelStudioConfig(FormatConfig):
    """Settings of `label-studio`."""

    address: str = Field(
        "/data/local-files/?d=images/",
        description="What stands before an image's name: the address of the folder of images in Label Studio, such as "
        "s3://bucket/folder/. Of local files, it serves folders below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.",
    )
    images: WithImages = False


class LabelStudio(Exporter):
    """Tasks with predictions."""

    summary = (
        "SPLIT.json with tasks and pre-annotations, and label_config.xml, for Label Studio; eval "
        "reads what it exports"
    )
    masks = "none: people correct boxes"
    next_step = (
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
        'LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="$(realpath "{images}/..")" label-studio; '
        'in a project with the interface of "{out}/label_config.xml" and the local files of "{images}", '
        'import "{out}/{split}.json"'
    )
    config_type = LabelStudioConfig
    image_folder = "images"

    def __init__(self, config: LabelStudioConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        job.folder.text("label_config.xml").write(_INTERFACE)
        self._version = f"phrasebox {job.dataset.manifest.get('model_fingerprint', '')}".strip()

    def open_split(self, split: str) -> RecordList:
        """Return the tasks of a split."""
        return RecordList(self.job.folder, f"{split}.json")

    @classmethod
    def usual_per(cls, config: LabelStudioConfig) -> Per:
        """Return the default of `--per`: people correct the box of an object once."""
        return "group"

    def add(self, sample: ChosenSample) -> None:
        """Write one task."""
        row = sample.row
        absent = absent_phrases(row)
        labels = [_labels_of(region) for region in sample.regions]
        unchosen = [region["phrase"] for region in sample.unchosen_regions]
        phrases = dict.fromkeys([*(label for group in labels for label in group), *unchosen, *absent])
        results = [
            _rectangle(region, row, group) for region, group in zip(sample.regions, labels, strict=True)
        ]
        scores = [result["score"] for result in results]
        if absent:
            choice = {"id": "absent", "from_name": "absent", "to_name": "image", "type": "choices"}
            results.append({**choice, "value": {"choices": absent}})
        prediction = {
            "model_version": self._version,
            "score": shorten_float(sum(scores) / len(scores)) if scores else 0.0,
            "result": results,
        }
        data = {
            "image": self._address_of(self.image_name(sample)),
            "file_name": row["file_name"],
            "sample_id": row["sample_id"],
            "captions": join_captions(row["captions"]),
            "phrases": [{"value": phrase} for phrase in phrases],
        }
        self.files[sample.split].add({"data": data, "predictions": [prediction]})

    def _address_of(self, name: str) -> str:
        """Return the address of an image; only those of the web are quoted."""
        address: str = self.config.address
        is_of_web = address.startswith(("/", "http://", "https://"))
        return address + (quote(name) if is_of_web else name)


def _labels_of(region: Annotation) -> list[str]:
    """Return the different phrases of an object, first its name."""
    mentions = region.get(OBJECT_PHRASES, ())
    return list(dict.fromkeys([region["phrase"], *(mention["phrase"] for mention in mentions)]))


def _rectangle(region: Annotation, row: Row, labels: list[str]) -> Json:
    """Return the pre-annotation of a region, in percent."""
    x, y, w, h = region["bbox"]
    width = row["width"]
    height = row["height"]
    place = {
        "x": 100 * x / width,
        "y": 100 * y / height,
        "width": 100 * w / width,
        "height": 100 * h / height,
    }
    return {
        "id": str(region["id"]),
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": shorten_float(region["score"]),
        "value": {**place, "rotation": 0, "rectanglelabels": labels},
    }
