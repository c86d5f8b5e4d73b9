"""COCO instances as ground truth: `annotations` with `bbox` [x, y, w, h] in pixels and `segmentation`.

    {"images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [9, 9, 20, 10], "segmentation": [[...]]}],
     "categories": [{"id": 3, "name": "car"}]}

A segmentation is a list of polygons, or a run-length code `{"size": [h, w], "counts": ...}`
with counts as a list or as text. Annotations with `iscrowd` mean no single object and are left
out, as COCOeval ignores them. Boxes without width or height are left out too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
)

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box
from phrasebox.stages.contract.masks import (
    decode_runs,
    encode_counts,
    encode_polygons,
    rle_area_px,
    rle_union,
)
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.contract.values import Sides
from phrasebox.stages.files.json_files import read_json_as
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.truth.ground_truth import (
    GroundTruth,
    ImagesOnDemand,
    Match,
    TruthImage,
    TruthObject,
    TruthTarget,
)

SMALL_BELOW_PX: Final = 32**2  # COCO's limits of area
MEDIUM_BELOW_PX: Final = 96**2

_LONGEST_SIDE_PX: Final = 65_535
_FARTHEST_PX: Final = 1_000_000


def _words(text: str) -> str:
    if not normalise(text):
        raise ValueError(f"expected letters or digits, got {text!r}")
    return normalise(text)


EntryId = StrictInt | StrictStr
Side = Annotated[int, Field(strict=True, ge=1, le=_LONGEST_SIDE_PX)]
Coordinate = Annotated[float, Field(strict=True, ge=-_FARTHEST_PX, le=_FARTHEST_PX)]
Words = Annotated[str, AfterValidator(_words)]


class CocoImage(BaseModel):
    """An entry of `images`."""

    id: EntryId
    file_name: str = Field(min_length=1)
    width: Side
    height: Side


class Category(BaseModel):
    """An entry of `categories`."""

    id: EntryId
    name: Words


class RunLengths(BaseModel):
    """A mask as runs down the columns, in integers or in COCO's text."""

    size: Sides
    counts: str | list[StrictInt]


Polygons = list[list[Coordinate]]
Segmentation = Annotated[
    Annotated[RunLengths, Tag("runs")] | Annotated[Polygons, Tag("polygons")],
    Discriminator(lambda value: "runs" if isinstance(value, dict) else "polygons"),
]


class Annotation(BaseModel):
    """An entry of `annotations`. The keys from `phrase` on are those of synthetic scenes."""

    id: EntryId | None = None
    image_id: EntryId
    category_id: EntryId | None = None
    bbox: tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    segmentation: Segmentation | None = None
    iscrowd: Literal[0, 1] = 0
    score: Any = None
    phrase: Words | None = None
    mentioned: StrictBool = True
    colour: Any = None
    unseen_combination: StrictBool | None = None


class Detection(Annotation):
    """An entry of a detector's results."""

    score: float = Field(ge=0, le=1)


class ImagesFile(BaseModel):
    """The images and categories of an instances file."""

    images: list[CocoImage]
    categories: list[Category] = []


