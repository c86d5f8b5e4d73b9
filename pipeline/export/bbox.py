"""Files beside each image for layout-to-image training: NAME.bbox with labels and boxes, NAME.txt with the captions.

SimpleTuner (simpletuner/helpers/training/grounding/metadata.py): a line of NAME.bbox is `{"label": "red dress", "bbox":
[x0, y0, x1, y1]}`, corners as shares 0 .. 1 of width and height. It splits lines as `str.splitlines` does, which also
ends one at U+2028 within a label, so labels are ASCII with escapes. A file with a box without extent counts as none. It
takes the first `max_grounding_entities` lines, so the best score comes first. A line of NAME.txt is a caption, and it
draws one.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.export.base import ChosenSample, Exporter, FormatConfig, Per
from phrasebox.stages.contract.geometry import xywh_to_xyxy


class BboxConfig(FormatConfig):
    """Settings of `bbox`: none."""


class Bbox(Exporter):
    """Boxes and captions beside the images."""

    summary = "SPLIT/ with the images, NAME.bbox and NAME.txt, for layout-to-image training (SimpleTuner)"
    masks = "none: it trains on boxes"
    next_step = (
        'in SimpleTuner\'s multidatabackend.json {{"id": "boxes", "type": "local", "dataset_type": "image", '
        '"instance_data_dir": "{out}/{split}", "caption_strategy": "textfile", "crop": false, '
        '"grounding": {{"enabled": true}}}}, and --max_grounding_entities 8'
    )
    needs_images = True  # its reader finds the boxes by the paths of the images
    config_type = BboxConfig
    image_folder = "{split}"

    @classmethod
    def usual_per(cls, config: Any) -> Per:
        """Return the default of `--per`: an object has one place in a layout."""
        return "group"

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        image = PurePosixPath(sample.split, self.image_name(sample))
        ranking = sorted(sample.regions, key=lambda region: -region["score"])
        captions = (" ".join(caption.split()) for caption in sample.row["captions"])
        texts = {
            ".bbox": [_line(region, sample.row) for region in ranking],
            ".txt": [f"{caption}\n" for caption in captions if caption],
        }
        for suffix, lines in texts.items():
            path = self.job.folder.file(str(image.with_suffix(suffix)))
            path.write_text("".join(lines), encoding="utf-8", newline="\n")


def _line(region: Annotation, row: Row) -> str:
    """Return label and box, rounded to a millionth of the side: a hundredth of a pixel at 10,000 pixels."""
    sides = (row["width"], row["height"]) * 2
    edges = xywh_to_xyxy(region["bbox"])
    box = [round(edge / side, 6) for edge, side in zip(edges, sides, strict=True)]
    return json.dumps({"label": region["phrase"], "bbox": box}) + "\n"
