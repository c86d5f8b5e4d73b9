"""COCO instances as ground truth: `annotations` with `bbox` [x, y, w, h] in pixels and `segmentation`.

    {"images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [9, 9, 20, 10], "segmentation": [[...]]}],
     "categories": [{"id": 3, "name": "car"}]}

A segmentation is a list of polygons, or a run-length code `{"size": [h, w], "counts": ...}` with counts as a list
or as text. Annotations with `iscrowd` mean no single object and are left out, as COCOeval ignores them. Boxes without
width or height are left out too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import InputError, kind_of_value
from stages.contract.geometry import Box
from stages.contract.masks import decode_runs, encode_counts, encode_polygons, rle_area_px, rle_union
from stages.contract.records import Rle
from stages.phrases.filters import normalise
from stages.truth.ground_truth import GroundTruth, ImagesOnDemand, Match, TruthImage, TruthObject, TruthTarget

SMALL_BELOW_PX: Final = 32**2  # COCO's limits of area
MEDIUM_BELOW_PX: Final = 96**2

_LONGEST_SIDE_PX: Final = 65_535
_FARTHEST_PX: Final = 1_000_000

EntryId = int | str


@dataclass(frozen=True, slots=True)
class Entry:
    """A JSON object in a list of a file; `place` is its name in messages, "annotations[3]"."""

    path: Path
    place: str
    values: Mapping[str, Any]

    def get(self, key: str, expectation: str, is_right: Callable[[Any], Any], default: Any = None) -> Any:
        """Return a checked value. Raise InputError with the file, the place, and the expectation."""
        value = self.values.get(key, default)
        if not is_right(value):
            received = repr(value)[:80] if type(value) in (int, float, str) else kind_of_value(value)
            raise self.fault(f"expected '{key}' {expectation}, got {received}")
        return value

    def id(self, key: str) -> EntryId:
        """Return an id, which is text or a whole number."""
        entry_id: EntryId = self.get(key, "of text or a whole number", lambda value: type(value) in (int, str))
        return entry_id

    def words(self, key: str) -> str:
        """Return a normalised text that is not empty."""
        return normalise(self.get(key, "with letters or digits", lambda value: _is_text(value) and normalise(value)))

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        return bool(self.get(key, "to be true or false", lambda value: isinstance(value, bool), default))

    def fault(self, text: str) -> InputError:
        """Return the error for this entry."""
        return InputError(f"{self.path}: {self.place}: {text}")


@dataclass(slots=True, kw_only=True)
class ImageEntry:
    """An entry of `images`. `objects` are its annotations in the order of the file, without crowds and empty boxes."""

    file_name: str
    width_px: int
    height_px: int
    absent: frozenset[str]
    objects: list[CocoObject] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoObject:
    """An annotation; its segmentation is not checked before `mask_of` reads it."""

    entry: Entry
    image: ImageEntry
    box_xywh_px: Box
    is_crowd: bool

    @property
    def has_area(self) -> bool:
        """True if the box has both width and height."""
        return self.box_xywh_px[2] > 0 and self.box_xywh_px[3] > 0


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
    images: Mapping[EntryId, ImageEntry]
    objects: Sequence[CocoObject]
    names: Mapping[EntryId, str]

    @property
    def by_name(self) -> dict[str, ImageEntry]:
        """The images by file name."""
        return {image.file_name: image for image in self.images.values()}

    def name_of(self, item: CocoObject) -> str | None:
        """Return the name of an object's category; None if the file has none."""
        return self.names.get(item.entry.values.get("category_id", ""))

    def describe(self, item: CocoObject) -> str | None:
        """Return colour and category; None unless the annotation has both, as those of synthetic scenes do."""
        category = self.name_of(item)
        colour = item.entry.values.get("colour")
        return f"{normalise(colour)} {category}" if category and isinstance(colour, str) else None

    def truth_objects(self) -> Mapping[str, tuple[TruthObject, ...]]:
        """Return the objects of each image by file name, without crowds and empty boxes; made on demand."""

        def make(item: CocoObject) -> TruthObject:
            category = self.name_of(item)
            description = self.describe(item)
            box = item.box_xywh_px
            mask = mask_of([item])
            return TruthObject(box_xywh_px=box, category=category, description=description, mask=mask)

        return ImagesOnDemand(self.by_name, lambda image: tuple(map(make, image.objects)))


def read_coco(path: Path) -> GroundTruth:
    """Return the ground truth of an instances file.

    If annotations have a `phrase`, as those of synthetic scenes do, a target is a phrase of an image. Its objects are
    all annotations with this phrase, except those with `"mentioned": false`. An image's `absent` is a list of phrases
    that are not in it. Without `phrase`, a target is a category of an image, by its normalised name, and its objects
    are all annotations of the category.

    Groups: number (singular, plural), size (of the mean object: small, medium, large by COCO's limits), objects (number
    of the image's annotations, "6+" for more than five), and combination (seen, unseen) if the phrase's annotations
    have `unseen_combination`. Phrases and masks of an image are checked when it is looked up.

    Raise InputError if the file cannot be read or holds no instances, or two images have the same file name.
    """
    return _truth_of(read_instances(path))