class InstancesFile(ImagesFile):
    """An instances file."""

    annotations: list[Annotation]


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoObject:
    """An annotation with its image.

    Attributes:
        annotation: The annotation.
        image: Its image.
        category: Normalised name of its category; None if the file has none.
        place: Where it is, for messages.
    """

    annotation: Annotation
    image: CocoImage
    category: str | None
    place: str

    @property
    def is_object(self) -> bool:
        """Whether it is one object with an area, and no crowd."""
        _, _, width, height = self.annotation.bbox
        return not self.annotation.iscrowd and width > 0 and height > 0

    @property
    def description(self) -> str | None:
        """Colour and category; None unless the annotation has both, as those of synthetic scenes do."""
        colour = self.annotation.colour
        has_both = self.category is not None and isinstance(colour, str)
        return f"{normalise(colour)} {self.category}" if has_both else None

    def name(self, *, by_phrase: bool) -> str:
        """Return its phrase, or its category. Raise InputError if it has none."""
        name = self.annotation.phrase if by_phrase else self.category
        if name is None:
            raise InputError(
                f"{self.place}: phrase: expected one, as other annotations have"
                if by_phrase
                else f"{self.place}: category_id: no category has the id {self.annotation.category_id!r}"
            )
        return name

    def mask(self) -> Rle | None:
        """Return its mask; None without a segmentation, or without a polygon of three points.

        Raise InputError for a segmentation that is damaged or of another size than the image.
        """
        segmentation = self.annotation.segmentation
        size_hw = (self.image.height, self.image.width)
        try:
            if isinstance(segmentation, RunLengths):
                return _from_runs(segmentation, size_hw)
            mask = encode_polygons(segmentation or [], size_hw)
        except ValueError as error:
            raise InputError(f"{self.place}: segmentation: {error}") from error
        has_triangle = any(len(polygon) >= 6 for polygon in segmentation or ())
        return mask if has_triangle else None

    def as_truth(self) -> TruthObject:
        """Return it in the form of every ground truth. Raise as `mask`."""
        return TruthObject(
            box_xywh_px=self.annotation.bbox,
            category=self.category,
            description=self.description,
            mask=mask_of([self]),
        )


def mask_of(objects: Sequence[CocoObject]) -> Rle | None:
    """Return the union of masks of one image's objects; None if one has no mask, or if the union is empty."""
    masks = [item.mask() for item in objects]
    present = [mask for mask in masks if mask is not None]
    if not present or len(present) < len(masks):
        return None
    union = rle_union(present)
    return union if rle_area_px(union) else None


def read_coco(path: Path) -> GroundTruth:
    """Return the ground truth of an instances file.

    If annotations have a `phrase`, as those of synthetic scenes do, a target is a phrase of an
    image. Its objects are all annotations with this phrase, except those with `"mentioned":
    false`. Without `phrase`, a target is a category of an image, by its normalised name, and its
    objects are all annotations of the category.

    Groups: number (singular, plural), size (of the mean object: small, medium, large by COCO's
    limits), objects (number of the image's annotations, "6+" for more than five), and
    combination (seen, unseen) if the phrase's annotations have `unseen_combination`. Masks of
    an image are checked when it is looked up.

    Raise InputError if the file cannot be read or holds no instances, or two images have the
    same file name.
    """
    file = read_json_as(path, InstancesFile)
    return _truth_of(path, file, file.annotations)


def read_detections(path: Path, instances_path: Path, *, min_score: float = 0.0) -> GroundTruth:
    """Read a detector's results in the form of a ground truth: each box has a score, and no category is known absent.

    The results are a list of JSON objects with image_id, category_id, bbox and score, and
    perhaps a segmentation. Boxes with a lower score than `min_score` are left out. The
    instances file gives images and categories for these ids; its annotations are not read.
    Raise InputError as `read_coco`.
    """
    detections = [box for box in read_json_as(path, list[Detection]) if box.score >= min_score]
    truth = _truth_of(path, read_json_as(instances_path, ImagesFile), detections)
    return replace(truth, categories=frozenset())


