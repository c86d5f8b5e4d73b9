"""COCO instances as ground truth: `annotations` with `bbox` [x, y, w, h] in pixels and `segmentation`.

    {"images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [9, 9, 20, 10], "segmentation": [[...]]}],
     "categories": [{"id": 3, "name": "car"}]}

A segmentation is a list of polygons, or a run-length code `{"size": [h, w], "counts": ...}` with counts as a list
or as text. Annotations with `iscrowd` do not mean a single thing and are left out, as COCOeval ignores them. Boxes
without width or height are left out too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from stages.contract.errors import InputError
from stages.contract.errors import kind_of_value as _kind
from stages.contract.geometry import Box
from stages.contract.masks import decode_runs, encode_counts, encode_polygons, rle_area_px, rle_union
from stages.contract.records import Rle
from stages.phrases.filters import normalise
from stages.shared.truth.ground_truth import GroundTruth, ImagesOnDemand, Match, TruthImage, TruthTarget, TruthThing

SMALL_BELOW_PX: Final = 32**2
MEDIUM_BELOW_PX: Final = 96**2
"""COCO's limits of area."""

_LONGEST_SIDE_PX: Final = 65_535
_FARTHEST_PX: Final = 1_000_000

EntryId = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoThing:
    """An annotation.

    Attributes:
        place: In the file, for messages: "annotations[3]".
        image: The entry of its image.
        box_xywh_px: `bbox`.
        crowd: `iscrowd`.
        entry: As it is in the file.
    """

    place: str
    image: PictureEntry
    box_xywh_px: Box
    crowd: bool
    entry: Mapping[str, Any]

    @property
    def has_area(self) -> bool:
        """Whether the box has both width and height."""
        return self.box_xywh_px[2] > 0 and self.box_xywh_px[3] > 0


@dataclass(slots=True, kw_only=True)
class PictureEntry:
    """An entry of `images`; `things` are its annotations in the order of the file, without crowds and empty boxes."""

    file_name: str
    width_px: int
    height_px: int
    absent: frozenset[str] = frozenset()
    things: list[CocoThing] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """An instances file whose ids fit together. Segmentations are not checked before `mask_of` reads them.

    Attributes:
        path: The file.
        images: By their ids.
        things: All annotations, in the order of the file.
        names: Of `categories`: id -> normalised name.
    """

    path: Path
    images: Mapping[EntryId, PictureEntry]
    things: Sequence[CocoThing]
    names: Mapping[EntryId, str]


def read_coco(path: Path) -> GroundTruth:
    """Ground truth of an instances file.

    If annotations have a `phrase`, as those of drawn scenes do, a target is a phrase of an image, and its things are
    all annotations with that phrase, except those with `"mentioned": false`. An image's `absent`, a list, holds phrases
    that are known not to be in it. Otherwise a target is a category of an
    image, by its normalised name, and its things are all annotations of that category.

    Groups: number (singular, plural), size (of the mean thing: small, medium, large by COCO's limits), objects (how
    many annotations the image has, "6+" for more than five), and combination (seen, unseen) where the phrase's
    annotations have `unseen_combination`. Phrases and masks of an image are looked at when it is looked up.

    Raises:
        InputError: The file cannot be read or does not hold instances, or two images have the same file name.
    """
    return _truth_of(read_instances(path))


def read_detections(path: Path, instances_path: Path, *, min_score: float = 0.0) -> GroundTruth:
    """What a detector has found, as if it were a ground truth: each box has a score, and nothing is known absent.

    Args:
        path: COCO results: a list of objects with image_id, category_id, bbox and score, and perhaps a segmentation.
        instances_path: An instances file with the images and categories that they count. Its annotations do not matter.
        min_score: Boxes with a lower score are left out.

    Raises:
        InputError: A file cannot be read, or is not what it should be.
    """
    boxes = []
    for place, entry in entries(path, read_json(path), "results"):
        score: Any = entry.get("score")
        if not _is_number(score) or not 0 <= score <= 1:
            raise InputError(f"{path}: {place}: expected a 'score' of 0 to 1, got {_kind(score)}")
        if score >= min_score:
            boxes.append({**entry, "iscrowd": 0})
    names = read_json(instances_path)
    if not isinstance(names, dict):
        raise InputError(f"{instances_path}: expected an object with 'images' and 'categories', got {_kind(names)}")
    return replace(_truth_of(_instances(path, {**names, "annotations": boxes})), categories=frozenset())