def read_detections(path: Path, instances_path: Path, *, min_score: float = 0.0) -> GroundTruth:
    """Read a detector's results in the form of a ground truth: each box has a score, and no category is known absent.

    The results are a list of JSON objects with image_id, category_id, bbox and score, and perhaps a segmentation. Boxes
    with a lower score than `min_score` are left out. The instances file gives images and categories for these ids; its
    annotations are not read. Raise InputError as `read_coco`.
    """
    boxes = []
    for entry in entries(path, read_json(path), "results"):
        score = entry.get("score", "of 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
        if score >= min_score:
            boxes.append({**entry.values, "iscrowd": 0})
    names = _read_object(instances_path, "categories")
    return replace(_truth_of(_instances(path, {**names, "annotations": boxes})), categories=frozenset())


def _truth_of(instances: Instances) -> GroundTruth:
    by_phrase = any("phrase" in item.entry.values for item in instances.objects)
    if not by_phrase and not instances.names:
        raise InputError(f"{instances.path}: expected categories, or annotations with a phrase, found neither")
    present: dict[str, set[str]] = {}
    for item in instances.objects:
        name = instances.name_of(item)
        if name is not None:
            present.setdefault(item.image.file_name, set()).add(name)

    def make(image: ImageEntry) -> TruthImage:
        objects_by_name: dict[str, list[CocoObject]] = {}
        for item in image.objects:
            if not by_phrase:
                category_id = item.entry.id("category_id")
                if category_id not in instances.names:
                    raise item.entry.fault(f"no category has the id {category_id!r}")
                objects_by_name.setdefault(instances.names[category_id], []).append(item)
            elif item.entry.flag("mentioned", default=True):
                objects_by_name.setdefault(item.entry.words("phrase"), []).append(item)
        match: Match = "phrase" if by_phrase else "category"
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width_px,
            height_px=image.height_px,
            targets=tuple(_target(phrase, match, objects) for phrase, objects in objects_by_name.items()),
            present=frozenset(present.get(image.file_name, ())),
            absent=image.absent,
        )

    images = instances.by_name
    names = frozenset(instances.names.values())
    descriptions = (instances.describe(item) for image in images.values() for item in image.objects)
    return GroundTruth(
        images=ImagesOnDemand(images, make),
        categories=names,
        objects=instances.truth_objects(),
        names=names,
        descriptions=frozenset(description for description in descriptions if description is not None),
    )


def read_instances(path: Path) -> Instances:
    """Return the entries of an instances file; `categories` may be missing. Raise InputError as `read_coco`."""
    return _instances(path, _read_object(path, "annotations"))


def _instances(path: Path, content: Mapping[str, Any]) -> Instances:
    images: dict[EntryId, ImageEntry] = {}
    file_names: set[str] = set()
    for image_id, entry in by_id(entries(path, content.get("images"), "images"), "image"):
        image = _image(entry)
        if image.file_name in file_names:
            raise entry.fault(f"an earlier image has the file_name {image.file_name!r} too")
        images[image_id] = image
        file_names.add(image.file_name)
    categories = by_id(entries(path, content.get("categories", []), "categories"), "category")
    names = {category_id: entry.words("name") for category_id, entry in categories}
    objects: list[CocoObject] = []
    for entry in entries(path, content.get("annotations"), "annotations"):
        image_id = entry.id("image_id")
        if image_id not in images:
            raise entry.fault(f"no image has the id {image_id!r}")
        item = _object(entry, images[image_id])
        objects.append(item)
        if item.has_area and not item.is_crowd:
            item.image.objects.append(item)
    return Instances(path=path, images=images, objects=objects, names=names)


def mask_of(objects: Sequence[CocoObject]) -> Rle | None:
    """Return the union of masks of one image's objects; None if one has no segmentation, or if the union is empty.

    Raise InputError for a segmentation that is damaged or of another size than the image.
    """
    masks = [_mask(item) for item in objects]
    present = [mask for mask in masks if mask is not None]
    if not present or len(present) < len(masks):
        return None
    union = rle_union(present)
    return union if rle_area_px(union) else None


def number_member(count: int) -> str:
    """Return the member of the group "number" for a phrase of this many objects."""
    return "plural" if count > 1 else "singular"


def size_member(mask: Rle | None, boxes_xywh_px: Sequence[Box]) -> str:
    """Return the member of the group "size", by the area of the mask, else of all boxes, per object."""
    total_px = sum(w * h for _, _, w, h in boxes_xywh_px) if mask is None else rle_area_px(mask)
    area_px = total_px / len(boxes_xywh_px)
    if area_px < SMALL_BELOW_PX:
        return "small"
    return "medium" if area_px < MEDIUM_BELOW_PX else "large"


