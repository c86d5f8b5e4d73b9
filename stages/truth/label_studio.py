"""Tasks that people annotated in Label Studio, exported as JSON, as ground truth.

    [{"data": {"image": "...", "file_name": "1.jpg", "phrases": [{"value": "red car"}]},
      "annotations": [{"result": [{"type": "rectanglelabels", "original_width": 640, "original_height": 480,
                                   "value": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0,
                                             "rectanglelabels": ["red car"]}}]}]}]

https://labelstud.io/guide/task_format: places are percent of the image's sides. A turned
rectangle gives the box around it. Label Studio's own COCO export has polygons.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box, xyxy_to_xywh
from phrasebox.stages.files.json_files import read_json_as
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.truth.coco import Side, Words, check_different, groups_of
from phrasebox.stages.truth.ground_truth import GroundTruth, ImagesOnDemand, Match, TruthImage, TruthTarget

ABSENT: Final = "absent"  # Name of the choices that list phrases for nothing in the image

Percent = Annotated[float, Field(ge=-1000, le=1000)]


class RectangleValue(BaseModel):
    """A rectangle, turned clockwise about its first corner by `rotation` degrees."""

    x: Percent
    y: Percent
    width: Percent
    height: Percent
    rotation: Percent = 0.0
    rectanglelabels: list[Words]


class Rectangle(BaseModel):
    """A labelled rectangle."""

    original_width: Side
    original_height: Side
    value: RectangleValue

    @property
    def box_xywh_px(self) -> Box:
        """The box around the rectangle within the image."""
        sides = np.array([self.original_width, self.original_height])
        value = self.value
        corner, (width, height) = np.array([[value.x, value.y], [value.width, value.height]]) * sides / 100
        angle = math.radians(value.rotation)
        across = width * np.array([math.cos(angle), math.sin(angle)])
        down = height * np.array([-math.sin(angle), math.cos(angle)])
        corners = np.clip([corner, corner + across, corner + down, corner + across + down], 0, sides)
        x0, y0 = corners.min(axis=0).tolist()
        x1, y1 = corners.max(axis=0).tolist()
        return xyxy_to_xywh((x0, y0, x1, y1))


class ChoicesValue(BaseModel):
    """Choices that somebody ticked."""

    choices: list[str]


class Choices(BaseModel):
    """An answer about the whole image."""

    from_name: str = ""
    value: ChoicesValue


class OtherResult(BaseModel):
    """A comment, a rating and the like."""

    type: str

    @model_validator(mode="after")
    def _has_no_place(self) -> OtherResult:
        if self.type.endswith("labels"):
            raise ValueError(f"{self.type} are not read, only rectanglelabels: export the project as COCO")
        return self


def _kind_of(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if kind in ("rectanglelabels", "choices") else "other"


Result = Annotated[
    Annotated[Rectangle, Tag("rectanglelabels")]
    | Annotated[Choices, Tag("choices")]
    | Annotated[OtherResult, Tag("other")],
    Discriminator(_kind_of),
]


class TaskAnnotation(BaseModel):
    """What one person drew."""

    result: list[Result]
    was_cancelled: bool = False
    ground_truth: bool = False


class TaskData(BaseModel):
    """What a task shows; `phrases` are the labels that an export of phrasebox offers."""

    file_name: str = ""
    image: str = ""
    phrases: Any = None

    @property
    def image_name(self) -> str:
        """The image's name in the dataset, or the last part of its address; "" without both."""
        parts = urlsplit(self.image)
        path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
        return self.file_name or path.rpartition("/")[2]


class Task(BaseModel):
    """An image with the work of people."""

    data: TaskData
    annotations: list[TaskAnnotation]

    @property
    def results(self) -> list[Result] | None:
        """The annotation that is marked as ground truth, else the last one; None if nobody made one."""
        annotations = [annotation for annotation in self.annotations if not annotation.was_cancelled]
        annotations.sort(key=lambda annotation: annotation.ground_truth)
        return annotations[-1].result if annotations else None


def read_label_studio(path: Path) -> GroundTruth:
    """Return the ground truth of Label Studio's JSON.

    A target is a label of an image. In tasks that phrasebox exported, labels are phrases, and
    the phrases that somebody ticked as "Not in the image" are absent. In other tasks labels are
    categories. Tasks that nobody has annotated are left out. Of several annotations, the one
    that is marked as ground truth counts, or the last one.

    Groups: number, size and objects, as in `read_coco`.

    Raise InputError if the file cannot be read or has no annotated task, a task names no image,
    or two tasks have the same one.
    """
    annotated: dict[str, tuple[Task, list[Result]]] = {}
    names = []
    for number, task in enumerate(read_json_as(path, list[Task])):
        if (results := task.results) is None:
            continue
        if not task.data.image_name:
            raise InputError(
                f"{path}: [{number}].data: expected `file_name` or `image`, with the name of the image"
            )
        names.append(task.data.image_name)
        annotated[names[-1]] = (task, results)
    if not annotated:
        raise InputError(f"{path}: nobody has annotated a task; predictions alone are no ground truth")
    check_different(path, "annotated tasks", "image", names)
    return GroundTruth(
        images=ImagesOnDemand({name: (name, *entry) for name, entry in annotated.items()}, _image_of)
    )


def _image_of(entry: tuple[str, Task, list[Result]]) -> TruthImage:
    name, task, results = entry
    rectangles = [result for result in results if isinstance(result, Rectangle)]
    boxes: dict[str, list[Box]] = {}
    for rectangle in rectangles:
        box = rectangle.box_xywh_px
        if box[2] > 0 and box[3] > 0:
            for label in dict.fromkeys(rectangle.value.rectanglelabels):
                boxes.setdefault(label, []).append(box)
    choices = [result for result in results if isinstance(result, Choices) and result.from_name == ABSENT]
    absent = {normalise(choice) for result in choices for choice in result.value.choices}
    match: Match = "phrase" if task.data.phrases else "category"
    return TruthImage(
        file_name=name,
        width_px=rectangles[0].original_width if rectangles else 0,
        height_px=rectangles[0].original_height if rectangles else 0,
        targets=tuple(
            TruthTarget(
                phrase=label,
                boxes_xywh_px=tuple(places),
                match=match,
                groups=groups_of(None, places, len(rectangles)),
            )
            for label, places in boxes.items()
        ),
        absent=frozenset(absent - boxes.keys()),
    )