def _truth_of(instances: Instances) -> GroundTruth:
    path = instances.path
    by_phrase = any("phrase" in thing.entry for thing in instances.things)
    match: Match = "phrase" if by_phrase else "category"
    if not by_phrase and not instances.names:
        raise InputError(f"{path}: expected categories, or annotations with a phrase, found neither")
    present: dict[str, set[str]] = {}
    for thing in instances.things:
        name = instances.names.get(thing.entry.get("category_id", ""))
        if name is not None:
            present.setdefault(thing.image.file_name, set()).add(name)
    name_of = _phrase_of if by_phrase else _category_of

    def made(image: PictureEntry) -> TruthImage:
        named: dict[str, list[CocoThing]] = {}
        for thing in image.things:
            name = name_of(instances, thing)
            if name is not None:
                named.setdefault(name, []).append(thing)
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width_px,
            height_px=image.height_px,
            targets=tuple(_target(instances, phrase, match, things) for phrase, things in named.items()),
            present=frozenset(present.get(image.file_name, ())),
            absent=image.absent,
        )

    images = {image.file_name: image for image in instances.images.values()}
    names = frozenset(instances.names.values())
    described = (_described(instances, thing) for image in images.values() for thing in image.things)
    return GroundTruth(
        images=ImagesOnDemand(images, made),
        categories=names,
        things=things_of(instances),
        names=names,
        descriptions=frozenset(description for description in described if description is not None),
    )


def things_of(instances: Instances) -> Mapping[str, tuple[TruthThing, ...]]:
    """File name -> the single things of the image, without crowds and empty boxes; made when it is looked up."""

    def thing_of(thing: CocoThing) -> TruthThing:
        return TruthThing(
            box_xywh_px=thing.box_xywh_px,
            category=instances.names.get(thing.entry.get("category_id", "")),
            described=_described(instances, thing),
            mask=mask_of(instances.path, [thing]),
        )

    return ImagesOnDemand(
        {image.file_name: image for image in instances.images.values()},
        lambda image: tuple(map(thing_of, image.things)),
    )


def _described(instances: Instances, thing: CocoThing) -> str | None:
    """Colour and category, where an annotation has both, as those of drawn scenes do."""
    category, colour = instances.names.get(thing.entry.get("category_id", "")), thing.entry.get("colour")
    return f"{normalise(colour)} {category}" if category and isinstance(colour, str) else None


