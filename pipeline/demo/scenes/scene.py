"""Synthetic scenes: objects are chosen, placed, painted and captioned; and a series is written as files.

A scene is a pure function of its arguments: the same ones give the same pixels, masks and words
in any process and any order. No global random state is read or changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from phrasebox.pipeline.demo.scenes.captions import (
    COLOUR_NAMES,
    HELDOUT_PAIRS,
    KINDS,
    Caption,
    CaptionObject,
    phrase_of,
    write_caption,
)
from phrasebox.pipeline.demo.scenes.drawing import (
    add_camera_effects,
    paint_background,
    paint_object,
    paint_silhouette,
    pick_tones,
    silhouette_bounds,
)
from phrasebox.stages.contract.masks import encode_mask, mask_box_xywh_px
from phrasebox.stages.contract.values import Bools, Floats32, Json, Levels, Rgb

MIN_SIZE_REL: Final = 0.15  # Smallest longer side of an object relative to the image's side
MAX_SIZE_REL: Final = 0.55  # Largest longer side of an object relative to the image's side
_MIN_VISIBLE_REL: Final = 0.45  # Least share of an object's own area that stays visible behind the others
_OUTWARDS: Final = 0.15
"""How much rarer places in the middle are than under an even spread: 1 / (1 + 0.15) along each
axis.

Large objects rarely leave the middle free, and a model would find an object at the image's
centre without looking."""

FEWEST_OBJECTS: Final = 2
MOST_OBJECTS: Final = 5
_TRIES: Final = 14
_CATEGORIES: Final = [
    {"id": number, "name": kind, "supercategory": "thing"} for number, kind in enumerate(KINDS, start=1)
]
_HELDOUT_RATE: Final = 0.15
_STREAM: Final = 2  # Keeps the random numbers of scenes apart from those that `demo` was trained on
_TRAIN_PAIRS: Final = tuple((k, c) for k in KINDS for c in COLOUR_NAMES if (k, c) not in HELDOUT_PAIRS)
_UNSEEN_PAIRS: Final = tuple(sorted(HELDOUT_PAIRS))


@dataclass(frozen=True, slots=True, eq=False)
class SceneObject:
    """An object of a synthetic scene.

    Attributes:
        kind: The kind, in the singular.
        colour: Name of the colour.
        mask: Its visible pixels: bool (H, W).
        size_rel: Its longer side before rotation, relative to the image's side.
        phrase: Its name in the scene's caption, in lower case without determiner ("red car",
            "two red fish", "car"); "<colour> <kind>" if that caption does not name it.
        is_mentioned: Whether the caption names it.
    """

    kind: str
    colour: str
    mask: Bools
    size_rel: float
    phrase: str
    is_mentioned: bool

    @property
    def box_xywh_px(self) -> tuple[float, float, float, float]:
        """The mask's half-open bounding box: x, y, width, height in pixels."""
        return mask_box_xywh_px(self.mask)

    @property
    def unseen_combination(self) -> bool:
        """Whether `demo` never saw this kind in this colour in its training."""
        return (self.kind, self.colour) in HELDOUT_PAIRS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """An image, its objects and its caption.

    The caption is unambiguous: each phrase denotes exactly its objects, and none names an
    absent one.

    Attributes:
        image: RGB, uint8 (side, side, 3).
        objects: The objects, back to front.
        caption: A sentence about some of the objects.
    """

    image: Rgb
    objects: tuple[SceneObject, ...]
    caption: Caption


def make_scene(seed: int, index: int, *, side_px: int) -> Scene:
    """Draw scene number `index` >= 0 of the series `seed` >= 0.

    It has `FEWEST_OBJECTS` to `MOST_OBJECTS` objects, or fewer if no free place is left.

    Args:
        seed: Number of the series.
        index: Number of the scene.
        side_px: Side of the square image in pixels, 64 .. 600.

    >>> scene = make_scene(0, 1, side_px=64)
    >>> scene.image.shape, len(scene.objects) >= 1
    ((64, 64, 3), True)
    """
    rng = np.random.default_rng([_STREAM, seed, index])
    count = int(rng.integers(FEWEST_OBJECTS, MOST_OBJECTS + 1))
    pairs = _choose_pairs(rng, count)
    image, labels, placements = _compose(rng, pairs, side_px)
    image = add_camera_effects(rng, image)
    masks = [labels == label for label in range(1, len(placements) + 1)]
    caption_objects = []
    for (kind, colour, size_rel), mask in zip(placements, masks, strict=True):
        x, y, width, height = mask_box_xywh_px(mask)
        centre_rel = ((x + width / 2) / side_px, (y + height / 2) / side_px)
        caption_objects.append(CaptionObject(kind, colour, size_rel, centre_rel))
    caption = write_caption(rng, caption_objects)
    objects = tuple(
        SceneObject(item.kind, item.colour, mask, item.size_rel, *phrase_of(caption, number, item))
        for number, (item, mask) in enumerate(zip(caption_objects, masks, strict=True))
    )
    return Scene(image=image, objects=objects, caption=caption)


