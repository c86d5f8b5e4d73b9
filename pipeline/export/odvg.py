"""ODVG, the JSON lines of Open-GroundingDino and mmdetection.

Open-GroundingDino (tools/ and datasets/odvg.py) and mmdetection's `ODVGDataset`. Boxes are [x0,
y0, x1, y1] px.

- `grounding`: one line for each caption that has regions, `tokens_positive` in it as mmdetection
  needs; a region for each box, since Open-GroundingDino reads one box a region.
  Open-GroundingDino ignores the caption and joins the phrases with " . ". There is no label map:
  with one, both readers look for `detection` and find nothing.
- `detection`: one line for each image, labels from 0 as in the label map.

Open-GroundingDino validates on `coco` with first_id=0.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from phrasebox.pipeline.dataset.rows import Annotation
from phrasebox.pipeline.export.base import (
    BEYOND_TOKENS,
    CategoryField,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    WithImages,
    is_beyond_tokens,
    shorten_float,
)
from phrasebox.pipeline.export.files import RecordLines, compact_json
from phrasebox.stages.contract.geometry import xywh_to_xyxy
from phrasebox.stages.contract.values import Json


class OdvgConfig(FormatConfig):
    """Settings of `odvg`."""

    form: Literal["grounding", "detection"] = Field(
        "grounding", description="`grounding` carries the captions; `detection` the categories."
    )
    classes: CategoryField = Field("phrase", description="Categories of `detection`.")
    images: WithImages = False


class Odvg(Exporter):
    """ODVG lines."""

    summary = (
        "SPLIT.jsonl, and with form=detection label_map.json, for Open-GroundingDino and "
        "MM-Grounding-DINO (mmdetection's ODVGDataset)"
    )
    masks = "exact as RLE in a field `segmentation` that both readers ignore: they train on boxes"
    next_step = (
        'Open-GroundingDino: "train": [{{"root": "{images}", "anno": "{out}/{split}.jsonl", "dataset_mode": "odvg"}}] '
        'in DATASETS.json (form=detection: also "label_map": "{out}/label_map.json"), '
        "then bash train_dist.sh GPUS config/cfg_odvg.py DATASETS.json LOGS"
    )
    needs_words = True
    keeps_empty = False  # Open-GroundingDino raises on an empty list
    config_type = OdvgConfig
    image_folder = "images/{split}"

    def __init__(self, config: OdvgConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        if config.form == "detection":
            labels = (
                f'\n"{index}":{compact_json(name)}' for index, name in enumerate(job.categories.names)
            )
            job.folder.text("label_map.json").write("{" + ",".join(labels) + "}\n")

    def open_split(self, split: str) -> RecordLines:
        """Return the lines of a split."""
        return RecordLines(self.job.folder, f"{split}.jsonl")

    @classmethod
    def category_field(cls, config: OdvgConfig) -> CategoryField | None:
        """Return what names the categories, which only the form `detection` has."""
        return config.classes if config.form == "detection" else None

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        row = sample.row
        categories = self.job.categories
        file = self.files[sample.split]
        start = {
            "filename": self.image_name(sample),
            "height": row["height"],
            "width": row["width"],
        }
        if self.config.form == "detection":
            instances = [
                _region(region, label=categories.index_of(region), category=categories.name_of(region))
                for region in sample.regions
            ]
            file.add({**start, "detection": {"instances": instances}})
            return
        for _, caption, regions in sample.texts():
            for _, spans in regions:
                self.notes[BEYOND_TOKENS] += is_beyond_tokens(caption, spans)
            lead = len(caption) - len(
                caption.lstrip()
            )  # mmdetection strips captions and keeps the places in them
            entries = [
                _region(
                    region,
                    phrase=region["phrase"],
                    tokens_positive=[[a - lead, b - lead] for a, b in spans],
                )
                for region, spans in regions
            ]
            file.add({**start, "grounding": {"caption": caption.strip(), "regions": entries}})


def _region(region: Annotation, **fields: Any) -> Json:
    box = list(xywh_to_xyxy(region["bbox"]))
    score = shorten_float(region["score"])
    return {"bbox": box, **fields, "segmentation": region["segmentation"], "score": score}
