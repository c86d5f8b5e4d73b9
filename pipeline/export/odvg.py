"""ODVG, the JSON lines of Open-GroundingDino and mmdetection: SPLIT.jsonl and label_map.json.

Open-GroundingDino (tools/ and datasets/odvg.py) and mmdetection's `ODVGDataset`. Boxes are [x0, y0, x1, y1] px.

- `grounding`: one line for each caption that has regions, `tokens_positive` in it as mmdetection needs; a region
  for each box, since Open-GroundingDino reads one box a region. Open-GroundingDino must not be given the label map
  for these lines (it would look for `detection`), ignores the caption and joins the phrases with " . ".
- `detection`: one line for each image, labels from 0 as in the label map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.export.base import (
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    JsonLines,
    Naming,
    dumped,
    shortest,
)
from pipeline.export.images import ImageFolders
from stages.contract.geometry import xywh_to_xyxy


class OdvgConfig(FormatConfig):
    """Settings of `odvg`."""

    form: Literal["grounding", "detection"] = "grounding"
    """`grounding` carries the captions; `detection` the categories."""

    classes: Naming = "phrase"
    """What the labels of `detection` and the label map are."""

    images: bool = False
    """Also write the images. Without them `filename` is the dataset's, relative to its image root."""


class Odvg(Exporter):
    """ODVG lines."""

    name = "odvg"
    summary = "SPLIT.jsonl and label_map.json, for Open-GroundingDino and MM-Grounding-DINO (mmdetection's ODVGDataset)"
    masks = "exact as RLE in a field `segmentation` that both readers ignore: they train on boxes"
    needs_words = True
    keeps_empty = False  # Open-GroundingDino raises on an empty list
    config_type = OdvgConfig

    def __init__(self, config: OdvgConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        self._images = ImageFolders(job, "images/{split}", written=config.images)
        self._files = self.for_splits(lambda split: JsonLines(job.folder.file(f"{split}.jsonl")))
        with job.folder.file("label_map.json").open("w", encoding="utf-8", newline="\n") as file:
            file.write("{")
            for index, name in enumerate(job.categories.names):
                file.write(("," if index else "") + f'\n"{index}":{dumped(name)}')
            file.write("}\n")

    def add(self, sample: ChosenSample) -> None:
        """See `Exporter.add`."""
        row = sample.row
        start = {"filename": self._images.place(sample), "height": row["height"], "width": row["width"]}
        file = self._files[sample.split]
        if self.config.form == "detection":
            instances = [self._instance(region) for region in sample.regions]
            file.add({**start, "detection": {"instances": instances}})
            return
        for _, caption, regions in sample.texts():
            grounding = {"caption": caption, "regions": [_region(region, spans) for region, spans in regions]}
            file.add({**start, "grounding": grounding})

    def _instance(self, region: Mapping[str, Any]) -> dict[str, Any]:
        categories = self.job.categories
        return {
            "bbox": list(xywh_to_xyxy(region["bbox"])),
            "label": categories.index_of(region),
            "category": categories.name_of(region),
            "segmentation": region["segmentation"],
            "score": shortest(region["score"]),
        }


def _region(region: Mapping[str, Any], spans: list[list[int]]) -> dict[str, Any]:
    return {
        "bbox": list(xywh_to_xyxy(region["bbox"])),
        "phrase": region["phrase"],
        "tokens_positive": spans,
        "segmentation": region["segmentation"],
        "score": shortest(region["score"]),
    }
