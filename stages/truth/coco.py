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
from collections.abc import Iterable, Mapping, Sequence
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

from stages.contract.errors import InputError
from stages.contract.geometry import Box
from stages.contract.masks import decode_runs, encode_counts, encode_polygons, rle_area_px, rle_union
from stages.contract.records import Rle
from stages.contract.values import Sides
from stages.phrases.filters import normalise
from stages.shared.json_files import read_json_as
from stages.truth.ground_truth import (
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
    """An entry of `images`; `absent` lists phrases of things that it does not show."""

    id: EntryId
    file_name: str = Field(min_length=1)
    width: Side
    height: Side
    absent: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True)
class CocoObject:
    """An annotation, with its number in the file and its image."""

    number: int
    annotation: Annotation
    image: CocoImage

    @property
    def has_area(self) -> bool:
        """True if the box has both width and height."""
        return self.annotation.bbox[2] > 0 and self.annotation.bbox[3] > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """An instances file with consistent ids.

    Attributes:
        path: The file.
        images: Images by id.
        objects: All annotations, in the order of the file.
        names: Normalised names of categories by id.
    """

    path: Path
    images: Mapping[EntryId, CocoImage]
    objects: Sequence[CocoObject]
    names: Mapping[EntryId, str]

    @property
    def by_name(self) -> dict[str, CocoImage]:
        """The images by file name."""
        return {image.file_name: image for image in self.images.values()}

    def objects_by_name(self) -> Mapping[str, Sequence[CocoObject]]:
        """Return the objects of each image by file name, without crowds and empty boxes."""
        objects: dict[str, list[CocoObject]] = defaultdict(list)
        for item in self.objects:
            if item.has_area and not item.annotation.iscrowd:
                objects[item.image.file_name].append(item)
        return objects

    def name_of(self, item: CocoObject) -> str | None:
        """Return the name of an object's category; None if the file has none."""
        category_id = item.annotation.category_id
        return None if category_id is None else self.names.get(category_id)

    def describe(self, item: CocoObject) -> str | None:
        """Return colour and category; None unless the annotation has both, as those of synthetic scenes do."""
        category = self.name_of(item)
        colour = item.annotation.colour
        return f"{normalise(colour)} {category}" if category and isinstance(colour, str) else None

    def fault(self, item: CocoObject, problem: object) -> InputError:
        """Return the error for an annotation."""
        return InputError(f"{self.path}: annotations[{item.number}]: {problem}")

    def mask_of(self, objects: Sequence[CocoObject]) -> Rle | None:
        """Return the union of masks of one image's objects; None if one has no segmentation, or if the union is empty.

        Raise InputError for a segmentation that is damaged or of another size than the image.
        """
        masks = [self._mask(item) for item in objects]
        present = [mask for mask in masks if mask is not None]
        if not present or len(present) < len(masks):
            return None
        union = rle_union(present)
        return union if rle_area_px(union) else None

    def _mask(self, item: CocoObject) -> Rle | None:
        """The mask of an object; None without a segmentation, or without a polygon of three points."""
        segmentation = item.annotation.segmentation
        size_hw = (item.image.height, item.image.width)
        try:
            if isinstance(segmentation, RunLengths):
                return _from_runs(segmentation, size_hw)
            mask = encode_polygons(segmentation or [], size_hw)
        except ValueError as error:
            raise self.fault(item, f"segmentation: {error}") from error
        has_triangle = any(len(polygon) >= 6 for polygon in segmentation or ())
        return mask if has_triangle else None

    def truth_objects(self) -> Mapping[str, tuple[TruthObject, ...]]:
        """Return the objects of each image by file name, without crowds and empty boxes; made on demand."""
        objects = self.objects_by_name()

        def make(image: CocoImage) -> tuple[TruthObject, ...]:
            return tuple(
                TruthObject(
                    box_xywh_px=item.annotation.bbox,
                    category=self.name_of(item),
                    description=self.describe(item),
                    mask=self.mask_of([item]),
                )
                for item in objects.get(image.file_name, ())
            )

        return ImagesOnDemand(self.by_name, make)


def read_coco(path: Path) -> GroundTruth:
    """Return the ground truth of an instances file.

    If annotations have a `phrase`, as those of synthetic scenes do, a target is a phrase of an
    image. Its objects are all annotations with this phrase, except those with `"mentioned":
    false`. An image's `absent` is a list of phrases that are not in it. Without `phrase`, a
    target is a category of an image, by its normalised name, and its objects are all
    annotations of the category.

    Groups: number (singular, plural), size (of the mean object: small, medium, large by COCO's
    limits), objects (number of the image's annotations, "6+" for more than five), and
    combination (seen, unseen) if the phrase's annotations have `unseen_combination`. Masks of
    an image are checked when it is looked up.

    Raise InputError if the file cannot be read or holds no instances, or two images have the
    same file name.
    """
    file = read_json_as(path, InstancesFile)
    return _truth_of(_instances(path, file, file.annotations))


