"""Ultralytics YOLO: data.yaml, images/SPLIT/, labels/SPLIT/ with a text file for each image.

https://docs.ultralytics.com/datasets/segment/: a line is `class x0 y0 x1 y1 ...`, one closed
outline, or `class cx cy w h`; shares 0 .. 1 of width and height. One outline can express neither
holes nor several parts. Holes are filled. Parts are joined by a line of no width from a corner to
the nearest one and back, as Ultralytics' own COCO converter does; when the outline is drawn
again, the line is a pixel wide.

Ultralytics' open-vocabulary datasets (YOLO-World, YOLOE) split the name of a class at "/" into
synonyms and draw one of them for each image.
"""

from __future__ import annotations

import json
import re
from typing import Final, Literal

import numpy as np
from pydantic import Field

from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.export.base import (
    WITHIN_A_PIXEL,
    CategoryField,
    ChosenSample,
    Exporter,
    ExportJob,
    FormatConfig,
    polygons_of,
)
from phrasebox.stages.contract.values import Floats

PARTS: Final = "masks of several parts: joined by lines of no width, since a label is one outline"
SLASHES: Final = (
    'names with "/": written as a space, since Ultralytics reads it as the sign between synonyms'
)

_UNPRINTABLE: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that YAML wants escaped, or folds as the end of a line, and JSON leaves as they
are."""


class YoloConfig(FormatConfig):
    """Settings of `yolo`."""

    labels: Literal["polygons", "boxes"] = Field(
        "polygons",
        description="Outlines for YOLO's segmentation, or boxes for detection, which drops the masks.",
    )
    classes: CategoryField = Field(
        "head",
        description="Categories. A closed vocabulary of all phrases is too long for a detection head.",
    )
    synonyms: bool = Field(
        False,
        description="Also name a class by other names of its objects that are no class, `boy/young child`, as "
        "YOLO-World and YOLOE read it. Needs --per group, the default.",
    )

    @property
    def task(self) -> str:
        """Ultralytics' name of the task that the labels train."""
        return "segment" if self.labels == "polygons" else "detect"


class Yolo(Exporter):
    """Ultralytics labels."""

    summary = "data.yaml, images/SPLIT/, labels/SPLIT/, for Ultralytics YOLO (segment or detect)"
    masks = "one outline: holes are filled, parts joined; labels=boxes drops the masks"
    next_step = 'yolo {config.task} train data="{out}/data.yaml"'
    needs_images = True  # Ultralytics finds the labels by the paths of the images
    config_type = YoloConfig
    image_folder = "images/{split}"
    flat_images = True

    def __init__(self, config: YoloConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        for split in job.splits:
            job.folder.make(f"labels/{split}")
        lines = [f"{split}: images/{split}\n" for split in job.splits]
        last = job.splits[-1]
        for missing in [split for split in ("train", "val") if split not in job.splits]:
            # Ultralytics rejects a file without them.
            lines.append(f"{missing}: images/{last}\n")
            self.notes[f"missing split that Ultralytics needs: {missing} uses the {last} images"] += 1
        lines.append("names:" + ("\n" if job.categories.names else " {}\n"))
        for index, name in enumerate(job.categories.names):
            texts = [name, *job.categories.synonyms.get(name, ())]
            self.notes[SLASHES] += sum("/" in text for text in texts)
            lines.append(f"  {index}: {quote_yaml('/'.join(text.replace('/', ' ') for text in texts))}\n")
        job.folder.text("data.yaml").writelines(lines)

    def add(self, sample: ChosenSample) -> None:
        """Write one sample."""
        stem, _, _ = self.image_name(sample).rpartition(".")
        as_line = self._outline if self.config.labels == "polygons" else _box
        lines = [
            f"{self.job.categories.index_of(region)} {as_line(region, sample.row)}\n"
            for region in sample.regions
        ]
        if self.config.labels == "boxes":
            self.notes["masks dropped: labels=boxes"] += len(lines)
        path = self.job.folder.file(f"labels/{sample.split}/{stem}.txt")
        path.write_text("".join(lines), encoding="ascii", newline="\n")

    def _outline(self, region: Annotation, row: Row) -> str:
        parts = [
            np.array(polygon).reshape(-1, 2) for polygon in polygons_of(region, self.notes, WITHIN_A_PIXEL)
        ]
        self.notes[PARTS] += len(parts) > 1
        return _numbers(join_outlines(parts) / (row["width"], row["height"]))


def join_outlines(parts: list[Floats]) -> Floats:
    """Join outlines to a closed one (n, 2): each further part is a detour from the nearest corner and back."""
    outline, *further_parts = parts
    for part in further_parts:
        distances = np.square(outline[:, None] - part[None]).sum(axis=2)
        corner, part_corner = np.unravel_index(distances.argmin(), distances.shape)
        loop = np.roll(part, -part_corner, axis=0)
        outline = np.concatenate([outline[: corner + 1], loop, loop[:1], outline[corner:]])
    return outline


def _box(region: Annotation, row: Row) -> str:
    x, y, w, h = region["bbox"]
    width = row["width"]
    height = row["height"]
    return _numbers(np.array([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]))


def _numbers(values: Floats) -> str:
    """Round to a millionth of the side: a hundredth of a pixel at 10,000 pixels."""
    return " ".join(f"{value:.6f}".rstrip("0").rstrip(".") for value in values.ravel().tolist())


def quote_yaml(name: str) -> str:
    """Return a name as a YAML string: a JSON string with a few more characters escaped."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(name, ensure_ascii=False))
