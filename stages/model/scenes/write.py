"""Writes a series of scenes as a captioned data set with exact ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import cv2

from stages.contract.masks import encode_mask
from stages.model.scenes.drawing import ImageU8
from stages.model.scenes.scene import SceneObject, make_scene
from stages.model.scenes.vocabulary import KINDS, Split

DEFAULT_SIDE_PX: Final = 360
"""Side of written images: small files that a person still likes to look at."""

ImageFormat = Literal["jpg", "png"]

_JPEG_QUALITY: Final = 93


def write_scenes(
    out: Path,
    scenes: int,
    seed: int,
    *,
    side_px: int = DEFAULT_SIDE_PX,
    split: Split = "heldout",
    min_objects: int = 2,
    max_objects: int = 5,
    image_format: ImageFormat = "jpg",
) -> None:
    """Draw scenes into a folder: images, one caption each, and where everything is.

    The folder gets `images/NAME`, `captions.jsonl` with one object per line, `{"id", "image", "caption"}`,
    the image relative to `images/`, and `truth.json`, COCO instances. Beside COCO's own keys every annotation
    has `phrase` (how the caption names the thing, lower case and without determiner, else "<colour> <kind>"),
    `mentioned` (whether the caption names it), `colour`, and `unseen_combination` (whether training never
    shows the kind in that colour). A phrase that is mentioned denotes exactly the annotations that carry it:
    "two red cars" stands on both. The same arguments give the same files with the same OpenCV.

    Args:
        out: folder; made if it is not there. Files of the same names are replaced, others are left.
        scenes: how many, >= 1.
        seed: the series, >= 0.
        side_px: side of the square images in pixels, >= 64.
        split: "heldout" for scenes that training never saw, "train" for its own.
        min_objects: least number of things in a scene, >= 1.
        max_objects: greatest number, <= 6.
        image_format: "jpg" (quality 93) or "png".

    Raises:
        ValueError: an argument is outside its range.
        OSError: a file cannot be written.
    """
    if scenes < 1:
        raise ValueError(f"scenes: expected >= 1, got {scenes}")
    if seed < 0:
        raise ValueError(f"seed: expected >= 0, got {seed}")
    (out / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows: list[str] = []
    for index in range(scenes):
        scene = make_scene(
            seed,
            index,
            side_px=side_px,
            split=split,
            min_objects=min_objects,
            max_objects=max_objects,
            extra_captions=0,
        )
        name = f"{index:06d}.{image_format}"
        (out / "images" / name).write_bytes(_encode(scene.image, image_format))
        row = {"id": f"scene-{seed}-{index:06d}", "image": name, "caption": scene.captions[0].text}
        rows.append(json.dumps(row) + "\n")
        images.append({"id": index + 1, "file_name": name, "width": side_px, "height": side_px})
        for thing in scene.objects:
            annotations.append(_annotation(thing, annotation_id=len(annotations) + 1, image_id=index + 1))
    truth = {
        "info": {"description": "drawn scenes", "seed": seed, "split": split, "scenes": scenes},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": kind, "supercategory": "thing"} for k, kind in enumerate(KINDS)],
    }
    (out / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    (out / "truth.json").write_text(json.dumps(truth), encoding="utf-8")


def _annotation(thing: SceneObject, *, annotation_id: int, image_id: int) -> dict[str, Any]:
    rle = encode_mask(thing.mask)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": KINDS.index(thing.kind) + 1,
        "bbox": list(thing.box_xywh_px),
        "area": int(thing.mask.sum()),
        "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
        "iscrowd": 0,
        "phrase": thing.phrase,
        "mentioned": thing.mentioned,
        "colour": thing.colour,
        "unseen_combination": thing.unseen_combination,
    }


def _encode(image: ImageU8, image_format: ImageFormat) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if image_format == "jpg" else []
    done, encoded = cv2.imencode(f".{image_format}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise OSError(f"OpenCV could not encode a {image.shape[1]}x{image.shape[0]} image as {image_format}")
    return encoded.tobytes()
