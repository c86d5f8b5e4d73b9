"""Pictures for people: heat maps over an image, regions over an image with captions below, thumbnails, outlines."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.geometry import Box, resize_shifted, scaled_sides
from phrasebox.stages.contract.masks import decode_mask, mask_box_xywh_px, mask_rings
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.contract.schema import rle_of
from phrasebox.stages.contract.values import Bools, Floats32, Json, Rgb
from phrasebox.stages.images.decode import decode_resized
from phrasebox.stages.images.faults import DecodeLimits

HeatValues = Floats32  # float32 (height, width) of a heat map, >= 0, not normalised
SizeWh = tuple[int, int]

_TEXT_PX = 15
_LINE_PX = 20
_OUTLINE = np.ones((5, 5), np.uint8)  # what it erodes is an outline of two pixels
_PAPER = (250, 250, 248)
_INK = (30, 30, 30)


def heat_map_overlay(rgb: Rgb, values: HeatValues, shift_cells: float = 0.0) -> Rgb:
    """Lay a heat map of any size over its image (H, W, 3); blue is cold, red is hot.

    `shift_cells` says where its values lie, see `HeatMap`.
    """
    unit, colours = _colour_map(values, (rgb.shape[1], rgb.shape[0]), shift_cells)
    share = 0.25 + 0.4 * unit[..., None]
    mixed: Rgb = (rgb * (1 - share) + colours * share).astype(np.uint8)
    return mixed


def heat_map_png(values: HeatValues, side_px: int = 512, shift_cells: float = 0.0) -> bytes:
    """Encode a heat map as a PNG to lay over its image; blue is cold, red is hot, and cold is more transparent.

    The picture has the shape of the grid and a longer side of `side_px`: stretch it to the image.
    `shift_cells` says where its values lie, see `HeatMap`.
    """
    grid_h, grid_w = values.shape
    size_wh = scaled_sides((grid_w, grid_h), side_px / max(grid_h, grid_w))
    unit, colours = _colour_map(values, size_wh, shift_cells)
    opacity = (255 * (0.25 + 0.5 * unit)).astype(np.uint8)
    return encode_image(Image.fromarray(np.dstack([colours, opacity])), "PNG")


def _colour_map(values: HeatValues, size_wh: SizeWh, shift_cells: float) -> tuple[HeatValues, Rgb]:
    """A heat map, min-maxed to 0 .. 1 and resized bilinearly, and its colours."""
    values = values - values.min()
    peak = float(values.max())
    shares = values / peak if peak > 0 else values
    if shift_cells:
        unit = resize_shifted(shares, size_wh[::-1], shift_cells)
    else:
        unit = cv2.resize(shares, size_wh, interpolation=cv2.INTER_LINEAR)
    colours: Rgb = cv2.applyColorMap((unit * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return unit, colours


def regions_overlay(rgb: Rgb, annotations: Sequence[Json], captions: Sequence[str] = ()) -> Rgb:
    """Draw the annotations of a row over its image in its original size, in different colours; captions stand below.

    `annotations` are entries of the dataset's column of that name.
    """
    picture = draw_regions(
        rgb,
        [decode_mask(rle_of(annotation)) for annotation in annotations],
        [annotation["bbox"] for annotation in annotations],
        [f"{annotation['phrase']} {annotation['score']:.2f}" for annotation in annotations],
    )
    return _with_text(picture, captions)


def draw_regions(
    rgb: Rgb,
    masks: Sequence[Bools],
    boxes_xywh_px: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> Image.Image:
    """Draw regions over an image in different colours: the outline of each mask bool (H, W), its box and its label.

    A label stands above its box, or at the nearest place where it covers no other label.
    """
    picture = rgb.copy()
    colours = [_colour(number) for number in range(len(labels))]
    for mask, colour in zip(masks, colours, strict=True):
        inside = cv2.erode(mask.astype(np.uint8), _OUTLINE, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        picture[mask & (inside == 0)] = colour
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_TEXT_PX)
    for (x, y, w, h), colour in zip(boxes_xywh_px, colours, strict=True):
        draw.rectangle((x, y, max(x, x + w - 1), max(y, y + h - 1)), outline=colour, width=2)
    label_boxes: list[Box] = []
    for (x, y, *_), label, colour in zip(boxes_xywh_px, labels, colours, strict=True):
        text_left, text_top, text_right, text_bottom = draw.textbbox((0, 0), label, font=font)
        width = text_right - text_left + 6
        height = text_bottom - text_top + 8
        label_x = max(0.0, min(x, image.width - width))
        top = y - height if y > height else y
        label_y = _free_top((label_x, top, width, height), label_boxes, image.height)
        label_boxes.append((label_x, label_y, width, height))
        draw.rectangle((label_x, label_y, label_x + width, label_y + height), fill=colour)
        draw.text((label_x + 3, label_y + 3 - text_top / 2), label, fill=(0, 0, 0), font=font)
    return image


def _free_top(label: Box, boxes: Sequence[Box], image_height: int) -> float:
    """The top nearest to a label's at which the label covers no other box; the label's where there is no room."""
    x, y, width, height = label
    spans = [(top, top + high) for left, top, wide, high in boxes if left <= x + width and x <= left + wide]
    tops = sorted((y, *range(int(image_height - height))), key=lambda top: abs(top - y))
    return next((top for top in tops if all(end < top or top + height < start for start, end in spans)), y)


_OUTLINE_TOLERANCE_PX = 0.75  # More than the steps of a diagonal line, less than a corner of one pixel


def mask_path(rle: Rle, most_px: int = 640) -> str:
    """Convert a mask to SVG path data in pixels of its image, with holes (fill rule "evenodd"); "" if it is empty.

    Outlines are simplified, by less than a pixel, on a grid of at most `most_px` a side, to which
    larger masks are averaged down. Raise ValueError for a damaged run-length code.
    """
    mask = decode_mask(rle)
    left, top, width, height = (int(value) for value in mask_box_xywh_px(mask))
    if not width:
        return ""
    inside = mask[top : top + height, left : left + width].astype(np.uint8)
    scale = min(1.0, most_px / max(height, width))
    if scale < 1:
        size = scaled_sides((width, height), scale)
        shares = cv2.resize(inside * np.uint8(255), size, interpolation=cv2.INTER_AREA)
        inside = (shares >= min(128, shares.max())).astype(np.uint8)  # a mask of thin lines stays visible
    to_px = np.array([width / inside.shape[1], height / inside.shape[0]])
    rings = (
        np.round(corners * to_px + (left, top), 1)
        for corners, _ in mask_rings(inside, _OUTLINE_TOLERANCE_PX)
    )
    return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in ring) + "Z" for ring in rings)


def thumbnail(content: bytes, side_px: int, limits: DecodeLimits) -> bytes:
    """Turn an encoded image into an upright JPEG with a longer side of at most `side_px`.

    Raise RowFault.
    """
    return encode_image(Image.fromarray(decode_scaled(content, side_px, limits)), "JPEG", quality=88)


def decode_scaled(content: bytes, side_px: int, limits: DecodeLimits, most_scale: float = 1.0) -> Rgb:
    """Decode an image, upright, with a longer side of `side_px`, or of less where it would grow more than `most_scale`.

    Raise RowFault (bad_image, image_too_large).
    """

    def size(width: int, height: int) -> SizeWh:
        return scaled_sides((width, height), min(most_scale, side_px / max(width, height)))

    return decode_resized(content, limits, size, interpolation="bilinear", shrink_jpeg=True).rgb


def jpeg_of(rgb: Rgb, size_wh: SizeWh) -> bytes:
    """Encode pixels in memory as a JPEG of that many columns and rows."""
    return encode_image(Image.fromarray(rgb).resize(size_wh, Image.Resampling.BILINEAR), "JPEG", quality=85)


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the image as a file of Pillow's format `kind`."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_lossless(image: Image.Image | Rgb) -> bytes:
    """Encode an image in memory as an uncompressed TIFF, upright, which `decode` then reads like any file."""
    image = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else Image.fromarray(image))
    if "transparency" in image.info:  # a TIFF has no place for it
        image = image.convert("RGBA")
    try:
        return encode_image(image, "TIFF")
    except (OSError, KeyError):  # a mode that TIFF does not have
        return encode_image(image.convert("RGB"), "TIFF")


def encode_pixels(image: Any) -> bytes:
    """Encode an image in memory as `encode_lossless`. Raise InputError unless it is of Pillow or uint8 (h, w, 3)."""
    if not isinstance(image, Image.Image):
        if not isinstance(image, np.ndarray):
            raise InputError(
                f"expected a path, bytes, a Pillow image or an array as image, got a {type(image).__name__}"
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"expected uint8 (height, width, 3) as image, got {image.dtype} {image.shape}")
    return encode_lossless(image)


def join_pictures(pictures: Sequence[Rgb], titles: Sequence[str]) -> Rgb:
    """Put pictures of one height side by side, with a title under each, which may be several lines long."""
    tiles = [
        _with_text(Image.fromarray(picture), [title])
        for picture, title in zip(pictures, titles, strict=True)
    ]
    return make_sheet(tiles, len(tiles), gap_px=0)


def make_sheet(pictures: Sequence[Rgb], columns: int, *, gap_px: int = 8) -> Rgb:
    """Put pictures of any size on one sheet, `columns` in a row."""
    width = max(picture.shape[1] for picture in pictures) + gap_px
    rows = []
    for first in range(0, len(pictures), columns):
        part = pictures[first : first + columns]
        row = np.full((max(map(len, part)) + gap_px, width * columns + gap_px, 3), _PAPER, np.uint8)
        for number, picture in enumerate(part):
            row[gap_px : gap_px + len(picture), gap_px + number * width :][:, : picture.shape[1]] = picture
        rows.append(row)
    return np.concatenate([*rows, np.full((gap_px, rows[0].shape[1], 3), _PAPER, np.uint8)])


def _colour(number: int) -> tuple[int, int, int]:
    """A bright colour with a hue far from the hues of other numbers: they differ by steps of the golden ratio."""
    r, g, b = colorsys.hsv_to_rgb((0.08 + number * 0.618034) % 1.0, 0.65, 1.0)
    return int(r * 255), int(g * 255), int(b * 255)


def _with_text(image: Image.Image, texts: Sequence[str]) -> Rgb:
    printable = ("".join(letter if letter.isprintable() else " " for letter in text) for text in texts)
    lines = [line for text in printable for line in textwrap.wrap(text, max(10, image.width // 8)) or [""]]
    paper = Image.new(
        "RGB", (image.width, image.height + _LINE_PX * len(lines) + (6 if lines else 0)), _PAPER
    )
    paper.paste(image, (0, 0))
    draw = ImageDraw.Draw(paper)
    font = ImageFont.load_default(_TEXT_PX)
    for number, line in enumerate(lines):
        draw.text((4, image.height + 3 + number * _LINE_PX), line, fill=_INK, font=font)
    return np.asarray(paper)