def _truth_of(path: Path, file: ImagesFile, annotations: Sequence[Annotation]) -> GroundTruth:
    check_different(path, "images", "id", [image.id for image in file.images])
    check_different(path, "images", "file_name", [image.file_name for image in file.images])
    check_different(path, "categories", "id", [category.id for category in file.categories])
    images = {image.id: image for image in file.images}
    names: dict[EntryId | None, str] = {category.id: category.name for category in file.categories}
    by_phrase = any(annotation.phrase is not None for annotation in annotations)
    if not by_phrase and not names:
        raise InputError(f"{path}: expected categories, or annotations with a phrase, found neither")
    objects: dict[str, list[CocoObject]] = defaultdict(list)
    present: dict[str, set[str]] = defaultdict(set)
    for number, annotation in enumerate(annotations):
        place = f"{path}: annotations[{number}]"
        image = images.get(annotation.image_id)
        if image is None:
            raise InputError(f"{place}: no image has the id {annotation.image_id!r}")
        category = names.get(annotation.category_id)
        item = CocoObject(annotation=annotation, image=image, category=category, place=place)
        if category is not None:
            present[image.file_name].add(category)
        if item.is_object:
            objects[image.file_name].append(item)

    def make(image: CocoImage) -> TruthImage:
        items = objects.get(image.file_name, ())
        items_by_name: dict[str, list[CocoObject]] = {}
        for item in items:
            if item.annotation.mentioned or not by_phrase:
                items_by_name.setdefault(item.name(by_phrase=by_phrase), []).append(item)
        match: Match = "phrase" if by_phrase else "category"
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width,
            height_px=image.height,
            targets=tuple(
                _target(phrase, match, group, len(items)) for phrase, group in items_by_name.items()
            ),
            present=frozenset(present.get(image.file_name, ())),
        )

    def make_objects(image: CocoImage) -> tuple[TruthObject, ...]:
        return tuple(item.as_truth() for item in objects.get(image.file_name, ()))

    by_name = {image.file_name: image for image in file.images}
    descriptions = {item.description for group in objects.values() for item in group}
    return GroundTruth(
        images=ImagesOnDemand(by_name, make),
        categories=frozenset(names.values()),
        objects=ImagesOnDemand(by_name, make_objects),
        names=frozenset(names.values()),
        descriptions=frozenset(description for description in descriptions if description is not None),
    )


def _target(phrase: str, match: Match, objects: Sequence[CocoObject], count: int) -> TruthTarget:
    """Return the target of a phrase; its image has `count` objects in all."""
    annotations = [item.annotation for item in objects]
    boxes = tuple(annotation.bbox for annotation in annotations)
    mask = mask_of(objects)
    groups = groups_of(mask, boxes, count)
    unseen = {annotation.unseen_combination for annotation in annotations} - {None}
    if match == "phrase" and unseen:
        groups["combination"] = "unseen" if True in unseen else "seen"
    scores = tuple(annotation.score for annotation in annotations if isinstance(annotation, Detection))
    return TruthTarget(
        phrase=phrase, boxes_xywh_px=boxes, match=match, mask=mask, groups=groups, scores=scores
    )


def check_different(path: Path, entries: str, key: str, values: Iterable[Any]) -> None:
    """Raise InputError if two entries of a list in a file have the same value."""
    values_before = set()
    for number, value in enumerate(values):
        if value in values_before:
            raise InputError(f"{path}: {entries}[{number}].{key}: an earlier entry has {value!r} too")
        values_before.add(value)


def groups_of(mask: Rle | None, boxes_xywh_px: Sequence[Box], count: int) -> dict[str, str]:
    """Return the groups of a phrase by its mask and boxes; its image has `count` objects in all."""
    return {
        "number": number_member(len(boxes_xywh_px)),
        "size": size_member(mask, boxes_xywh_px),
        "objects": str(count) if count < 6 else "6+",
    }


def number_member(count: int) -> str:
    """Return the member of the group "number" for a phrase of this many objects."""
    return "plural" if count > 1 else "singular"


def size_member(mask: Rle | None, boxes_xywh_px: Sequence[Box]) -> str:
    """Return the member of the group "size", by the area of the mask, else of all boxes, per object.

    >>> size_member(None, [(0, 0, 32, 32)])
    'medium'
    """
    total_px = sum(w * h for _, _, w, h in boxes_xywh_px) if mask is None else rle_area_px(mask)
    area_px = total_px / len(boxes_xywh_px)
    if area_px < SMALL_BELOW_PX:
        return "small"
    return "medium" if area_px < MEDIUM_BELOW_PX else "large"


def _from_runs(runs: RunLengths, size_hw: Sides) -> Rle:
    if runs.size != size_hw:
        raise ValueError(f"expected the size {list(size_hw)} of its image, got {list(runs.size)}")
    counts = runs.counts
    if isinstance(counts, str):
        counts = decode_runs(Rle(size_hw=size_hw, counts=counts)).tolist()
    return encode_counts(counts, size_hw)