def read_detections(path: Path, instances_path: Path, *, min_score: float = 0.0) -> GroundTruth:
    """Read a detector's results in the form of a ground truth: each box has a score, and no category is known absent.

    The results are a list of JSON objects with image_id, category_id, bbox and score, and
    perhaps a segmentation. Boxes with a lower score than `min_score` are left out. The
    instances file gives images and categories for these ids; its annotations are not read.
    Raise InputError as `read_coco`.
    """
    detections = [box for box in read_json_as(path, list[Detection]) if box.score >= min_score]
    truth = _truth_of(_instances(path, read_json_as(instances_path, ImagesFile), detections))
    return replace(truth, categories=frozenset())


def _truth_of(instances: Instances) -> GroundTruth:
    by_phrase = any(item.annotation.phrase is not None for item in instances.objects)
    if not by_phrase and not instances.names:
        raise InputError(
            f"{instances.path}: expected categories, or annotations with a phrase, found neither"
        )
    present: dict[str, set[str]] = defaultdict(set)
    for item in instances.objects:
        name = instances.name_of(item)
        if name is not None:
            present[item.image.file_name].add(name)
    objects = instances.objects_by_name()
    name_target = _phrase_of if by_phrase else _category_of

    def make(image: CocoImage) -> TruthImage:
        objects_by_name: dict[str, list[CocoObject]] = {}
        for item in objects.get(image.file_name, ()):
            if item.annotation.mentioned or not by_phrase:
                objects_by_name.setdefault(name_target(instances, item), []).append(item)
        count = len(objects.get(image.file_name, ()))
        match: Match = "phrase" if by_phrase else "category"
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width,
            height_px=image.height,
            targets=tuple(
                _target(instances, phrase, match, group, count) for phrase, group in objects_by_name.items()
            ),
            present=frozenset(present.get(image.file_name, ())),
            absent=frozenset(map(normalise, image.absent)),
        )

    names = frozenset(instances.names.values())
    descriptions = (instances.describe(item) for group in objects.values() for item in group)
    return GroundTruth(
        images=ImagesOnDemand(instances.by_name, make),
        categories=names,
        objects=instances.truth_objects(),
        names=names,
        descriptions=frozenset(description for description in descriptions if description is not None),
    )


def _phrase_of(instances: Instances, item: CocoObject) -> str:
    if item.annotation.phrase is None:
        raise instances.fault(item, "phrase: expected one, as other annotations have")
    return item.annotation.phrase


def _category_of(instances: Instances, item: CocoObject) -> str:
    name = instances.name_of(item)
    if name is None:
        raise instances.fault(item, f"category_id: no category has the id {item.annotation.category_id!r}")
    return name


def _target(
    instances: Instances, phrase: str, match: Match, objects: Sequence[CocoObject], count: int
) -> TruthTarget:
    """Return the target of a phrase; its image has `count` objects in all."""
    annotations = [item.annotation for item in objects]
    boxes = tuple(annotation.bbox for annotation in annotations)
    mask = instances.mask_of(objects)
    groups = groups_of(mask, boxes, count)
    unseen = {annotation.unseen_combination for annotation in annotations} - {None}
    if match == "phrase" and unseen:
        groups["combination"] = "unseen" if True in unseen else "seen"
    scores = tuple(annotation.score for annotation in annotations if isinstance(annotation, Detection))
    return TruthTarget(
        phrase=phrase, boxes_xywh_px=boxes, match=match, mask=mask, groups=groups, scores=scores
    )


def _instances(path: Path, file: ImagesFile, annotations: Iterable[Annotation]) -> Instances:
    check_different(path, "images", "id", [image.id for image in file.images])
    check_different(path, "images", "file_name", [image.file_name for image in file.images])
    check_different(path, "categories", "id", [category.id for category in file.categories])
    images = {image.id: image for image in file.images}
    objects = []
    for number, annotation in enumerate(annotations):
        image = images.get(annotation.image_id)
        if image is None:
            raise InputError(f"{path}: annotations[{number}]: no image has the id {annotation.image_id!r}")
        objects.append(CocoObject(number, annotation, image))
    names = {category.id: category.name for category in file.categories}
    return Instances(path=path, images=images, objects=objects, names=names)


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