def objects_member(count: int) -> str:
    """Return the member of the group "objects" for an image with this many objects."""
    return str(count) if count < 6 else "6+"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise InputError if it cannot be read or parsed."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error


def _read_object(path: Path, key: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with 'images' and '{key}', got {kind_of_value(content)}")
    return content


def entries(path: Path, value: Any, name: str) -> Iterator[Entry]:
    """Yield the entries of a list of objects. Raise InputError for anything else."""
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list '{name}', got {kind_of_value(value)}")
    for index, values in enumerate(value):
        if not isinstance(values, dict):
            raise InputError(f"{path}: {name}[{index}]: expected an object, got {kind_of_value(values)}")
        yield Entry(path, f"{name}[{index}]", values)


def by_id(items: Iterable[Entry], kind: str) -> Iterator[tuple[EntryId, Entry]]:
    """Yield (id, entry) for each entry. Raise InputError for an id that an earlier entry has."""
    ids: set[EntryId] = set()
    for entry in items:
        entry_id = entry.id("id")
        if entry_id in ids:
            raise entry.fault(f"an earlier {kind} has the id {entry_id!r} too")
        ids.add(entry_id)
        yield entry_id, entry


def _image(entry: Entry) -> ImageEntry:
    def is_side(value: Any) -> bool:
        return type(value) is int and 1 <= value <= _LONGEST_SIDE_PX

    def is_phrases(value: Any) -> bool:
        return isinstance(value, list) and all(map(_is_text, value))

    file_name = entry.get("file_name", "of text", lambda value: _is_text(value) and value)
    width, height = (entry.get(key, f"in pixels, 1 to {_LONGEST_SIDE_PX}", is_side) for key in ("width", "height"))
    absent = entry.get("absent", "to be a list of phrases", is_phrases, [])
    return ImageEntry(file_name=file_name, width_px=width, height_px=height, absent=frozenset(map(normalise, absent)))


def _object(entry: Entry, image: ImageEntry) -> CocoObject:
    def is_box(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))

    x, y, w, h = map(float, entry.get("bbox", "with four numbers [x, y, w, h]", is_box))
    is_crowd = entry.get("iscrowd", "to be 0 or 1", lambda value: value in (0, 1), 0)
    return CocoObject(entry=entry, image=image, box_xywh_px=(x, y, w, h), is_crowd=bool(is_crowd))


def _target(phrase: str, match: Match, objects: Sequence[CocoObject]) -> TruthTarget:
    boxes = tuple(item.box_xywh_px for item in objects)
    mask = mask_of(objects)
    groups = {
        "number": number_member(len(objects)),
        "size": size_member(mask, boxes),
        "objects": objects_member(len(objects[0].image.objects)),
    }
    if match == "phrase" and any("unseen_combination" in item.entry.values for item in objects):
        unseen = any(item.entry.flag("unseen_combination", default=False) for item in objects)
        groups["combination"] = "unseen" if unseen else "seen"
    scores = [item.entry.values.get("score") for item in objects]
    return TruthTarget(
        phrase=phrase,
        boxes_xywh_px=boxes,
        match=match,
        mask=mask,
        groups=groups,
        scores=tuple(map(float, scores)) if all(map(_is_number, scores)) else (),  # type: ignore[arg-type]
    )


def _mask(item: CocoObject) -> Rle | None:
    """The mask of an object; None without a segmentation, or without a polygon of three points."""
    value = item.entry.values.get("segmentation")
    if value is None or value == []:
        return None
    size_hw = (item.image.height_px, item.image.width_px)
    try:
        if isinstance(value, dict):
            return _from_runs(value, size_hw)
        if isinstance(value, list) and all(isinstance(polygon, list) for polygon in value):
            if not all(_is_number(number) for polygon in value for number in polygon):
                raise ValueError("expected polygons [x0, y0, x1, y1, ...] of numbers")
            mask = encode_polygons(value, size_hw)
            return mask if any(len(polygon) >= 6 for polygon in value) else None
        raise ValueError(f"expected a list of polygons or a run-length code, got {kind_of_value(value)}")
    except ValueError as error:
        raise item.entry.fault(f"segmentation: {error}") from error


def _from_runs(value: Mapping[str, Any], size_hw: tuple[int, int]) -> Rle:
    counts = value.get("counts")
    if value.get("size") != list(size_hw):
        raise ValueError(f"expected the size [{size_hw[0]}, {size_hw[1]}] of its image, got {value.get('size')!r}")
    if isinstance(counts, str):
        return encode_counts(decode_runs(Rle(size_hw=size_hw, counts=counts)).tolist(), size_hw)
    if isinstance(counts, list):
        return encode_counts(counts, size_hw)
    raise ValueError(f"expected counts as a list or text, got {kind_of_value(counts)}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    """Whether a value can be a coordinate: a finite number, and not far from any image."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _FARTHEST_PX