def read_instances(path: Path) -> Instances:
    """The entries of an instances file; `categories` may be missing. Raises InputError as `read_coco`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with 'images' and 'annotations', got {_kind(content)}")
    return _instances(path, content)


def _instances(path: Path, content: Mapping[str, Any]) -> Instances:
    """What `read_instances` reads, from the content of the file that messages name."""
    images: dict[EntryId, PictureEntry] = {}
    file_names: set[str] = set()
    for place, entry in entries(path, content.get("images"), "images"):
        image_id = given_id(path, place, entry, "id")
        image = _image(path, place, entry)
        if image_id in images:
            raise InputError(f"{path}: {place}: an earlier image has the id {image_id!r} too")
        if image.file_name in file_names:
            raise InputError(f"{path}: {place}: an earlier image has the file_name {image.file_name!r} too")
        images[image_id] = image
        file_names.add(image.file_name)
    names: dict[EntryId, str] = {}
    for place, entry in entries(path, content.get("categories", []), "categories"):
        category_id = given_id(path, place, entry, "id")
        if category_id in names:
            raise InputError(f"{path}: {place}: an earlier category has the id {category_id!r} too")
        names[category_id] = _normalised(path, place, entry, "name")
    things: list[CocoThing] = []
    for place, entry in entries(path, content.get("annotations"), "annotations"):
        image_id = given_id(path, place, entry, "image_id")
        if image_id not in images:
            raise InputError(f"{path}: {place}: no image has the id {image_id!r}")
        thing = _thing(path, place, entry, images[image_id])
        things.append(thing)
        if thing.has_area and not thing.crowd:
            thing.image.things.append(thing)
    return Instances(path=path, images=images, things=things, names=names)


def mask_of(path: Path, things: Sequence[CocoThing]) -> Rle | None:
    """The union of the masks of things of one image; None if one has no segmentation, or if the union is empty.

    Raises InputError for a segmentation that is damaged or of another size than the image.
    """
    masks = [_mask(path, thing) for thing in things]
    known = [mask for mask in masks if mask is not None]
    if not known or len(known) < len(masks):
        return None
    union = rle_union(known)
    return union if rle_area_px(union) else None


def number_member(things: int) -> str:
    """The member of the group "number" for a phrase that means this many things."""
    return "plural" if things > 1 else "singular"


def size_member(mask: Rle | None, boxes_xywh_px: Sequence[Box]) -> str:
    """The member of the group "size": by the area of the mask, else of all boxes, divided by the number of things."""
    total_px = sum(w * h for _, _, w, h in boxes_xywh_px) if mask is None else rle_area_px(mask)
    area_px = total_px / len(boxes_xywh_px)
    if area_px < SMALL_BELOW_PX:
        return "small"
    return "medium" if area_px < MEDIUM_BELOW_PX else "large"


def objects_member(things: int) -> str:
    """The member of the group "objects" for an image with this many things."""
    return str(things) if things < 6 else "6+"


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError if it cannot be read or parsed."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error


def entries(path: Path, value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("images[3]") and entry of a list of objects. Raises InputError for anything else."""
    if not isinstance(value, list):
        raise InputError(f"{path}: expected a list '{name}', got {_kind(value)}")
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name}[{index}]: expected an object, got {_kind(entry)}")
        yield f"{name}[{index}]", entry


def given_id(path: Path, place: str, entry: Mapping[str, Any], key: str) -> EntryId:
    """An id, which is text or a whole number. Raises InputError if it is missing or something else."""
    value = entry.get(key)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return value
    raise InputError(f"{path}: {place}: expected '{key}' of text or a whole number, got {_kind(value)}")


def _image(path: Path, place: str, entry: Mapping[str, Any]) -> PictureEntry:
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise InputError(f"{path}: {place}: expected a 'file_name', got {_kind(file_name)}")
    sides = [entry.get("width"), entry.get("height")]
    for key, side in zip(("width", "height"), sides, strict=True):
        if type(side) is not int or not 1 <= side <= _LONGEST_SIDE_PX:
            got = side if type(side) is int else _kind(side)
            raise InputError(f"{path}: {place}: expected '{key}' in pixels, 1 to {_LONGEST_SIDE_PX}, got {got}")
    absent = entry.get("absent", [])
    if not isinstance(absent, list) or not all(isinstance(phrase, str) for phrase in absent):
        raise InputError(f"{path}: {place}: expected 'absent' to be a list of phrases, got {_kind(absent)}")
    return PictureEntry(
        file_name=file_name,
        width_px=entry["width"],
        height_px=entry["height"],
        absent=frozenset(map(normalise, absent)),
    )


def _thing(path: Path, place: str, entry: Mapping[str, Any], image: PictureEntry) -> CocoThing:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise InputError(f"{path}: {place}: expected 'bbox' with four numbers [x, y, w, h], got {_kind(box)}")
    x, y, w, h = (float(value) for value in box)
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"{path}: {place}: expected 'iscrowd' to be 0 or 1, got {_kind(crowd)}")
    return CocoThing(place=place, image=image, box_xywh_px=(x, y, w, h), crowd=bool(crowd), entry=entry)


