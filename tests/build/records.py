"""Regions, masks and images of the datasets that tests write: images of 40 x 30 pixels."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from phrasebox.stages.contract.masks import encode_mask, rle_area_px, rle_box_xywh_px
from phrasebox.stages.contract.records import Region

WIDTH = 40
HEIGHT = 30


def image_bytes(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def encoded(
    form: str = "JPEG", *, orientation: int = 1, colour: tuple[int, int, int] = (200, 30, 30)
) -> bytes:
    """An image of 40 x 30 pixels, once it is turned upright."""
    size = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    return image_bytes(
        Image.new("RGB", size, colour), form, exif=exif.tobytes() if orientation != 1 else b""
    )


def mask(*boxes: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = ()) -> Any:
    """bool (30, 40) with boxes x, y, w, h inside, and others cut out."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for value, places in ((True, boxes), (False, holes)):
        for x, y, w, h in places:
            inside[y : y + h, x : x + w] = value
    return inside


def region(phrase_index: int, place: Any, **fields: Any) -> Region:
    """place: a box x, y, w, h, or a mask."""
    rle = encode_mask(mask(place) if isinstance(place, tuple) else place)
    shape = {"box_xywh_px": rle_box_xywh_px(rle), "mask": rle, "area_px": rle_area_px(rle)}
    return Region(phrase_index=phrase_index, **shape, **fields)