def _choose_pairs(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Choose kinds and colours: most scenes repeat a kind or a colour (distractors), some both (plurals)."""
    pairs = [_random_pair(rng)]
    if count > 1 and rng.random() < 0.28:
        pairs *= 1 + (int(rng.integers(1, 3)) if count > 2 else 1)
    while len(pairs) < count:
        chance = rng.random()
        like_kind, like_colour = pairs[int(rng.integers(len(pairs)))]
        for _ in range(20):
            kind, colour = _random_pair(rng)
            if chance < 0.30:
                kind = like_kind
            elif chance < 0.58:
                colour = like_colour
            if (kind, colour) not in pairs:
                break
        else:
            kind, colour = _random_pair(rng)
        pairs.append((kind, colour))
    order = rng.permutation(len(pairs))
    return [pairs[int(k)] for k in order]


def _random_pair(rng: np.random.Generator) -> tuple[str, str]:
    """Draw about every seventh of the pairs that `demo` never saw."""
    if rng.random() < _HELDOUT_RATE:
        return _UNSEEN_PAIRS[int(rng.integers(len(_UNSEEN_PAIRS)))]
    return _TRAIN_PAIRS[int(rng.integers(len(_TRAIN_PAIRS)))]


def _compose(
    rng: np.random.Generator, pairs: list[tuple[str, str]], side_px: int
) -> tuple[Rgb, Levels, list[tuple[str, str, float]]]:
    """Place and paint the pairs, except those that would hide another object too much."""
    image = paint_background(rng, side_px)
    labels = np.zeros((side_px, side_px), np.uint8)
    areas = [0]
    placements: list[tuple[str, str, float]] = []
    room = 1.0 - 0.07 * (len(pairs) - 1)
    for kind, colour in pairs:
        for attempt in range(_TRIES):
            shrink = room * (1.0 - 0.03 * attempt)
            size_rel = MIN_SIZE_REL + (MAX_SIZE_REL - MIN_SIZE_REL) * shrink * float(rng.random())
            matrix = _placement(rng, kind, size_rel, side_px)
            label = len(placements) + 1
            trial = labels.copy()
            paint_silhouette(trial, label, kind, matrix)
            visible_areas = np.bincount(trial.ravel(), minlength=label + 1)
            are_others_visible = all(
                visible_areas[k] >= _MIN_VISIBLE_REL * areas[k] for k in range(1, label)
            )
            if visible_areas[label] > 0 and (are_others_visible or label == 1):
                paint_object(image, kind, pick_tones(rng, colour), matrix)
                labels = trial
                areas.append(int(visible_areas[label]))
                placements.append((kind, colour, size_rel))
                break
    return image, labels, placements


def _placement(
    rng: np.random.Generator,
    kind: str,
    size_rel: float,
    side_px: int,
) -> Floats32:
    """Unit coordinates -> pixels: scale, slight stretch, mirror, turn, then a place inside the image."""
    turn = float(rng.uniform(-30.0, 30.0)) if rng.random() < 0.85 else float(rng.uniform(-180.0, 180.0))
    stretch = float(rng.uniform(0.85, 1.0))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos = np.cos(np.radians(turn))
    sin = np.sin(np.radians(turn))
    is_wide = rng.random() < 0.5
    sx = size_rel * side_px * (1.0 if is_wide else stretch)
    sy = size_rel * side_px * (stretch if is_wide else 1.0)
    matrix = np.array(
        [[cos * sx * mirror, -sin * sy, 0.0], [sin * sx * mirror, cos * sy, 0.0]],
        dtype=np.float32,
    )
    x0, y0, x1, y1 = silhouette_bounds(kind, matrix)
    room_x = max(side_px - (x1 - x0), 1.0)
    room_y = max(side_px - (y1 - y0), 1.0)
    matrix[0, 2] = _place(rng) * room_x - x0
    matrix[1, 2] = _place(rng) * room_y - y0
    return matrix


def _place(rng: np.random.Generator) -> float:
    """A random number, 0-1, a little more often towards both ends."""
    even = float(rng.random())
    return even - _OUTWARDS / (2 * np.pi) * float(np.sin(2 * np.pi * even))


def write_scenes(
    out: Path,
    scenes: int,
    seed: int,
    *,
    side_px: int = 360,
) -> None:
    """Draw held-out scenes of two to five objects into a folder.

    Files of the same names are replaced. The folder gets images, captions and ground truth:

    - `images/NAME`;
    - `captions.jsonl`, a JSON object on each line, `{"id", "image", "caption"}`, the image
      relative to `images/`;
    - `truth.json`, COCO instances. Annotations also have `phrase`, `mentioned`, `colour` and
      `unseen_combination`, see `SceneObject`. A mentioned phrase denotes exactly its
      annotations: both objects of "two red cars" have it.

    The same arguments give the same files with the same OpenCV.

    Args:
        out: The folder.
        scenes: Number of scenes, >= 1.
        seed: Number of the series, >= 0.
        side_px: Side of the square images in pixels, 64 .. 600. The default gives small files.

    Raises:
        OSError: A file cannot be written.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    images: list[Json] = []
    annotations: list[Json] = []
    for index in range(scenes):
        scene = make_scene(seed, index, side_px=side_px)
        name = f"{index:06d}.jpg"
        bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 93])
        (out / "images" / name).write_bytes(content.tobytes())
        row = {"id": f"scene-{seed}-{index:06d}", "image": name, "caption": scene.caption.text}
        rows.append(json.dumps(row) + "\n")
        images.append({"id": index + 1, "file_name": name, "width": side_px, "height": side_px})
        for item in scene.objects:
            number = len(annotations) + 1
            annotations.append(_annotation(item, annotation_id=number, image_id=index + 1))
    info = {"description": "drawn scenes", "seed": seed, "split": "heldout", "scenes": scenes}
    truth = {"info": info, "images": images, "annotations": annotations, "categories": _CATEGORIES}
    (out / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    (out / "truth.json").write_text(json.dumps(truth), encoding="utf-8")


def _annotation(item: SceneObject, *, annotation_id: int, image_id: int) -> Json:
    rle = encode_mask(item.mask)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": KINDS.index(item.kind) + 1,
        "bbox": list(item.box_xywh_px),
        "area": int(item.mask.sum()),
        "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
        "iscrowd": 0,
        "phrase": item.phrase,
        "mentioned": item.is_mentioned,
        "colour": item.colour,
        "unseen_combination": item.unseen_combination,
    }