def _phrase_of(instances: Instances, thing: CocoThing) -> str | None:
    """The thing's normalised phrase; None if no caption names it."""
    if not _flag(instances.path, thing, "mentioned", default=True):
        return None
    return _normalised(instances.path, thing.place, thing.entry, "phrase")


def _category_of(instances: Instances, thing: CocoThing) -> str:
    category_id = given_id(instances.path, thing.place, thing.entry, "category_id")
    if category_id not in instances.names:
        raise InputError(f"{instances.path}: {thing.place}: no category has the id {category_id!r}")
    return instances.names[category_id]


def _target(instances: Instances, phrase: str, match: Match, things: Sequence[CocoThing]) -> TruthTarget:
    boxes = tuple(thing.box_xywh_px for thing in things)
    mask = mask_of(instances.path, things)
    groups = {
        "number": number_member(len(things)),
        "size": size_member(mask, boxes),
        "objects": objects_member(len(things[0].image.things)),
    }
    if match == "phrase" and any("unseen_combination" in thing.entry for thing in things):
        unseen = any(_flag(instances.path, thing, "unseen_combination", default=False) for thing in things)
        groups["combination"] = "unseen" if unseen else "seen"
    scores = tuple(float(thing.entry["score"]) for thing in things if _is_number(thing.entry.get("score")))
    return TruthTarget(
        phrase=phrase,
        boxes_xywh_px=boxes,
        match=match,
        mask=mask,
        groups=groups,
        scores=scores if len(scores) == len(things) else (),
    )


def _mask(path: Path, thing: CocoThing) -> Rle | None:
    """The mask of one thing; None without a segmentation, or without a polygon of three points."""
    value = thing.entry.get("segmentation")
    if value is None or value == []:
        return None
    size_hw = (thing.image.height_px, thing.image.width_px)
    try:
        if isinstance(value, dict):
            return _from_runs(value, size_hw)
        if isinstance(value, list) and all(isinstance(polygon, list) for polygon in value):
            if not all(_is_number(number) for polygon in value for number in polygon):
                raise ValueError("expected polygons [x0, y0, x1, y1, ...] of numbers")
            mask = encode_polygons(value, size_hw)
            return mask if any(len(polygon) >= 6 for polygon in value) else None
        raise ValueError(f"expected a list of polygons or a run-length code, got {_kind(value)}")
    except ValueError as error:
        raise InputError(f"{path}: {thing.place}: segmentation: {error}") from error


def _from_runs(value: Mapping[str, Any], size_hw: tuple[int, int]) -> Rle:
    counts = value.get("counts")
    if value.get("size") != list(size_hw):
        raise ValueError(f"expected the size [{size_hw[0]}, {size_hw[1]}] of its image, got {value.get('size')!r}")
    if isinstance(counts, str):
        return encode_counts(decode_runs(Rle(size_hw=size_hw, counts=counts)).tolist(), size_hw)
    if isinstance(counts, list):
        return encode_counts(counts, size_hw)
    raise ValueError(f"expected counts as a list or text, got {_kind(counts)}")


def _normalised(path: Path, place: str, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    text = normalise(value) if isinstance(value, str) else ""
    if not text:
        got = repr(value[:80]) if isinstance(value, str) else _kind(value)
        raise InputError(f"{path}: {place}: expected a '{key}' with letters or digits, got {got}")
    return text


def _flag(path: Path, thing: CocoThing, key: str, *, default: bool) -> bool:
    value = thing.entry.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{path}: {thing.place}: expected '{key}' to be true or false, got {_kind(value)}")
    return value


def _is_number(value: object) -> bool:
    """Whether a value can be a coordinate: a finite number, and not far from any image."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _FARTHEST_PX
